"""What another package brings by entry points runs through the whole pipeline, and a package that is broken stops nobody else."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ..command import GSEC, environment
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


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as `pip install --target` leaves it."""
    site = tmp_path / "site"
    shutil.copytree(TOYS, site)
    info = site / "gsec_toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gsec-toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


def gsec(site: Path, home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    env = {**environment(home), "PYTHONPATH": os.pathsep.join([str(site)])}
    return subprocess.run([*GSEC, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=180, check=False)


def test_a_method_an_encoder_and_a_captioner_of_another_package(installed: Path, tmp_path: Path) -> None:
    images, store = write_pictures(tmp_path / "in", range(24)), tmp_path / "store"
    toys = ["--method", "toy", "--encoder", "colours", "--captioner", "sizes", "--set", "toy.sharpness=30"]
    done = gsec(installed, tmp_path, "run", images, "-k", "3", *toys, "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["images"], said["clusters"]) == (24, 3)
    run = said["run_id"]
    request = json.loads((store / "runs" / run / "request.json").read_text())
    assert request["config"]["toy"] == {"sharpness": 30}
    assert "fuse" not in request["stages"], "its text source is none"
    assigned = gsec(installed, tmp_path, "assign", write_pictures(tmp_path / "new", range(30, 36)), "--run", run, "--store", store)
    assert assigned.returncode == 0, assigned.stderr
    (nothing := tmp_path / "nothing").mkdir()
    status = gsec(nothing, tmp_path, "status", "--store", store)
    assert "3 clusters by toy, encoder colours" in status.stdout, "without the package it can still be looked at"
    other = gsec(installed, tmp_path, "run", images, "-k", "4", "--method", "toy", "--captioner", "sizes", "--store", store, "--pipeline", "lite", "--json")
    ids = run, json.loads(other.stdout.splitlines()[-1])["run_id"]
    for first, second in (ids, ids[::-1]):
        compared = gsec(nothing, tmp_path, "compare", first, second, "--store", store, "--to", tmp_path / "page", "--json")
        rows = json.loads(compared.stdout.splitlines()[-1])["runs"]
        assert {(row["method"], row["text"], row["encoder"], row["clusters"]) for row in rows} == {("toy", "none", "colours", 3), ("toy", "none", "lite", 4)}
    refused = gsec(nothing, tmp_path, "stage", "train", "--run", run, "--redo", "--store", store)
    assert refused.returncode == 2
    assert "there is no such" in refused.stderr


def test_what_is_brought_is_listed_and_what_is_broken_says_so_when_it_is_named(installed: Path, tmp_path: Path) -> None:
    listed = gsec(installed, tmp_path, "methods", "--json")
    names = [row["method"] for row in json.loads(listed.stdout)["methods"]]
    assert names[0] == "gsec"
    assert "toy" in names
    assert "broken" not in names
    named = gsec(installed, tmp_path, "run", write_pictures(tmp_path / "in", range(3)), "--method", "broken", "--store", tmp_path / "store")
    assert named.returncode == 2
    assert "package gsec-toys brings it and cannot be loaded" in named.stderr
    refused = gsec(installed, tmp_path, "run", tmp_path / "in", "--method", "toy", "--text", "nouns", "--store", tmp_path / "store")
    assert refused.returncode == 2
    assert "method toy cannot use it" in refused.stderr
