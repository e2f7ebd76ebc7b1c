# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
CONF ?= conf/local.toml
RUN_DATE ?= $(shell date +%F)
FORCE ?=

BIN := .venv/bin
CLI := $(BIN)/recsys-batch
.DEFAULT_GOAL := help
.PHONY: help setup data test lint format demo clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: .venv/.ready ## .venv with everything, a Java, the Delta jars

.venv/.ready: setup.cfg pyproject.toml tools/fetch_java.py tools/fetch_jars.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python tools/fetch_java.py
	$(BIN)/python tools/fetch_jars.py
	@touch $@

data: .venv/.ready ## MovieLens-100K into data/ml-100k (research use only)
	@$(BIN)/python tools/fetch_movielens.py

test: .venv/.ready ## the whole test-suite
	$(BIN)/python -m pytest

lint: .venv/.ready ## ruff, mypy, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: .venv/.ready data ## a whole night on MovieLens-100K: RUN_DATE=YYYY-MM-DD, FORCE=1 to compute a published date again
	$(CLI) ingest --conf $(CONF) --source data/ml-100k --format movielens --holdout 0.2
	$(CLI) train --conf $(CONF)
	$(CLI) nightly --conf $(CONF) --run-date $(RUN_DATE) $(if $(FORCE),--force)
	$(CLI) evaluate --conf $(CONF) --holdout --k 10,20
	$(CLI) show --conf $(CONF) --users 3

clean: ## remove what demo and tests wrote; keep .venv and downloads
	rm -rf data/warehouse data/state .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache spark-warehouse metastore_db derby.log

distclean: clean ## back to a fresh clone
	rm -rf .venv .jars .java data *.egg-info build
