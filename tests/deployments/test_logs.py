"""The logs of a stack stay bounded while processes write to them."""

import subprocess
import sys
from pathlib import Path

import pytest

from deployments import logs, processes
from deployments.config import StackConfig

from ..command import wait

WRITES = "import subprocess, sys; print('begun', flush=True); sys.stdin.readline(); subprocess.run(['echo', 'child']); print('end')"
"""A program that writes a line, and after a line of input two more, one of them by a child."""


def test_a_large_log_is_moved_and_processes_go_on_writing_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST", 20)
    log = tmp_path / "worker.log"
    log.write_text("before\n" * 10)
    with log.open("ab") as output, subprocess.Popen([sys.executable, "-c", WRITES], stdin=subprocess.PIPE, stdout=output) as process:
        wait(lambda: "begun" in log.read_text(), 300)
        logs.bound(tmp_path)
        process.communicate(b"go on\n")
    assert (tmp_path / "worker.log.1").read_text() == "before\n" * 10 + "begun\n"
    assert log.read_text() == "child\nend\n"
    logs.bound(tmp_path)
    assert log.read_text() == "child\nend\n", "a small log must stay"


def test_without_room_for_the_copy_a_large_log_is_emptied_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST", 2)
    (tmp_path / "server.log").write_text("long")
    (tmp_path / "server.log.1").mkdir()
    logs.bound(tmp_path)
    assert (tmp_path / "server.log").read_text() == ""


def test_the_server_of_a_stack_is_told_the_folder_of_its_logs(tmp_path: Path) -> None:
    stack = StackConfig(home=tmp_path)
    server = processes.services(stack, {})[0]
    assert server.environment[logs.VARIABLE] == str(processes.log_of(stack, "server").parent)
