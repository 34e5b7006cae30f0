PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-real real-parts lint clean

# The main job on the embedded default: on photographs that ship with libraries, or on SOURCE=folder (CLUSTERS=number).
demo: .venv/demo
	$(BIN)/gsec demo $(SOURCE) $(if $(CLUSTERS),--clusters $(CLUSTERS))

test: .venv/dev lint
	$(BIN)/pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests against servers and browsers that the Python environment does not bring. None yet.
test-real: real-parts
	@echo "test-real: no real parts are tested yet"

# Installs what test-real needs. Nothing yet.
real-parts:

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[demo]'
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	touch $@ .venv/demo

clean:
	rm -rf .venv gsec-demo
