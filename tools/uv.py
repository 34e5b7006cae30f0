"""`PYTHON tools/uv.py pip install ARGUMENT...` installs into Python's environment as pip would, but with uv, which is many times faster.

uv does not read pip's configuration, so its options for indexes and network access are passed on; uv's own variables have precedence. uv is taken from
the path, or installed into the environment. If that or uv itself fails, pip installs. `pip compile` works only with uv.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
"""pip's options, and uv's variable for each."""

_PLACES = ("global.", "install.", ":env:.")
"""Prefixes in `pip config list` of the places of pip's options; a later place overrides an earlier one."""

_PIP = (sys.executable, "-m", "pip")

_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def main(arguments: list[str]) -> None:
    uv = shutil.which("uv") or _install_uv()
    if uv is not None:
        options = _pip_options()
        constraints = [part for file in options.get("constraint", "").split() for part in ("--constraints", file)]
        command = [uv, *arguments[:2], "--python", sys.executable, *constraints, *arguments[2:]]
        code = subprocess.call(command, env={**variables(options), **os.environ})
    else:
        code = 1
        print("uv cannot be installed.", file=sys.stderr)
    if code and arguments[:2] == ["pip", "install"] and "--torch-backend" not in arguments:  # pip does not have this option
        print("Trying with pip, which takes longer.", file=sys.stderr)
        code = subprocess.call([*_PIP, "install", *arguments[2:]])
    sys.exit(code)


def variables(options: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with which uv finds the same packages as pip does with these options."""
    told = {variable: options[option] for option, variable in _VARIABLES.items() if option in options}
    told |= {variable: ("," if variable == "UV_FIND_LINKS" else " ").join(value.split()) for variable, value in told.items()}
    if "extra-index-url" in options:
        told["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # use all indexes, as pip does; uv would stop at the first one that has the package
    return told


def _pip_options() -> dict[str, str]:
    """pip's options from its configuration files and environment variables."""
    listed = subprocess.run([*_PIP, "config", "list"], check=True, capture_output=True, text=True).stdout
    options: dict[str, str] = {}
    for place in _PLACES:
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(place):
                options[name.removeprefix(place)] = str(ast.literal_eval(value))
    return options


def _install_uv() -> str | None:
    subprocess.run([*_PIP, "install", "-q", "-c", str(_CONSTRAINTS), "uv"], check=False)
    return shutil.which("uv", path=str(Path(sys.executable).parent))


if __name__ == "__main__":
    main(sys.argv[1:])
