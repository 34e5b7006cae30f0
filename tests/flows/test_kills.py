"""Kills and interrupts of the real command. `python -m tests.kills` does many kills, at random moments."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ..command import GSEC, SMALL, asking, environment, gsec_here, last_json
from ..kills import assert_equal_tables, attempt, labels, tables
from ..pictures import write_pictures

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "grey", "orange")


def test_a_run_killed_in_train_and_align_ends_with_the_labels_of_an_undisturbed_run(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server)
    source = write_pictures(tmp_path / "in", range(40))
    (tmp_path / "words.txt").write_text("\n".join(f"{size} {colour} disc" for size in ("small", "large") for colour in COLOURS))
    tac = ["method=tac", "tac.max_steps=40", "train.n_members=4", f"text.vocabulary=file:{tmp_path / 'words.txt'}"]
    given = [part for setting in tac for part in ("--set", setting)]

    def command(store: str) -> list[str]:
        return ["run", str(source), "--store", str(tmp_path / store), "--json", "-k", "5", *SMALL, *given]

    with asking(server):
        undisturbed = last_json(gsec_here(*command("undisturbed")))
    for stage, group in (("train", False), ("align", True)):
        assert attempt(command("killed"), tmp_path / "home", 0.3, group, kill_at=stage).killed, f"stage {stage} was over before the kill"
    with asking(server):
        ended = last_json(gsec_here(*command("killed")))
    assert labels(ended) == labels(undisturbed)
    assert_equal_tables(tmp_path / "killed", tables(tmp_path / "undisturbed"))


BEGUN, ENCODING = rb"\b0 of 400 images", rb"\b[1-9]\d* of 400 images"
"""What a run shows when it begins to encode, and when it has encoded some images."""


@contextmanager
def working(folder: Path, shown: bytes = ENCODING, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run whose output has matched ``shown``, on a terminal that passes on what is typed, with a temporary Prefect server unless ``more`` names another.

    The command begins with ``exec``, because some shells would stay as a process of their own.
    """
    source = write_pictures(folder / "in", range(400))
    command = "exec " + shlex.join([*GSEC, "run", str(source), "-k", "3", "--store", str(folder / "store"), *SMALL, "--set", "max_slices=1"])
    words = ["script", "-qefc", command, "/dev/null"]
    env = {**environment(folder / "home"), **more}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) as process:
        assert process.stdout is not None
        said = b""
        while not re.search(shown, said):
            said += (read := process.stdout.read1())
            assert read, said.decode()
        yield process
        process.kill()


def test_ctrl_c_ends_a_run_and_its_prefect_server_at_once(tmp_path: Path) -> None:
    with working(tmp_path) as terminal:
        [_, server] = psutil.Process(terminal.pid).children(recursive=True)
        assert "create_app" in " ".join(server.cmdline())
        said, _ = terminal.communicate(b"\x03", timeout=120)
        assert terminal.returncode == 130
        assert b"interrupted. What was committed stays; a rerun continues." in said
        assert b"Traceback" not in said
        assert b"400 of 400 images" not in said, "the run must not finish its slice first"
        server.wait(120)


def test_sigterm_ends_a_run_at_once(tmp_path: Path, server: str) -> None:
    with working(tmp_path, PREFECT_API_URL=server) as terminal:
        [run] = psutil.Process(terminal.pid).children(recursive=True)
        run.terminate()
        said, _ = terminal.communicate(timeout=120)
        assert b"400 of 400 images" not in said, "the run must not finish its slice first"


def test_the_prefect_server_of_a_killed_run_ends(tmp_path: Path) -> None:
    with working(tmp_path, BEGUN) as terminal:
        [run, server] = psutil.Process(terminal.pid).children(recursive=True)
        run.kill()
        server.wait(120)
