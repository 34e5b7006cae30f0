"""The table of methods. To add one, write a package here and list it in `BUILT_IN`, or write a separate distribution with an entry point `gsec.methods`."""

import json
from contextlib import suppress
from functools import cache

from gsec_core import plugins
from gsec_core.errors import Refused
from gsec_core.methods import asd, gsec, seic, sic, tac, temi, turtle, zero_shot
from gsec_core.methods.method import Method
from gsec_core.methods.mixture import SEPARATOR, mixed

__all__ = ["DEFAULT", "GROUP", "Method", "find", "loaded", "names"]

GROUP = "gsec.methods"
"""Entry point group for methods from other packages; each entry point is a `Method`."""

BUILT_IN: tuple[Method, ...] = (
    gsec.METHOD,
    tac.METHOD,
    tac.WITHOUT_TRAINING,
    sic.METHOD,
    seic.METHOD,
    turtle.METHOD,
    temi.METHOD,
    asd.METHOD,
    zero_shot.METHOD,
)

DEFAULT = BUILT_IN[0].name


def names() -> list[str]:
    """Names of all methods, those of this package first."""
    own = [method.name for method in BUILT_IN]
    return own + [name for name in plugins.brought(GROUP) if name not in own]


@cache
def find(name: str) -> Method:
    """Find a method by its name, or make the mixture of several methods whose names are separated by commas.

    Raises Refused if there is no such method, if its package cannot be loaded, or if the methods cannot be mixed.
    """
    if SEPARATOR in name:
        return mixed([find(part.strip()) for part in name.split(SEPARATOR)])
    for method in BUILT_IN:
        if method.name == name:
            return method
    if name not in plugins.brought(GROUP):
        raise Refused(f"method = {json.dumps(name)}: there is no such method; there are {', '.join(f'`{known}`' for known in names())}.")
    found = plugins.load(GROUP, name)
    if not isinstance(found, Method) or found.name != name:
        raise Refused(f"method = {json.dumps(name)}: its entry point is not a `gsec_core.methods.Method` of this name. Repair the package that has it.")
    return found


def loaded() -> dict[str, Method]:
    """All methods by name, except those whose package cannot be loaded: `find` says why."""
    found = {}
    for name in names():
        with suppress(Refused):
            found[name] = find(name)
    return found
