"""Methods, encoders and captioners from other packages, found by their entry points."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gsec_core.errors import Refused


@cache
def brought(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group, such as ``gsec.methods``, by name. If several have the same name, the alphabetically first package counts."""
    found = sorted(entry_points(group=group), key=lambda point: (point.name, point.dist.name if point.dist else ""), reverse=True)
    return {point.name: point for point in found}


def load(group: str, name: str) -> Any:
    """Load the object of an entry point. Raises Refused naming the package if it cannot be imported."""
    point = brought(group)[name]
    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        raise Refused(
            f"{group} {name}: package {package} has it and cannot be loaded ({type(error).__name__}: {error}). Repair or remove the package."
        ) from error
