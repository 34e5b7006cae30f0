"""The bars of small charts, in percent of the chart's box."""

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
    """What it stands for, in words."""


@dataclass(frozen=True)
class Chart:
    """Bars that stand on one line."""

    bars: tuple[Bar, ...]
    top: float
    """The value of the box's upper edge, in the values' unit."""


def ranked(sizes: Sequence[int]) -> Chart:
    """One bar for each cluster, in the order given; of very many, those at evenly spaced ranks."""
    count = min(len(sizes), _MOST_BARS)
    ranks = [(place * (len(sizes) - 1)) // max(count - 1, 1) for place in range(count)]
    top = max(sizes, default=0)
    bars = [
        Bar(100 * place / count, 100 / count, 100 * sizes[rank] / max(top, 1), f"rank {rank + 1:,}: {sizes[rank]:,} images") for place, rank in enumerate(ranks)
    ]
    return Chart(tuple(bars), top)


def histogram(counts: Sequence[int]) -> Chart:
    """One bar for each count, of what lies in each of as many equal parts of 0 to 1."""
    bins, top = len(counts), max(counts, default=0)
    bars = [
        Bar(100 * place / bins, 100 / bins, 100 * count / max(top, 1), f"{place / bins:.2f} to {(place + 1) / bins:.2f}: {count:,}")
        for place, count in enumerate(counts)
    ]
    return Chart(tuple(bars), top)
