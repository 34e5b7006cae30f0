PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-real real-parts lint reference clean

# The main job on the embedded default: on photographs that ship with libraries, or on SOURCE=folder (CLUSTERS=number).
demo: .venv/demo
	$(BIN)/gsec demo $(SOURCE) $(if $(CLUSTERS),--clusters $(CLUSTERS))

test: .venv/dev lint
	$(BIN)/pytest --ignore tests/real

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests against programs that the Python environment does not bring. A missing one is a failure there.
test-real: .venv/dev real-parts
	$(BIN)/pytest tests/real

# Installs them; as root, or by sudo.
real-parts:
	@command -v chromium >/dev/null || { \
		run=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$run apt-get update -q && $$run apt-get install -y -q --no-install-recommends chromium; }

# The reference pages, from the code.
reference: .venv/dev
	$(BIN)/python -c 'from flows.reference import main; main()'

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
