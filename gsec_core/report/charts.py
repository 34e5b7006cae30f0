"""Small bar charts; positions and heights are in percent of the chart's box."""

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_BARS = 120


@dataclass(frozen=True)
class Bar:
    """A bar of a chart."""

    left: float
    width: float
    height: float
    says: str
    """Meaning of the bar in words."""


@dataclass(frozen=True)
class Chart:
    """A bar chart."""

    bars: tuple[Bar, ...]
    top: float
    """The value at the box's upper edge."""


def ranked(sizes: Sequence[int]) -> Chart:
    """One bar for each cluster, in the given order; if there are too many, only those at evenly spaced ranks."""
    count = min(len(sizes), _MOST_BARS)
    ranks = [(place * (len(sizes) - 1)) // max(count - 1, 1) for place in range(count)]
    top = max(sizes, default=0)
    bars = [
        Bar(100 * place / count, 100 / count, 100 * sizes[rank] / max(top, 1), f"rank {rank + 1:,}: {sizes[rank]:,} images") for place, rank in enumerate(ranks)
    ]
    return Chart(tuple(bars), top)


def histogram(counts: Sequence[int]) -> Chart:
    """A histogram from the counts in equal bins between 0 and 1, one bar for each count."""
    bins, top = len(counts), max(counts, default=0)
    bars = [
        Bar(100 * place / bins, 100 / bins, 100 * count / max(top, 1), f"{place / bins:.2f} to {(place + 1) / bins:.2f}: {count:,}")
        for place, count in enumerate(counts)
    ]
    return Chart(tuple(bars), top)
