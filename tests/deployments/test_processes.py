"""Processes of a stack: each of these is a real one, small."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployments import processes
from deployments.config import StackConfig
from deployments.processes import Service
from gsec_core.errors import GsecError, Refused

from ..command import wait

WAITS = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
"""Says that it is ready and does nothing."""

HAS_A_CHILD = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {WAITS!r}, sys.argv[1]]); time.sleep(600)"
"""Does not end its child when it is ended."""

ENDS = "import sys; sys.exit('the port is taken')"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[StackConfig]:
    found = StackConfig(home=tmp_path / "home")
    yield found
    for name in processes.started(found):
        processes.stop(found, name)


def service(stack: StackConfig, program: str, **environment: str) -> Service:
    ready = stack.home / f"ready-{len(environment)}"
    return Service("waits", (sys.executable, "-c", program, str(ready)), environment, ready.exists)


def process(stack: StackConfig) -> psutil.Process:
    return psutil.Process(json.loads((stack.home / "processes.json").read_text())["waits"]["pid"])


def test_what_runs_as_it_should_stays_and_what_should_be_told_other_things_begins_anew(stack: StackConfig) -> None:
    assert processes.start(stack, service(stack, WAITS))
    first = process(stack)
    assert not processes.start(stack, service(stack, WAITS))
    assert process(stack) == first
    assert processes.started(stack) == ["waits"]
    assert processes.start(stack, service(stack, WAITS, GSEC_ROOTS="/other"))
    assert not first.is_running()
    assert process(stack).environ()["GSEC_ROOTS"] == "/other"
    assert processes.stop(stack, "waits")
    assert not processes.stop(stack, "waits")
    assert processes.started(stack) == []


def test_another_secret_is_another_thing_to_be_told_and_stands_nowhere(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.start(stack, service(stack, WAITS))
    monkeypatch.setenv("GSEC_REPORTS_TOKEN", "a-secret-of-many-letters")
    assert processes.start(stack, service(stack, WAITS))
    assert process(stack).environ()["GSEC_REPORTS_TOKEN"] == "a-secret-of-many-letters"
    written = [path.read_text() for path in stack.home.rglob("*") if path.is_file()]
    assert not any("a-secret" in text for text in written)


def test_one_that_ends_is_an_error_with_the_end_of_its_log(stack: StackConfig) -> None:
    with pytest.raises(GsecError, match=r"waits ended\. Its log, .*waits\.log, ends: the port is taken"):
        processes.start(stack, service(stack, ENDS))
    assert processes.started(stack) == []


def test_what_it_has_started_ends_with_it(stack: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 1)
    processes.start(stack, service(stack, HAS_A_CHILD))
    (child,) = process(stack).children()
    processes.stop(stack, "waits")
    wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30)


def test_another_process_with_the_number_of_one_that_is_gone_is_let_alone(stack: StackConfig) -> None:
    processes.start(stack, service(stack, WAITS))
    ours = process(stack)
    record = json.loads((stack.home / "processes.json").read_text())
    record["waits"]["began"] -= 60
    (stack.home / "processes.json").write_text(json.dumps(record))
    assert processes.started(stack) == []
    assert not processes.stop(stack, "waits")
    assert ours.is_running()
    ours.kill()


def test_one_that_was_killed_is_started_again(stack: StackConfig) -> None:
    processes.start(stack, service(stack, WAITS))
    killed = process(stack)
    killed.kill()
    psutil.wait_procs([killed])
    assert processes.start(stack, service(stack, WAITS))
    assert process(stack) != killed


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_port_is_free_or_taken_at_addresses_of_both_kinds(host: str, family: socket.AddressFamily, tmp_path: Path) -> None:
    with socket.create_server((host, 0), family=family) as taken, socket.create_server((host, 0), family=family) as free:
        ports = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        with pytest.raises(Refused, match=f"port = {ports[0]}: nothing can listen there .*in use"):
            processes.check_ports(StackConfig(home=tmp_path, host=host, port=ports[0], reports_port=ports[1]))
    processes.check_ports(StackConfig(home=tmp_path, host=host, port=ports[0], reports_port=ports[1]))
