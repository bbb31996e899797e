# `make demo` needs python3 (3.11 or newer) and make; everything else it installs into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL_ID ?= runs/demo/exported
SHARDS ?= data/digits/shards

export HF_HUB_DISABLE_TELEMETRY := 1
export GRADIO_ANALYTICS_ENABLED := False
export MODEL_ID  # recipes read it from the environment, whatever characters it contains

.PHONY: demo test default-tests test-baseline-isa test-slow check fix bench figures app web-app clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(VENV)/.installed  ## pack, train, export, evaluate and predict real images
	@$(BIN)/python -m imagenet_rn50 demo

# mypy keeps one core busy for a minute: the tests need not wait for it.
test: $(VENV)/.installed-dev  ## check format, lint, types and import layers, and run the default tests
	@$(MAKE) --no-print-directory -j 2 check default-tests

# Three processes on two cores, for some tests wait. They are forked: see tests/forked.py.
default-tests: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --processes 3

test-baseline-isa: $(VENV)/.installed-dev  ## run the numeric tests without AVX: processors round differently
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest --processes 3 \
		-m "numeric and not slow and not gpu and not network"

check: $(VENV)/.installed-dev  ## check format, lint, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/.installed-dev  ## fix format and lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(VENV)/.installed-dev  ## run the slow tests: the demo, every documented command, thirty kills, two machines, Slurm
	@$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed-dev  ## measure speed beside known peers, interleaved in one run
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.packing
	$(BIN)/python -m benchmarks.app

figures: $(VENV)/.installed-dev demo  ## draw the figures of the documents anew, from the code and the demo
	$(BIN)/python -m benchmarks.figures
	$(BIN)/python -m benchmarks.tables

app: $(VENV)/.installed  ## serve the Space on localhost, with MODEL_ID=folder or Hub id
	@test "$$MODEL_ID" != runs/demo/exported -o -d runs/demo/exported || \
		{ echo "There is no model yet: run \`make demo\` first, or pass one: make app MODEL_ID=folder-or-Hub-id"; exit 2; }
	$(BIN)/python app/app.py

web-app: export SHARDS := $(value SHARDS)
web-app: $(VENV)/.installed-dev  ## serve the page that classifies in the browser, with MODEL_ID=folder
	@test "$$MODEL_ID" != runs/demo/exported -o -d runs/demo/exported || \
		{ echo "There is no model yet: run \`make demo\` first, or pass one: make web-app MODEL_ID=folder SHARDS=folder"; exit 2; }
	@$(BIN)/python -m imagenet_rn50 web --model "$$MODEL_ID" --shards "$$SHARDS"

clean:  ## remove the output of the demo and the tests, not .venv
	rm -rf data/digits runs/demo test-artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (some gigabytes, once)."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-onnx.txt $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@
