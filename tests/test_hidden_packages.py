"""Foreign modules with the names of gsec's packages, in a folder from which Python imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .command import GSEC

NAMES = ("flows", "tasks", "deployments")


@pytest.fixture(params=NAMES)
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A module or package of another project that has the name of one of gsec's packages."""
    path = tmp_path / f"{request.param}.py" if request.param == "tasks" else tmp_path / request.param / "__init__.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('this was imported')\n")
    return path


def version(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, "--version"], cwd=folder, env={**os.environ, **more}, capture_output=True, text=True, check=False)


def test_the_command_refuses_to_run_if_pythonpath_hides_its_packages(other: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = version(GSEC, Path.home(), PYTHONPATH=path)
    assert done.returncode == 2
    name = other.stem if other.stem in NAMES else other.parent.name
    assert done.stderr == f"error: {other} hides gsec's own package {name}. Take its folder off PYTHONPATH, or install gsec into an environment of its own.\n"


def test_the_command_ignores_modules_of_the_same_names_in_the_current_folder(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this was imported')\n")
    done = version(GSEC, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_gsec_refuses_to_run_if_the_current_folder_hides_its_packages(other: Path, tmp_path: Path) -> None:
    done = version([sys.executable, "-m", "gsec"], tmp_path)
    assert done.returncode == 2
    assert f"error: {other} hides" in done.stderr
