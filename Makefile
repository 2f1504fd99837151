# Every target does its own set-up: the environment in .venv is made once and reused.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
DATASET ?= demo
GPUS ?= 1
# on two cores a third fills the waits of the others
WORKERS ?= 3
EXTRA ?= test
STRIP := $(BIN)/nbstripout --extra-keys "metadata.papermill cell.metadata.papermill metadata.widgets"

PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-fast test-browser test-gpu report lab proofs fuzz bench waits grid lint style tidy lock clean
.DEFAULT_GOAL := help

help:           ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: .venv/ready  ## the environment alone (LOCK=1: exactly the versions of requirements.lock; CPU=1 EXTRA=grid: docs/installing.md)

# Without CUDA the environment is to be small: Python compiles the modules that are used when they are used.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CPU),--no-compile)

# Only these two come from PyTorch's index, and before the rest, which then finds them installed. pip may look
# elsewhere too (its own settings), so what it took is checked before gigabytes follow.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
define without_cuda
$(INSTALL) --no-deps --index-url $(CPU_INDEX) \
    $$(grep -E '^torch(vision)?==' requirements.lock) \
    || { echo 'No PyTorch without CUDA from $(CPU_INDEX). Name a mirror: make setup CPU=1 CPU_INDEX=<address>; or leave out CPU=1 (6.5 GB).'; exit 1; }
$(BIN)/python -c 'import runpy, sysconfig; assert runpy.run_path(sysconfig.get_path("platlib") + "/torch/version.py")["cuda"] is None, "pip took a PyTorch with CUDA from elsewhere: look for further indexes in pip config list, then make clean"'

endef

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(if $(CPU),$(without_cuda))
	$(INSTALL) -e '.[$(EXTRA)]' $(if $(LOCK),-c requirements.lock)
	touch $@

demo: .venv/ready  ## train, evaluate and explain VideoSSL on rendered videos (SEED=0)
	$(BIN)/python -m videossl_lab.make_demo demo --seed $(SEED)

report: .venv/ready  ## finished runs, one page a data set, which opens from the disk (DATASET=)
	$(BIN)/python -m videossl_lab.report $(if $(filter command line environment,$(origin DATASET)),$(DATASET))

lab: .venv/ready  ## JupyterLab on the tour, localhost only, token required (ARGS=--port=9000)
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/tour.ipynb --ServerApp.ip=127.0.0.1 $(ARGS)

test: style  ## lint and all tests, each notebook executed (WORKERS=3 at a time)
	$(BIN)/mypy --no-error-summary & $(PYTEST) && wait $$!

test-fast: .venv/ready  ## the tests that take seconds, without those that kill processes
	$(PYTEST) -m "not slow and not kill"

test-browser: .venv/ready  ## each notebook run in JupyterLab by a real Chromium (CHROMIUM=<path>)
	$(BIN)/python -m pytest tests/browser

test-gpu: .venv/ready  ## training on a GPU compared with the CPU (ARGS="--device cpu" tries the tests without one)
	$(BIN)/python -m pytest tests/gpu $(ARGS)

proofs: .venv/ready  ## fault injection, random faults 25 times: docs/reliability.md
	$(BIN)/python -m pytest tests/test_faults.py --times 25

fuzz: .venv/ready  ## thousands of broken videos, lists, parameter files and caches
	PYTHONPATH=tests $(BIN)/python -m support.fuzz

bench: .venv/ready  ## speed, as ratios to what this machine can do (ROOT=<real videos>)
	$(BIN)/python -m benchmarks.bench $(if $(ROOT),--root "$(ROOT)")

waits: .venv/ready  ## what a newcomer waits for, measured in a fresh clone, into docs/speed.md
	$(BIN)/python -m benchmarks.waits $(ARGS)

grid: export GIVEN := $(GIVEN)  # by the environment, and with a space behind it: its quotes stay as they are
grid: .venv/ready  ## the paper's grid, or a declared one (DATASET= or GRID=, REST=1, METHODS= FRACTIONS= SEEDS= GIVEN= GPUS= ARGS=--dry-run)
	$(BIN)/python -m snakemake --cores all --resources gpu=$(GPUS) --keep-going --rerun-incomplete $(ARGS) \
	    --config dataset=$(DATASET) grid=$(GRID) methods=$(METHODS) fractions=$(FRACTIONS) seeds=$(SEEDS) rest=$(REST) "given=$(if $(strip $(GIVEN)),$$GIVEN )"

lint: style  ## style, notebooks without outputs, who imports whom, types of the core
	$(BIN)/mypy

style: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(STRIP) --verify notebooks/*.ipynb
	$(BIN)/lint-imports

tidy: .venv/ready  ## format code and notebooks, strip notebook outputs
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(STRIP) notebooks/*.ipynb

lock: .venv/ready  ## write the versions that are installed into requirements.lock
	$(BIN)/python .ci/lock.py > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:          ## forget the environment (data and runs stay)
	rm -rf .venv
