# One command does everything on a fresh machine: `make demo` trains and shows, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OUT ?= out/demo

.PHONY: install demo test slow check lint types layers clean
install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shortflow needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch uv
	$(BIN)/uv pip install -q --compile-bytecode -p $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## train ESC on handwritten digits, then show one-step samples and their figures
	$(BIN)/shortflow demo --out $(OUT)

# Checking the types of every call takes as long as the tests: the files that call everything do, and run only so.
TYPED := tests/test_package.py tests/test_every_recipe.py tests/test_objective.py tests/test_nn_sit.py

test: $(READY)  ## the test suite
	$(BIN)/python -m pytest -n auto $(addprefix --ignore=,$(TYPED))
	$(BIN)/python -m pytest -n auto --types $(TYPED)

slow: $(READY)  ## the long checks: training to convergence, every recipe
	$(BIN)/python -m pytest -m slow --timeout=3600

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell src tests docs README.md

types: $(READY)
	$(BIN)/pyright

layers: $(READY)
	$(BIN)/lint-imports

check: lint types layers

clean:
	rm -rf .venv out
