"""An environment of its own, made in no time: it finds this one's packages, but not what is installed here in editable mode."""

import os
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

# Of the developer's shell and of the test runner.
_ELSEWHERE = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV")


def fresh_environment(folder: Path) -> Path:
    """Its Python. A package that is installed into it hides the one here; .pth files of this environment do not count there."""
    venv.create(folder, symlinks=True, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin/python"


def variables(**more: str | Path) -> Mapping[str, str]:
    """Environment variables for a program in it."""
    return {**{name: value for name, value in os.environ.items() if name not in _ELSEWHERE}, **{name: str(value) for name, value in more.items()}}
