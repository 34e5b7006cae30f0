"""A Prefect server of the tests' own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from .command import free_port, wait


@contextmanager
def prefect_server(home: Path, **more: str) -> Iterator[str]:
    """Yields the URL of its API. Its scheduler runs every second, and it lists 50 records at a time instead of 200; ``more`` are further variables."""
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_SERVER_API_DEFAULT_LIMIT": "50",
        **more,
    }
    command = [sys.executable, "-m", "deployments.server", "--host", "127.0.0.1", "--port", str(port)]
    log = home / "server.log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True) as process:
        url = f"http://127.0.0.1:{port}/api"
        try:
            wait(lambda: _answers(f"{url}/health"), 300, log)
            yield url
            with ThreadPoolExecutor(1) as beside:  # not in this thread: if Playwright's event loop runs in it, `drain_all` returns a coroutine
                for worker in (APILogWorker, EventsWorker):
                    # What this process still has to send, which it would try for a minute after the server's end.
                    beside.submit(worker.drain_all, timeout=60).result()
        finally:
            process.terminate()
            process.wait(300)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False
