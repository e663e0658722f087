# Everything here works on a bare Linux machine with make and Python 3.11, 3.12 or 3.13: each target sets up what it
# needs in .venv the first time, and starts at once from then on.

# The Python that .venv is made with: the first one that fits. Choose another with `make PYTHON=/path/to/python`.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && exit; done; echo python3)
# Processes that run tests at the same time, each with one thread.
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test fuzz lint docs bench clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## install visionkit and its tools, at tested versions, in .venv
	@echo "== ready; for the command 'visionkit': . .venv/bin/activate"

demo: $(READY)  ## train four heads on drawn scenes and print their metrics (minutes on 2 cores)
	@$(BIN)/visionkit demo

test: lint docs  ## everything a change must pass: lint, docs, tests
	@echo "== tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

fuzz: $(READY)  ## read thousands of damaged files of every kind (about an hour; finds crashes and wrong results)
	@$(BIN)/python -m tests.fuzz --processes $(WORKERS)

lint: $(READY)  ## ruff, mypy and the rules of who may import whom
	@echo "== ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check . | tail -n 20; exit 1; }
	@echo "== mypy"
	@$(BIN)/mypy --no-error-summary
	@echo "== import-linter"
	@$(BIN)/lint-imports > .venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }

docs: $(READY)  ## build the documentation in docs/_build, warnings as errors
	@echo "== docs"
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build

bench: $(READY)  ## measure against the peers (long; best on an idle machine)
	@$(BIN)/python -m benchmarks

clean:  ## remove all that these targets made (runs/ stays)
	rm -rf .venv build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt $(BIN)/uv
	@echo "== installing (the first time downloads PyTorch)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable . --group dev --constraints constraints.txt
	@touch $@

# Asked for by name alone: a newer uv is no reason to install again.
$(BIN)/uv:
	@$(PYTHON) -c '$(FITS)' 2>/dev/null || { echo "visionkit needs Python 3.11, 3.12 or 3.13; here $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1). Choose one with: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments;" \
		"on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "== creating .venv with $$($(PYTHON) --version)"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
