"""Find the points that lie in a polygon."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsec_core.errors import Refused

MOST_CORNERS = 1000

Polygon = Sequence[tuple[float, float]]


_NUMBER = r"-?\d+(\.\d*)?(e-?\d+)?"
_CORNERS = re.compile(f"{_NUMBER},{_NUMBER}(,{_NUMBER},{_NUMBER})*")


def parsed(text: str) -> Polygon:
    """Parse a polygon from ``x1,y1,x2,y2,…``. Raises Refused for any other text."""
    if not _CORNERS.fullmatch(text):
        raise Refused(f"within = {text[:60]}: give the corners of a polygon, x1,y1,x2,y2,x3,y3.")
    values = [float(value) for value in text.split(",")]
    return tuple(zip(values[::2], values[1::2], strict=True))


def inside(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], polygon: Polygon) -> NDArray[np.bool_]:
    """Mask (n,) of the points in a polygon, by the even-odd rule, or on its edges. Points with NaN coordinates are never inside.

    Edges count because a map touches the edges of the unit square. Raises Refused for an invalid polygon.
    """
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or not 3 <= len(corners) <= MOST_CORNERS or not np.isfinite(corners).all():
        raise Refused(f"within: {len(polygon)} corners; give 3 to {MOST_CORNERS:,}, two finite numbers each.")
    low, high = corners.min(0), corners.max(0)
    near = np.flatnonzero((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]))
    px, py = x[near].astype(np.float64), y[near].astype(np.float64)
    odd, on_edge = np.zeros((2, len(near)), bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, 1, 0), strict=True):
        if y1 != y2:
            odd ^= ((y1 > py) != (y2 > py)) & (px < (x2 - x1) * (py - y1) / (y2 - y1) + x1)
        beside = (px >= min(x1, x2)) & (px <= max(x1, x2)) & (py >= min(y1, y2)) & (py <= max(y1, y2))
        on_edge |= beside & ((x2 - x1) * (py - y1) == (y2 - y1) * (px - x1))
    found = np.zeros(len(x), bool)
    found[near[odd | on_edge]] = True
    return found
