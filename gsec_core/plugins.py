"""What other packages bring: methods, encoders and captioners, found by their entry points."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gsec_core.errors import Refused


@cache
def brought(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group, as ``gsec.methods``, by name. Of two of one name the first package by name counts."""
    found = sorted(entry_points(group=group), key=lambda point: (point.name, point.dist.name if point.dist else ""), reverse=True)
    return {point.name: point for point in found}


def load(group: str, name: str) -> Any:
    """What the entry point stands for. Raises Refused naming the package if it cannot be imported."""
    point = brought(group)[name]
    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        raise Refused(
            f"{group} {name}: package {package} has it and cannot be loaded ({type(error).__name__}: {error}). Repair or remove the package."
        ) from error
