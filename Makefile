# make run   sets up .venv and runs the demo          make lint  ruff and mypy --strict
# make test  sets up .venv and runs the tests         make wheel builds an sdist and a wheel into dist/
# make bench measures, and writes docs/benchmarks.md   make clean removes what these made

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= auto

# What the installed package is made of; the rest of it is used where it lies.
BUILT  := pyproject.toml setup.py $(wildcard memifrt/ring/*.pyx)

.PHONY: run test lint wheel bench clean
.DELETE_ON_ERROR:

run: $(VENV)/.run
	$(BIN)/memifrt demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.dev
	$(BIN)/python -m build

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --write $(ARGS)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "memifrt needs Python 3.10 or newer; this is " + sys.version.split()[0] + ": run make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python's venv module is missing: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }

$(VENV)/.run: $(BUILT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: $(BUILT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.run

$(VENV)/.bench: $(BUILT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build dist *.egg-info memifrt/ring/_native.c memifrt/ring/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
