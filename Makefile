# Two commands do all the set-up: `make quickstart` (the whole pipeline on an embedded model) and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test lint types layers docs reference slow cost clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "cai-core needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(VENV)/.installed ## install, fetch the model, run the whole pipeline, print where the report is
	$(BIN)/cai run quickstart

test: lint types layers $(VENV)/.installed-dev ## lint, types, layers, docs checks and the default test tier
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev ## mypy --strict on cai_core
	$(BIN)/mypy cai_core

layers: $(VENV)/.installed-dev ## who may import whom
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev ## only the checks of README and docs
	$(BIN)/python -m pytest tests/docs

reference: $(VENV)/.installed-dev ## write docs/reference/hooks.md and components.md from the code
	$(BIN)/python docs/generate.py

slow: $(VENV)/.installed-dev ## tests that need the embedded model or minutes
	$(BIN)/python -m pytest -m slow

cost: $(VENV)/.installed ## time and peak memory of the quickstart per stage, from an empty store
	$(BIN)/python tests/benchmarks/quickstart_cost.py

clean: ## remove caches and build results (not the store, not the runs)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
