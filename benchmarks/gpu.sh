#!/bin/sh
# Fills the tables of calibration on one CUDA card; sized for less than ten minutes on an H100:
#
#     benchmarks/gpu.sh | tee gpu.txt
#
# Anywhere else SMALL=1 tries every line of it on the CPU, at sizes that say nothing, in a few minutes.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}

measure() {
    echo
    echo "$ python -m benchmarks.speed.calibration $*"
    "$PYTHON" -m benchmarks.speed.calibration "$@"
}

if [ -n "${SMALL:-}" ]; then
    export OMP_NUM_THREADS=1
    measure smollm2 --samples 1 --repeats 1
    measure block --width 256 --layers 2 --samples 1 --tokens 32 --repeats 1
    measure subspaces --width 256 --rank 16
    measure peers --samples 2 --rank 4 --limit 180
    measure slopes --width 512 --repeats 1 --output "${TMPDIR:-/tmp}/slopes-gpu.png"
    exit
fi

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$PYTHON" -m pytest -q tests/integration/test_gpu.py
measure smollm2 --device cuda --samples 32
measure block --device cuda --layers 8 --samples 8 --tokens 512
measure subspaces --device cuda
measure peers --device cuda --samples 32 --rank 8 --limit 60
measure slopes --device cuda --output slopes-gpu.png
