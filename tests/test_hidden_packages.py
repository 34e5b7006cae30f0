"""Modules of the names of gsec's packages, in a folder that Python looks into."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .command import GSEC

NAMES = ("flows", "tasks", "deployments")


@pytest.fixture(params=NAMES)
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of another project, a module or a package."""
    path = tmp_path / f"{request.param}.py" if request.param == "tasks" else tmp_path / request.param / "__init__.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('this was imported')\n")
    return path


def version(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, "--version"], cwd=folder, env={**os.environ, **more}, capture_output=True, text=True, check=False)


def test_the_command_refuses_those_of_the_path(other: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = version(GSEC, Path.home(), PYTHONPATH=path)
    assert done.returncode == 2
    name = other.stem if other.stem in NAMES else other.parent.name
    assert done.stderr == f"error: {other} hides gsec's own package {name}. Take its folder off PYTHONPATH, or install gsec into an environment of its own.\n"


def test_the_command_does_not_mind_those_of_the_folder_it_is_called_in(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this was imported')\n")
    done = version(GSEC, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_as_a_module_it_refuses_them(other: Path, tmp_path: Path) -> None:
    done = version([sys.executable, "-m", "gsec"], tmp_path)
    assert done.returncode == 2
    assert f"error: {other} hides" in done.stderr
