"""What `make` installs: the versions of constraints.txt, by uv, from the indexes that pip is configured with."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .fresh import fresh_environment, variables

ROOT = Path(__file__).parents[1]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

CONSTRAINTS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]

PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))

NOT_TESTED = {"gs"}
"""Extras whose packages have no version that is known to work."""


def pins(python: str) -> dict[str, str]:
    """The pinned version of each package for a version of Python on this platform."""
    here = {"python_version": python, "python_full_version": f"{python}.99"}
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in CONSTRAINTS if one.marker is None or one.marker.evaluate(here)}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_pinned_versions_are_in_the_ranges_of_the_project(python: str) -> None:
    versions = pins(python)
    extras = [line for extra, lines in PROJECT["optional-dependencies"].items() if extra not in NOT_TESTED for line in lines]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.name != "gsec":
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)], prereleases=True), requirement


def test_every_needed_package_has_a_pinned_version() -> None:
    """Without a pin, another version would be installed one day. `make constraints` adds pins for new packages."""
    versions = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    seen: set[tuple[str, str]] = set()
    missing: set[str] = set()

    def walk(name: str, extra: str) -> None:
        if (name, extra) in seen:
            return
        seen.add((name, extra))
        for requirement in map(Requirement, distribution(name).requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                if needed not in versions and needed != "gsec":
                    missing.add(f"{needed}, by {name}")
                    continue
                for more in ("", *requirement.extras):
                    walk(needed, more)

    walk("gsec", "dev")
    assert not missing


def test_constraints_are_exact_versions_without_urls() -> None:
    assert all(re.fullmatch(r"==[\w.]+", str(one.specifier)) and one.url is None for one in CONSTRAINTS)


def wheel(folder: Path, number: str) -> None:
    """Add one version of an empty package to the package index in ``folder``."""
    place = folder / "example-of-gsec"
    place.mkdir(parents=True, exist_ok=True)
    info = f"example_of_gsec-{number}.dist-info"
    with zipfile.ZipFile(place / f"example_of_gsec-{number}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: example-of-gsec\nVersion: {number}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "".join(f"{info}/{name},,\n" for name in ("METADATA", "WHEEL", "RECORD")))
    (place / "index.html").write_text("".join(f'<a href="{file.name}">{file.name}</a>' for file in place.glob("*.whl")))


@pytest.mark.parametrize("with_uv", [True, False])
def test_the_installer_uses_the_indexes_and_constraints_of_pip_with_and_without_uv(tmp_path: Path, with_uv: bool) -> None:
    """The newest version that the constraints allow is in the second index."""
    wheel(tmp_path / "first", "1.0")
    wheel(tmp_path / "second", "2.0")
    wheel(tmp_path / "second", "3.0")
    (tmp_path / "allowed.txt").write_text("example-of-gsec<3\n")
    python = fresh_environment(tmp_path / "environment")
    told = variables(
        PIP_INDEX_URL=(tmp_path / "first").as_uri(),
        PIP_EXTRA_INDEX_URL=(tmp_path / "second").as_uri(),
        PIP_FIND_LINKS=tmp_path,
        PIP_CONSTRAINT=tmp_path / "allowed.txt",
        PATH=Path(sys.executable).parent if with_uv else "/usr/bin:/bin",
        UV_CACHE_DIR=tmp_path / "cache",
    )
    done = subprocess.run([python, ROOT / "tools/uv.py", "pip", "install", "example-of-gsec"], env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("uv cannot be installed" in done.stderr) is not with_uv
    [installed] = tmp_path.glob("environment/lib/*/site-packages/example_of_gsec-*")
    assert installed.name == "example_of_gsec-2.0.dist-info"
