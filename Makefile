# Two commands: `make run` starts streammon with a demo, `make test` proves it against real servers.
# Needs Python >= 3.11 and nothing else; uses uv where it is installed.

PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help run test coverage check lint types layers bench soak lock clean

help: ## Show this list.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: .venv/.run ## Start everything in one process, with a demo service to watch, on http://127.0.0.1:8080.
	@exec $(BIN)/streammon up --demo $(ARGS)

test: .venv/.dev ## Run all tests, three at a time (they wait more than they work), against a real Kafka and a real Elasticsearch (downloaded once).
	@$(BIN)/python -m tests.fetch_servers
	$(BIN)/python -m pytest -n 3 --dist worksteal --durations=12 $(ARGS)

coverage: ## The same, and which lines and branches no test has seen; it takes twice the CPU time.
	@$(MAKE) test ARGS="--cov --cov-report=term:skip-covered $(ARGS)"

check: lint types layers ## Run everything that needs no test: lint, types, layers.

lint: .venv/.dev ## Style and common mistakes.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev ## Static types, strict.
	$(BIN)/mypy

layers: .venv/.dev ## Which room may import which.
	$(BIN)/lint-imports

bench: .venv/.dev ## Speed, as ratios measured side by side.
	$(BIN)/python -m bench

soak: .venv/.dev ## An hour of faults on a real Kafka, then a table; ARGS="--minutes 5 --seed 1" for another one.
	@$(BIN)/python -m tests.faults.soak $(ARGS)

lock: ## Choose the newest versions that fit pyproject.toml and pin them (needs uv).
	uv pip compile -q --universal --generate-hashes --no-annotate --no-header --no-strip-extras --python-version 3.11 \
		pyproject.toml build.in --extra all -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-annotate --no-header --no-strip-extras --python-version 3.11 \
		pyproject.toml build.in --extra dev -c requirements.lock -o requirements-dev.lock

clean: ## Remove the environment and all caches of the project.
	rm -rf .venv .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

ifdef UV
create = uv venv -q --allow-existing --python '>=3.11' .venv
install = VIRTUAL_ENV=.venv uv pip install -q --compile-bytecode
else
create = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streammon needs Python >= 3.11, \
	this is " + sys.version.split()[0] + "; say which to use with make PYTHON=python3.12")' && $(PYTHON) -m venv .venv
install = $(BIN)/python -m pip install -q --disable-pip-version-check
endif

.venv/.run: requirements.lock pyproject.toml
	@echo "installing streammon into .venv"
	@$(create)
	@$(install) --require-hashes -r requirements.lock
	@$(install) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements-dev.lock pyproject.toml
	@echo "installing streammon and its tools into .venv"
	@$(create)
	@$(install) --require-hashes -r requirements-dev.lock
	@$(install) --no-deps --no-build-isolation -e .
	@touch .venv/.run $@
