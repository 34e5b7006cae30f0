"""Makes a virtual environment quickly: it sees the packages of this environment, but not those installed here in editable mode."""

import os
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

# Set by the developer's shell or the test runner; they would lead back to this environment.
_ELSEWHERE = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV")


def fresh_environment(folder: Path) -> Path:
    """Make the environment and return its Python. Its own packages hide those of this environment, whose .pth files have no effect in it."""
    venv.create(folder, symlinks=True, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin/python"


def variables(**more: str | Path) -> Mapping[str, str]:
    """Environment variables for a program in such an environment."""
    return {**{name: value for name, value in os.environ.items() if name not in _ELSEWHERE}, **{name: str(value) for name, value in more.items()}}
