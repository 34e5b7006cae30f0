"""A colour for each cluster, legible on white and on black."""

import math
from functools import cache

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
"""Steps of this angle keep successive hues far apart, for any number of clusters."""

_LIGHTNESS = (0.62, 0.54, 0.58)
"""Lightness values in OKLCH; all have a contrast of at least 3 : 1 on white and on nearly black backgrounds."""

_CHROMA = 0.16


@cache
def colour(cluster: int) -> str:
    """Colour of a cluster as ``#rrggbb``: fixed for each number, and different in hue and lightness from those of the next numbers."""
    lightness, hue = _LIGHTNESS[cluster % len(_LIGHTNESS)], 0.5 + cluster * _GOLDEN_ANGLE
    chroma = _CHROMA
    values = _linear_rgb(lightness, chroma, hue)
    while min(values) < 0 or max(values) > 1:  # reduce the chroma where sRGB cannot represent it
        chroma *= 0.95
        values = _linear_rgb(lightness, chroma, hue)
    return "#" + "".join(f"{round(255 * _gamma(value)):02x}" for value in values)


def _linear_rgb(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCH to linear sRGB, by the matrices of https://bottosson.github.io/posts/oklab/."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
