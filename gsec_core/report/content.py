"""What a report says, as plain values: the input of the pages. `collect` makes it from a run's tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LINES = 200
"""Rows of a list that a page has at most: images without a cluster, settings, stages."""

GROUPS, OF_A_GROUP = 50, 12
"""Groups of duplicates that are listed, and images of one."""


@dataclass(frozen=True)
class Cluster:
    """A row of the cluster table."""

    cluster: int
    key: int
    """What it is called from run to run."""
    name: str
    description: str
    terms: tuple[str, ...]
    size: int
    confidence: float | None
    """Mean over its images; None if it is empty, as below."""
    cohesion: float | None
    separation: float
    agreement: float | None
    stability: float | None


@dataclass(frozen=True)
class Shown:
    """An image of the galleries and the map."""

    uri: str
    cluster: int
    role: str
    """See `gsec_core.report.layout.choose`: representative, most confident, least confident or sample."""
    confidence: float
    caption: str | None
    """Its own description, if it was described."""
    x: float
    y: float
    """On the map; only distances mean something."""
    thumbnail: bytes | None
    """JPEG; None if it is not kept any more."""


@dataclass(frozen=True)
class Unusable:
    """An image without a cluster."""

    uri: str
    status: str
    reason: str


@dataclass(frozen=True)
class Duplicates:
    """Images with equal bytes."""

    count: int
    uris: tuple[str, ...]
    """The first of them."""


@dataclass(frozen=True)
class Content:
    """One report."""

    run_id: str
    created: str
    asked: tuple[tuple[str, str], ...]
    """What was asked, label and value: source, question, encoder, captioner, ..."""
    counts: Mapping[str, int]
    """images, assigned, rejected, missing, clusters, duplicates (images that share their bytes with another)."""
    clusters: tuple[Cluster, ...]
    """All of them, largest first; their numbers are their places."""
    shown: tuple[Shown, ...]
    """In the order in which galleries show them."""
    confidences: tuple[int, ...]
    """How many images have a confidence in each of as many equal parts of 0 to 1."""
    labellings: tuple[Mapping[str, Any], ...]
    """The consensus beside plain k-means; see `quality.without_labels`."""
    remarks: tuple[str, ...]
    """What of that a reader should know, in plain words; see `quality.remarks`."""
    reasons: tuple[tuple[str, str, int], ...]
    """Status, reason and number of the images without a cluster, the most frequent first."""
    unusable: tuple[Unusable, ...]
    """The first of them."""
    duplicates: tuple[Duplicates, ...]
    """The first of them, by URI."""
    timings: tuple[Mapping[str, Any], ...]
    """A row a stage: stage, shards, seconds."""
    made_with: tuple[tuple[str, str], ...]
    """Versions and machine."""
    configuration: Mapping[str, Any]
    """All settings, sections within."""
