"""Runs the `gsec` command as a user does and reads its output."""

import io
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.cli import main

GSEC = [str(Path(sys.executable).parent / "gsec")]

SMALL = [
    part
    for setting in (
        "encode.batch_size=8",
        "ingest.shard_rows=8",
        "baseline.n_init=2",
        "gsec.ensemble_size=4",
        "gsec.max_steps=20",
        "train.n_members=10",
        "threads=1",
    )
    for part in ("--set", setting)
]
"""Settings that make many small shards."""


def environment(prefect_home: Path) -> dict[str, str]:
    """Variables for a command. It gives a Prefect server of its own longer than usual, since a new one makes its database beside other tests."""
    return {**os.environ, "PREFECT_HOME": str(prefect_home), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600", "HF_HUB_OFFLINE": "1"}


def gsec(*arguments: str | Path, home: Path, check: int = 0, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process of its own; its exit code must be ``check``."""
    return _checked(subprocess.run([*GSEC, *map(str, arguments)], capture_output=True, text=True, env=environment(home), timeout=timeout, check=False), check)


def gsec_here(*arguments: str | Path, check: int = 0) -> subprocess.CompletedProcess[str]:
    """The same as `gsec`, but in this process: its modules are loaded already, which takes a new process seconds."""
    words = list(map(str, arguments))
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as exit:
        main(words)
    return _checked(subprocess.CompletedProcess(words, int(exit.value.code or 0), out.getvalue(), err.getvalue()), check)


def asking(server: str | None) -> AbstractContextManager[object]:
    """Flows of this process use that Prefect server, or a temporary one. They send no heartbeats: each flow would wait a second at its end for that thread."""
    return temporary_settings({PREFECT_API_URL: server, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


def _checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == code, f"exit {done.returncode} instead of {code}\n{done.stdout}\n{done.stderr}"
    return done


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def free_port() -> int:
    """A port for a server that starts later. The system gives it to no program that asks for any port, as it may do with one that it gave before."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", port := secrets.choice(range(20_000, 32_768)))):
            return port


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended, even if nobody has asked yet how."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def wait(condition: Callable[[], bool], seconds: float, log: Path | None = None, pause: float = 0.5) -> None:
    """Wait until ``condition`` holds; after ``seconds`` raise an AssertionError that shows the log."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else f"not within {seconds:.0f} s"
        time.sleep(pause)
