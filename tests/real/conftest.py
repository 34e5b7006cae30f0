"""Fixtures with one browser and one vLLM server for all tests, and a Prefect server for each file that needs one."""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from ..orchestrator import prefect_server
from .browser import chromium
from .vllm_server import PYTHON, VllmServer


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its automations look every second whether an event is missing."""
    with prefect_server(tmp_path_factory.mktemp("prefect-server"), PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY="PT1S") as url:
        yield url


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The running server. A test that stops or kills it must start it again for later tests."""
    if not PYTHON.with_name("vllm").exists():
        # Under `make test-real` everything has to be installed. Without it, these tests are skipped and the others run.
        missing = f"no vLLM in {PYTHON.parents[1]}: run `make real-parts`"
        pytest.fail(missing) if os.environ.get("GSEC_REAL") else pytest.skip(missing)
    server = VllmServer(tmp_path_factory.mktemp("vllm"))
    server.start()
    yield server
    server.stop()
    assert not server.processes()
