#!/bin/sh
# Fills the tables of one CUDA card: the tests on it, calibration beside what others do, and the whole pipeline at the
# shape of LLaMA-2-7B, whose figures go to card.json. Sized for less than ten minutes on an H100:
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
    "$PYTHON" -m benchmarks.speed.freezing --only 0 --repeats 1
    "$PYTHON" -m benchmarks.speed.checkpointing --only 0 --repeats 1
    "$PYTHON" -m benchmarks.speed.card --small --output "${TMPDIR:-/tmp}/card.json"
    exit
fi

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$PYTHON" -m pytest -q tests/integration/test_gpu.py
measure smollm2 --device cuda --samples 32
measure block --device cuda --layers 8 --samples 8 --tokens 512
measure subspaces --device cuda
measure peers --device cuda --samples 32 --rank 8 --limit 60
"$PYTHON" -m benchmarks.speed.freezing --device cuda --times 32
"$PYTHON" -m benchmarks.speed.checkpointing --device cuda --times 32
"$PYTHON" -m benchmarks.speed.card --output card.json
