# Each target makes its own environment; PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest
# JAX versions that the tests of the engines and of the ops also run on: jax==version:python.
MATRIX ?= 0.5.0:3.11 0.11.2:3.12 0.12.*:3.12

.PHONY: demo test test-slow check check-static test-matrix benchmark clean

demo: $(VENV)/.demo
	$(BIN)/m2ml demo

test: $(VENV)/.test
	$(PYTEST) -n 2 -m "not slow"

test-slow: $(VENV)/.test
	$(PYTEST) -m slow

check: check-static test

check-static: $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(VENV)/.demo
	for program in benchmarks/bench_*.py; do $(BIN)/python $$program || exit 1; done

test-matrix:
	for pair in $(MATRIX); do .ci/matrix $$pair || exit 1; done

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]" -c tests/constraints.txt
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable ".[test,check]" -c tests/constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-*
