# Everything runs in .venv, made on first use; a second call starts at once.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# One numeric thread per process in tests; the tools themselves use every core.
BOUND := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

# What a module compiles to is kept beside it, also where the environment says not to (many images do): torch and
# transformers take seconds to compile, and every command would do so anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-slow lint format docs bench assets browser clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# Modules are compiled when they are first imported; thousands never are, and would be half of the installation's time.
INSTALL := $(BIN)/pip install --quiet --no-compile

.venv/ready: pyproject.toml constraints.txt
	@echo "setting up .venv (one to three minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(INSTALL) torch==2.13.0
	$(INSTALL) --constraint constraints.txt --editable .
	@touch $@

setup: .venv/ready-dev ## make .venv with calque and its development tools
.venv/ready-dev: .venv/ready
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $@

assets: setup ## fetch the open models and texts that tests and demo use
	$(BIN)/calque assets get smollm2-135m kolibri bible-nya bible-eng

# Debian's own browser draws the report in one test; without it, that test says so and is skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; } || \
	  echo "no chromium: the browser test will be skipped (apt-get install chromium chromium-driver)"

demo: .venv/ready ## carry SmolLM2-135M over into Chichewa in three minutes of training; ends with a report
	$(BIN)/calque adapt smollm2-135m --to nya --text bible-nya --parallel 'bible-eng|bible-nya' \
	  --test kolibri=kolibri:nya_Latn --test english=eng_Latn=kolibri:eng_Latn \
	  --minutes 3 --test-bytes 5000 -o out/demo

test: setup assets browser ## the fast tests
	$(BOUND) $(BIN)/pytest -n 2 -m "not slow"

test-slow: setup assets browser ## everything, effects included
	$(BOUND) $(BIN)/pytest

lint: setup ## style, types, import order between layers, generated lists
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m calque.registry --check README.md docs/methods.md

format: setup ## rewrite to the house style and refresh the generated lists
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m calque.registry --write README.md docs/methods.md

docs: setup ## the documentation as a site in site/
	$(BIN)/mkdocs build --strict --quiet

bench: setup assets ## the figures of the README, measured side by side (about an hour on two cores)
	$(MAKE) demo
	$(BIN)/python benchmarks/adapt.py out/demo
	$(BIN)/python benchmarks/align.py
	$(BIN)/python benchmarks/train.py
	@echo "benchmarks/vocab.py needs its peers: see its --help"

clean: ## remove what was built here; the asset cache stays
	rm -rf .venv out site .pytest_cache .ruff_cache .hypothesis
