# Each target sets up what it needs in .venv; nothing is installed outside the project's folder.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs

.PHONY: demo test lint install clean

demo: .venv/installed
	$(BIN)/python tools/demo.py --runs $(RUN)

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -q

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: .venv/installed

clean:
	rm -rf .venv build *.egg-info

.venv/installed: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@
