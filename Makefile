# Two commands do all the set-up: `make check` and `make test`. The options are explained in CONTRIBUTING.md.
PYTHON      ?= python3
VENV        ?= .venv
VENV_FLAGS  ?=
CONSTRAINTS ?= constraints.txt
ARGS        ?=
# Above 8 workers, starting them (each imports torch) costs more than they save.
JOBS        ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n : 8)))

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
GPU    = $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
# The workers fill the cores, so each computes on one thread.
SPREAD = OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install check gate test lint types wheel clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo 'options: ARGS="-k accuracy"  JOBS=2  PYTHON=python3.12  VENV=.venv  VENV_FLAGS=--system-site-packages  CONSTRAINTS='

install: $(STAMP) ## the virtual environment with stabcheck (editable) and its tools; every target below does it first

check: $(STAMP) ## the main job: every built-in kernel against every property, on the GPU if there is one
	@if $(GPU); then $(BIN)/stabcheck run $(ARGS); else $(SPREAD) $(BIN)/stabcheck run -n $(JOBS) $(ARGS); fi

gate: $(STAMP) ## the same on examples that do not change, with self-test, corpus, ledger, baselines and reports: what CI runs
	@if $(GPU); then $(BIN)/stabcheck gate $(ARGS); else $(SPREAD) $(BIN)/stabcheck gate -n $(JOBS) $(ARGS); fi

test: $(STAMP) ## the toolkit's own tests
	$(SPREAD) $(BIN)/python -m pytest tests -n $(JOBS) $(ARGS)

lint: $(STAMP) ## ruff, with the import rules
	$(BIN)/ruff check $(ARGS) .

types: $(STAMP) ## mypy, strict, on stabcheck/
	$(BIN)/python -m mypy $(ARGS)

wheel: $(STAMP) ## dist/: an sdist, and the wheel built from it, so that no stale build/ can leak in
	rm -rf dist
	$(BIN)/python -m build --quiet --no-isolation $(ARGS)

clean: ## remove the virtual environment, builds and caches; committed evidence stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis reports/latest
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# setuptools comes first: the one a new environment has may be too old for pyproject.toml, and without build isolation it is the one used.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "stabcheck needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1); name another one, e.g. make check PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV_FLAGS) $(VENV); }
	@echo "installing stabcheck, torch and the tools into $(VENV) (about a minute)"
	@$(PIP) 'setuptools>=77'
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
