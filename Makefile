# make demo | make test | make test-services | make lint      (Python 3.11 or 3.12; another one: make PYTHON=python3.12 ...)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-services lint install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements/base.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint requirements/base.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.txt
	$(PIP) --requirement requirements/dev.txt
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m research task=zlt_sweep -m lr=1e-6,5e-6 epochs=1,20 results_root=demo/$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

test-services: $(VENV)/.installed-dev
	PIP="$(PIP)" tests/services/install.sh
	$(BIN)/python -m pytest -m services

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
