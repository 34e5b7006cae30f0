"""`gsec` and `python -m gsec`: the command line, after a look at where its packages come from.

Other projects have modules called `flows`, `tasks` or `deployments`, too, and Python takes the first that it finds.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import gsec_core
from gsec_core.errors import Refused

PACKAGES = ("flows", "tasks", "deployments")


def main() -> None:
    try:
        check_packages()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    from flows.cli import main

    main()


def check_packages() -> None:
    """Raises Refused if another module hides one of gsec's own packages, which all lie beside the library."""
    home = Path(gsec_core.__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # not there, or a folder without code
            raise Refused(f"gsec's package {name} is not installed. Install gsec again.")
        found = Path(spec.origin).resolve()
        if found != home / name / "__init__.py":
            raise Refused(f"{found} hides gsec's own package {name}. Take its folder off PYTHONPATH, or install gsec into an environment of its own.")


if __name__ == "__main__":
    main()
