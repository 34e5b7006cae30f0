"""What a report says, as plain values: the input of the pages. `collect` makes it from a run's tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LINES = 200
"""Rows of a list that a page has at most: images without a cluster, settings, stages."""

GROUPS, OF_A_GROUP = 50, 6
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
    model_name: str | None = None
    """What the model calls it, if people call it otherwise."""


@dataclass(frozen=True)
class Node:
    """An inner node of the tree over the clusters."""

    left: int
    right: int
    """Clusters by their numbers; nodes by the number of clusters and their place."""
    name: str
    clusters: int
    size: int


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
class Emerging:
    """New images that lie together where no old ones are."""

    size: int
    cluster: int
    """Where most of them are."""
    like: tuple[str, ...]
    """The descriptions of the images that are most like them."""
    thumbnails: tuple[bytes | None, ...]
    """Of the most typical ones."""


@dataclass(frozen=True)
class Unusable:
    """An image without a cluster."""

    uri: str
    status: str
    reason: str


@dataclass(frozen=True)
class Duplicate:
    """An image of a group of duplicates."""

    uri: str
    cosine: float
    """To the first of its group."""
    exact: bool
    """Whether it has the same bytes as that."""
    thumbnail: bytes | None


@dataclass(frozen=True)
class Duplicates:
    """Images of one picture, or nearly one."""

    count: int
    images: tuple[Duplicate, ...]
    """The first of them; the very first is the one to keep."""


@dataclass(frozen=True)
class Content:
    """One report."""

    run_id: str
    created: str
    asked: tuple[tuple[str, str], ...]
    """What was asked, label and value: source, question, encoder, captioner, ..."""
    counts: Mapping[str, int]
    """images, assigned, rejected, missing, clusters, duplicates (images that are copies of another, byte by byte or nearly)."""
    clusters: tuple[Cluster, ...]
    """All of them; their numbers are their places."""
    tree: tuple[Node, ...]
    """From the bottom up; empty if there is none."""
    shown: tuple[Shown, ...]
    """In the order in which galleries show them."""
    emerging: tuple[Emerging, ...]
    """The largest group first."""
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
    duplicates: tuple[Duplicates, ...] | None
    """The largest groups; None if the run looked for none."""
    timings: tuple[Mapping[str, Any], ...]
    """One row for each stage: stage, shards, seconds."""
    made_with: tuple[tuple[str, str], ...]
    """Versions and machine."""
    configuration: Mapping[str, Any]
    """All settings, sections within."""
    curation: tuple[str, ...] = ()
    """What people did to the clusters, in plain words, if anything."""
