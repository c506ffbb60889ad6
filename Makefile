# Everything a contributor runs. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := deploy/requirements
STAMP := $(VENV)/.holdfast-setup
BENCH_STAMP := $(VENV)/.holdfast-bench
AUDIT := $(VENV)/audit
PYTEST := $(BIN)/python -m pytest
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Tests of `make test` that run at once: most of them run a cluster, and more than one for each core starve each other.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# Every worker of a test or of the demo is a process of its own: with bytecode it starts in half the time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage unit lint format types layers bench soak audit asyncapi lock clean

help: ## what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-8s %s\n", $$1, $$2}'

setup: $(STAMP) ## the environment in .venv, with everything in it

# Touched last, so that an interrupted setup starts again.
$(STAMP): pyproject.toml $(REQUIREMENTS)/dev.txt $(REQUIREMENTS)/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(REQUIREMENTS)/uv.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes $(REQUIREMENTS)/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## a running cluster, traffic, a live move, a kill, and a checked account
	$(BIN)/holdfast demo

test: setup ## all tests on a real Kafka
	$(PYTEST) -n $(JOBS) --dist worksteal -m "not soak and not benchmark" $(PYTEST_ARGS)

# Not in `make test`: counting branches doubles the time of what is pure.
coverage: setup ## the same, with the lines and branches that they do not reach
	$(MAKE) --no-print-directory test PYTEST_ARGS="--cov --cov-report=term:skip-covered $(PYTEST_ARGS)"

unit: setup ## the tests that need no Kafka
	$(PYTEST) -m "not broker and not soak and not benchmark" $(PYTEST_ARGS)

lint: setup ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## types, strict
	$(BIN)/mypy

layers: setup ## who may import whom
	$(BIN)/lint-imports

# What only measurements need is installed by the first of them; `make setup` takes it away again.
$(BENCH_STAMP): $(STAMP) $(REQUIREMENTS)/bench.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r $(REQUIREMENTS)/bench.txt
	touch $@

bench: setup $(BENCH_STAMP) ## measurements
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

soak: setup ## long runs with faults
	$(PYTEST) -m soak -s --timeout=0 $(PYTEST_ARGS)

# In an environment of its own: what it is made of is nothing that Holdfast has to agree with.
$(AUDIT)/.done: $(STAMP) $(REQUIREMENTS)/audit.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(AUDIT)
	$(BIN)/uv pip sync --quiet --python $(AUDIT)/bin/python --require-hashes $(REQUIREMENTS)/audit.txt
	touch $@

audit: setup $(AUDIT)/.done ## known vulnerabilities in the dependencies; passes when their service is out of reach
	.ci/audit $(AUDIT)/bin/pip-audit $(REQUIREMENTS)/runtime.txt

asyncapi: setup ## write docs/asyncapi.yaml from the models
	$(BIN)/python -m app.asyncapi docs/asyncapi.yaml

# Without the address of an index, so that the files serve behind every mirror.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url --no-emit-find-links

lock: ## resolve the dependencies anew, with hashes
	$(LOCK) pyproject.toml --upgrade -o $(REQUIREMENTS)/runtime.txt
	$(LOCK) pyproject.toml --group dev --constraint $(REQUIREMENTS)/runtime.txt --upgrade -o $(REQUIREMENTS)/dev.txt
	$(LOCK) pyproject.toml --group bench --constraint $(REQUIREMENTS)/dev.txt --upgrade -o $(REQUIREMENTS)/bench.txt
	grep -E '^uv==' $(REQUIREMENTS)/dev.txt | sed 's/ .*//' | $(LOCK) - -o $(REQUIREMENTS)/uv.txt
	grep -E '^hatchling==' $(REQUIREMENTS)/dev.txt | sed 's/ .*//' | $(LOCK) - -o $(REQUIREMENTS)/build.txt
	echo pip-audit | $(LOCK) --upgrade - -o $(REQUIREMENTS)/audit.txt

clean: ## everything that can be made again, but not .venv and not .holdfast
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov
	find app agents tables tests -name __pycache__ -type d -prune -exec rm -rf {} +
