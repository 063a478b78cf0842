# make run: the quickstart, all seven steps.   make test: lint and tests.   make.cmd is this file's twin for Windows.

PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= configs/quickstart.yaml
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install run test lint soak bench docs clean

help:  ## Say what there is to make
	@echo "make TARGET, where TARGET is"
	@sed -n 's/^\([a-z]*\):.*## /  \1	/p' $(MAKEFILE_LIST) | expand -t 12
	@echo "CONFIG=$(CONFIG) is what 'make run' builds; PYTHON=$(PYTHON) makes the virtual environment."

install: $(STAMP)  ## Make .venv with the tested versions of everything (again when they change)

# torch comes first and by itself: a build for your GPU that is there already is kept.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,postgres]'
	@touch $@

run: $(STAMP)  ## Start the pipeline, or go on after any interruption
	$(BIN)/so8t --home "$(CURDIR)" resume --config $(CONFIG)

test: lint  ## Lint, types, and every test except the long soaks
	$(BIN)/python -m pytest -m "not soak"

lint: $(STAMP)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy --strict so8t_fsm

soak: $(STAMP)  ## Kill a run again and again for as long as it takes
	$(BIN)/python -m pytest -m soak

bench: $(STAMP)  ## Measure what docs and benchmarks/ claim
	@set -e; for each in benchmarks/[a-z]*.py; do \
	  test -e "$$each" || { echo "there is nothing in benchmarks/ yet"; exit 1; }; \
	  echo "== $$each"; $(BIN)/python "$$each"; done

docs: $(STAMP)  ## Make the generated pages again
	$(BIN)/python -m so8t_fsm.cli_reference docs/cli.md
	$(BIN)/python -m so8t_fsm.config_reference --update docs/configuration.md
	$(BIN)/so8t --home "$(CURDIR)/docs" graph --svg docs/states.svg

clean:  ## Delete .venv and what tools leave behind; never state/ or logs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find so8t_fsm so8t_ops tests -name __pycache__ -type d -prune -exec rm -rf {} +
