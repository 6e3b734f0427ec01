# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both make .venv and install pinned dependencies first; nothing else is needed but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types check soak sim failover audit fuzz chaos clean help

help:           ## Show this list
	@grep -E '^[a-z]+: .*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | sort

demo: .venv/runtime  ## A mesh of three processes on this box answers prompts; every token is compared with one node's
	@$(BIN)/meshmoe demo

test: .venv/dev  ## The whole default test suite, on all cores (four at most: each worker takes a gigabyte)
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

lint: .venv/dev  ## Style, import directions
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: .venv/dev  ## Strict types
	@$(BIN)/mypy

check: lint types test  ## What CI runs

soak: .venv/dev  ## Ten minutes of transport under cancels and restarts (MINUTES=10 SEED=1)
	@$(BIN)/python -m tests.transport.soak --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

sim: .venv/dev  ## Simulated meshes with faults, thousands of seeds (COUNT=10000 SEED=0 JOBS=1)
	@$(BIN)/meshmoe sim --seed $(or $(SEED),0) --count $(or $(COUNT),10000) --jobs $(or $(JOBS),1)

failover: .venv/dev  ## Kill, also while drafts are checked, stop, leave, join, last holder: ten streams each on real processes, tokens and pauses
	@$(BIN)/python -m tests.mesh.failover

audit: .venv/dev  ## Known weaknesses of the pinned dependencies (asks pypi.org)
	@$(BIN)/pip install -q -c constraints.txt pip-audit && $(BIN)/python -m pip_audit -r constraints.txt --no-deps --disable-pip

fuzz: .venv/dev  ## Fuzz one target with atheris (TARGET=wire SECONDS=60)
	@$(BIN)/pip install -q -c constraints.txt atheris && $(BIN)/python -m tests.fuzz $(or $(TARGET),wire) --seconds $(or $(SECONDS),60)

chaos: .venv/runtime  ## Ten minutes of faults on five real processes, every promise checked (DURATION=600s SEED=1)
	@$(BIN)/meshmoe chaos --duration $(or $(DURATION),600s) --seed $(or $(SEED),1)

clean:          ## Remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/runtime: pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) sh .ci/install runtime

.venv/dev: pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) sh .ci/install dev
