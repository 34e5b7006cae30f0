"""Methods, encoders and captioners of another package, found by entry points, work in the whole pipeline; broken ones disturb no others."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..command import environment, gsec_here, last_json
from ..pictures import write_pictures

TOYS = Path(__file__).parents[1] / "plugins"

ENTRY_POINTS = """[gsec.methods]
toy = gsec_toys:METHOD
broken = gsec_toys_that_are_not_there:METHOD
[gsec.encoders]
colours = gsec_toys:Colours
[gsec.captioners]
sizes = gsec_toys:CAPTIONER
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy package, as `pip install --target` leaves it."""
    site = tmp_path_factory.mktemp("toys") / "site"
    shutil.copytree(TOYS, site)
    info = site / "gsec_toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gsec-toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


COMMANDS = """
import json, sys
from tests.command import asking, gsec_here

with asking(sys.argv[1]):
    for line in sys.stdin:
        words, code = json.loads(line)
        done = gsec_here(*words, check=code)
        print(json.dumps([done.stdout, done.stderr]), flush=True)
"""


@pytest.fixture(scope="module")
def gsec(installed: Path, server: str) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A function that runs commands one after the other in a process which also finds the toy package."""
    here = Path(__file__).parents[2]
    env = {**environment(installed.parent), "PYTHONPATH": os.pathsep.join([str(installed), str(here)])}
    with subprocess.Popen([sys.executable, "-c", COMMANDS, server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=here) as process:

        def run(*arguments: str | Path, check: int = 0) -> subprocess.CompletedProcess[str]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([[*map(str, arguments)], check]) + "\n")
            process.stdin.flush()
            return subprocess.CompletedProcess(arguments, check, *json.loads(process.stdout.readline()))

        yield run


def test_a_run_with_a_method_an_encoder_and_a_captioner_of_another_package(gsec: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    images, store = write_pictures(tmp_path / "in", range(24)), tmp_path / "store"
    toys = ["--method", "toy", "--captioner", "sizes", "--store", store, "--json"]
    said = last_json(gsec("run", images, "-k", "3", *toys, "--encoder", "colours", "--set", "toy.sharpness=30"))
    assert (said["images"], said["clusters"]) == (24, 3)
    run = said["run_id"]
    request = json.loads((store / "runs" / run / "request.json").read_text())
    assert request["config"]["toy"] == {"sharpness": 30}
    assert "fuse" not in request["stages"], "the toy method uses no text, so there must be no stage fuse"
    gsec("assign", write_pictures(tmp_path / "new", range(30, 36)), "--run", run, "--store", store)
    other = last_json(gsec("run", images, "-k", "4", *toys, "--pipeline", "lite"))["run_id"]

    # This process does not find the package.
    assert "3 clusters by toy, encoder colours" in gsec_here("status", "--store", store).stdout, "without the package, status must still show the run"
    for ids in ((run, other), (other, run)):
        rows = last_json(gsec_here("compare", *ids, "--store", store, "--to", tmp_path / "page", "--json"))["runs"]
        assert {(row["method"], row["text"], row["encoder"], row["clusters"]) for row in rows} == {
            ("toy", "none", "colours", 3),
            ("toy", "none", "lite", 4),
        }
    assert "there is no such" in gsec_here("stage", "train", "--run", run, "--redo", "--store", store, check=2).stderr


def test_plugins_are_listed_and_a_broken_one_is_refused_by_name(gsec: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    names = [row["method"] for row in last_json(gsec("methods", "--json"))["methods"]]
    assert names[0] == "gsec"
    assert "toy" in names
    assert "broken" not in names
    source = ["run", write_pictures(tmp_path / "in", range(3)), "--store", tmp_path / "store"]
    assert "package gsec-toys has it and cannot be loaded" in gsec(*source, "--method", "broken", check=2).stderr
    assert "method toy cannot use it" in gsec(*source, "--method", "toy", "--text", "nouns", check=2).stderr
