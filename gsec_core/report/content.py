"""Content of a report as plain values: the input of `pages`, made by `collect` from a run's tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LINES = 200
"""Largest number of rows in a list on a page: images without a cluster, groups of new images."""

GROUPS, OF_A_GROUP = 50, 6
"""Largest number of groups of duplicates that are listed, and of images in each."""


@dataclass(frozen=True)
class Cluster:
    """A row of the cluster table."""

    cluster: int
    key: int
    """The cluster key, which stays the same from run to run."""
    name: str
    description: str
    terms: tuple[str, ...]
    size: int
    confidence: float | None
    """Mean over the cluster's images; like cohesion and others below, None if the cluster is empty."""
    cohesion: float | None
    separation: float | None
    agreement: float | None
    stability: float | None
    model_name: str | None = None
    """The model's name of the cluster, if people have given it another."""


@dataclass(frozen=True)
class Node:
    """An inner node of the tree over the clusters."""

    left: int
    right: int
    """Like ``left``: the number of a cluster, or the number of clusters plus the index of a node."""
    name: str
    clusters: int
    size: int


@dataclass(frozen=True)
class Shown:
    """An image of the galleries and the map."""

    uri: str
    cluster: int
    role: str
    """Why it is shown: representative, most confident, least confident, sample or new; see `gsec_core.report.layout`."""
    confidence: float
    caption: str | None
    """The image's description, if it was described."""
    x: float
    y: float
    """Coordinates on the map, of which only distances have a meaning."""
    thumbnail: bytes | None
    """JPEG; None if it is no longer stored."""


@dataclass(frozen=True)
class Emerging:
    """New images that lie together where no old ones are."""

    size: int
    cluster: int
    """The cluster that contains most of them."""
    like: tuple[str, ...]
    """Descriptions of the most similar images."""
    thumbnails: tuple[bytes | None, ...]
    """Thumbnails of the most typical images; None if one is no longer stored."""


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
    """Cosine to the first image of the group."""
    exact: bool
    """Whether it has the same bytes as the first image."""
    thumbnail: bytes | None


@dataclass(frozen=True)
class Duplicates:
    """A group of exact or near copies of the same picture."""

    count: int
    images: tuple[Duplicate, ...]
    """The first images of the group, beginning with the one to keep."""


@dataclass(frozen=True)
class Content:
    """Content of one report."""

    run_id: str
    created: str
    asked: tuple[tuple[str, str], ...]
    """The request, as pairs of label and value: source, question, encoder, captioner, ..."""
    counts: Mapping[str, int]
    """Numbers of images, assigned, rejected, missing, clusters, duplicates (images that are exact or near copies of another)."""
    clusters: tuple[Cluster, ...]
    """All clusters, in the order of their numbers."""
    tree: tuple[Node, ...]
    """Nodes of the tree from the bottom up; empty if there is no tree."""
    shown: tuple[Shown, ...]
    """Images to show, in the order of the galleries."""
    emerging: tuple[Emerging, ...]
    """Groups of new images, the largest first."""
    confidences: tuple[int, ...]
    """Histogram of confidence: numbers of images in equal bins between 0 and 1."""
    labellings: tuple[Mapping[str, Any], ...]
    """The consensus, and beside it plain k-means if the run fits a model; see `quality.without_labels`."""
    remarks: tuple[str, ...]
    """Remarks on the result in plain words; see `quality.remarks`."""
    reasons: tuple[tuple[str, str, int], ...]
    """Status, reason and number of images without a cluster, the most frequent reason first."""
    unusable: tuple[Unusable, ...]
    """The first images without a cluster, by URI."""
    duplicates: tuple[Duplicates, ...] | None
    """The largest groups of duplicates; None if the run has not searched any."""
    timings: tuple[Mapping[str, Any], ...]
    """One row for each stage: stage, shards, seconds."""
    made_with: tuple[tuple[str, str], ...]
    """Versions and machine."""
    configuration: Mapping[str, Any]
    """All settings, with sections as nested mappings."""
    curation: tuple[str, ...] = ()
    """Remarks on what people have changed in the clusters; empty without curation."""
