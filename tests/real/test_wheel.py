"""gsec installed from its wheel, outside the checkout, in a folder that has modules with the names of its packages."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..fresh import fresh_environment, variables
from ..pictures import write_pictures
from .stacks import stack_in

ROOT = Path(__file__).parents[2]

UV = Path(sys.executable).with_name("uv")

PACKAGES = ("gsec_core", "tasks", "flows")
"""Packages that go into the wheel completely. Of `deployments`, the files for containers and vLLM do not."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built only from files in git, with the installed setuptools."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in files(""):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [UV, "build", "-q", "--wheel", "--no-build-isolation", "--offline", "--python", sys.executable, "-o", folder, folder / "source"]
    subprocess.run(command, check=True)
    [built] = folder.glob("gsec-*.whl")
    return built


def files(below: str) -> list[str]:
    return subprocess.run(["git", "ls-files", "-z", "--", below or "."], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the `gsec` program of an environment that has the wheel, and otherwise the packages installed here."""
    python = fresh_environment(tmp_path_factory.mktemp("environment"))
    subprocess.run([UV, "pip", "install", "-q", "--no-deps", "--offline", "--python", python, wheel], check=True)
    return python.parent


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with images and with modules that must not be imported."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("flows", "tasks", "deployments", "gsec"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the user was imported')\n")
    write_pictures(folder / "in", range(12))
    return folder


def test_the_wheel_has_exactly_the_files_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    wanted = {name for package in PACKAGES for name in files(package)} | {name for name in files("deployments") if name.count("/") == 1} | {"gsec.py"}
    assert {name for name in names if ".dist-info/" not in name} == wanted


QUICK = {"GSEC_THREADS": "1", "GSEC_BASELINE__N_INIT": "2", "GSEC_TRAIN__N_MEMBERS": "5", "GSEC_GSEC__ENSEMBLE_SIZE": "4", "GSEC_GSEC__MAX_STEPS": "20"}


def gsec(programs: Path, folder: Path, *words: str | Path) -> str:
    told = variables(PREFECT_HOME=folder / "prefect", HF_HUB_OFFLINE="1", **QUICK)
    done = subprocess.run([programs / "gsec", *words], cwd=folder, env=told, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def demo(programs: Path, elsewhere: Path) -> dict[str, Any]:
    """The result of `gsec demo`."""
    said: dict[str, Any] = json.loads(gsec(programs, elsewhere, "demo", "in", "--clusters", "3", "--json").splitlines()[-1])
    return said


def test_the_demo_and_its_report_work_from_the_wheel(demo: dict[str, Any], programs: Path, elsewhere: Path) -> None:
    assert "--directory" in gsec(programs, elsewhere, "demo", "--help")
    assert demo["images"] == 12
    gsec(programs, elsewhere, "report", "--store", "gsec-demo/store", "--to", "drawn")
    assert "data:image/jpeg;base64," in (elsewhere / "drawn/index.html").read_text()


def test_a_stack_with_its_pages_works_from_the_wheel(demo: dict[str, Any], programs: Path, elsewhere: Path) -> None:
    with stack_in(elsewhere / "gsec-demo", {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}, [programs / "gsec"], elsewhere) as stack:
        stack.write({"wheel": {"source": elsewhere / "in"}})
        stack.up()
        run = stack.begin("gsec-ingest/wheel")
        with httpx.Client(base_url=stack.reports, follow_redirects=True, timeout=60) as client:
            pages = [client.get(f"/runs/{demo['run_id']}/{place}") for place in ("explore", "report/index.html")]
            assert [page.status_code for page in (client.get("/"), *pages)] == [200, 200, 200]
            parts = re.findall(r'(?:href|src)="(/static/[^"]+)"', pages[0].text)
            assert parts
            assert all(client.get(part).is_success for part in parts)
        assert stack.ended(run)["name"] == "Completed", stack.logs()
