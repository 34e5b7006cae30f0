"""Result types of a `Collection`."""

from dataclasses import dataclass

from pydantic import with_config

documented = with_config(use_attribute_docstrings=True)
"""Class decorator: the docstring below a field becomes the field's description in the JSON schema of the class."""


@documented
@dataclass(frozen=True)
class ImageRow:
    """One image in a list."""

    id: str
    """32 hex digits."""
    uri: str
    """Relative to the corpus's source."""
    key: int
    """Of its cluster."""
    name: str
    """Of its cluster."""
    confidence: float
    outlier: float | None
    """Deviations by which it is farther from its cluster's centre than the cluster's images; None where there is one labelling only."""
    starred: bool = False
    hidden: bool = False
    cosine: float | None = None
    """Cosine to the query; null in lists that are not a search."""


@documented
@dataclass(frozen=True)
class Page:
    """A part of a list of images."""

    rows: tuple[ImageRow, ...]
    total: int
    """Images in the whole list."""
    offset: int
    limit: int
    note: str | None = None
    """A sentence on what the list is or is not, for people."""


@documented
@dataclass(frozen=True)
class ClusterRow:
    """One cluster."""

    key: int
    name: str
    description: str
    terms: tuple[str, ...]
    size: int
    """Images that are not hidden."""
    confidence: float | None
    """Mean over its images after curation, hidden ones included; null if it has none."""
    cohesion: float | None
    """As measured in the run; null if curation changed its images."""
    agreement: float | None
    """As `confidence`; None too where there is one labelling only."""
    stability: float | None
    """As `cohesion`."""
    curated: bool
    """Whether people changed its name, description or images."""
    starred: bool
    hidden: bool
    examples: tuple[str, ...]
    """Ids of up to four of its images, the most confident first."""
    merged: tuple[int, ...] = ()
    """Keys of the clusters that were merged into it."""


@documented
@dataclass(frozen=True)
class Past:
    """The cluster of an image in one publication of the pipeline."""

    run_id: str
    created: str
    """When it was published, UTC."""
    key: int
    name: str


@documented
@dataclass(frozen=True)
class Duplicate:
    """One image of a group of duplicates."""

    row: ImageRow
    """Its cosine is to the first image of the group."""
    exact: bool
    """Whether it has the same bytes as the first."""
    keep: bool
    """Whether it is the one to keep."""


@documented
@dataclass(frozen=True)
class DuplicateGroup:
    """Exact and near copies."""

    number: int
    """0 is the largest."""
    size: int
    images: tuple[Duplicate, ...]
    """The one to keep first; of a large group only the first ones."""


@documented
@dataclass(frozen=True)
class Groups:
    """A part of the list of duplicates."""

    groups: tuple[DuplicateGroup, ...]
    total: int
    """Groups in the whole list."""
    images: int
    """Images in all groups."""
    offset: int
    limit: int
    note: str | None = None


@documented
@dataclass(frozen=True)
class Node:
    """An inner node of the tree of clusters."""

    node: int
    """Its number; the clusters are the numbers below."""
    left: int
    right: int
    height: float
    clusters: int
    """Clusters below it."""
    size: int
    """Images below it."""
    name: str


@documented
@dataclass(frozen=True)
class Group:
    """Clusters that form one group where the tree is cut."""

    name: str
    size: int
    """Images."""
    keys: tuple[int, ...]
    """Of its clusters, the largest first."""


@documented
@dataclass(frozen=True)
class Tree:
    """The run's clusters as a tree. Curation does not change it."""

    leaves: tuple[tuple[int, str, int], ...]
    """Key, name and number of images of each cluster of the run; its place in the list is its number."""
    nodes: tuple[Node, ...]
    """From the bottom up; the last is the root."""
    groups: tuple[Group, ...]
    """The clusters in the requested number of groups, the largest first."""


@documented
@dataclass(frozen=True)
class ImageDetail:
    """All that is known of one image."""

    row: ImageRow
    caption: str | None
    """Its description, or that of an image with the same bytes; null if there is none."""
    width: int | None
    """Pixels as shown; None where the embeddings are gone."""
    height: int | None
    model_key: int
    """Key of the model's own cluster, without curation."""
    model_name: str
    second: tuple[int, str] | None
    """Key and name, after curation, of the cluster that the model finds next most likely; null if there is none or it is not known."""
    neighbors: tuple[ImageRow, ...]
    """The nearest images, by cosine of their embeddings."""
    duplicates: tuple[ImageRow, ...]
    history: tuple[Past, ...]
    """The image in the newest 30 publications, newest first."""
    pending: bool = False
    """Whether neighbours and second choice are still being prepared: they are there when the image is asked for again a little later. Such an answer is
    not to be cached."""
    note: str | None = None
    """Why something is not known, for people."""


@documented
@dataclass(frozen=True)
class ActRow:
    """One act in the curation log."""

    number: int
    """Its place in the log, from 1."""
    kind: str
    who: str
    at: str
    """UTC."""
    why: str | None
    key: int | None
    """The cluster that the act is about."""
    keys: tuple[int, ...]
    """For a merge, the clusters that become part of it; for a split, its new parts."""
    text: str | None
    images: tuple[str, ...]
    """Ids of the first images that the act is about."""
    image_count: int
    """Number of images that the act is about."""
    undoes: int | None
    undone: int | None
    """The act that undid it."""
    open: str | None
    """Why the act could not be applied to this run's clusters, or only in part."""


@documented
@dataclass(frozen=True)
class Acts:
    """A part of the log, newest first."""

    rows: tuple[ActRow, ...]
    total: int
    offset: int
    limit: int
