"""What a `Collection` answers with."""

from dataclasses import dataclass

from pydantic import with_config

documented = with_config(use_attribute_docstrings=True)
"""What stands below a field is its description in the JSON schemas that are made of these."""


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
    """To what was asked for; None in lists that are no search."""


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
    """Mean of the images that it has now, hidden ones included; None if it has none."""
    cohesion: float | None
    """As the run measured it; None if images came or went since."""
    agreement: float | None
    """As `confidence`; None too where there is one labelling only."""
    stability: float | None
    """As `cohesion`."""
    curated: bool
    """Whether people changed its name, description or images."""
    starred: bool
    hidden: bool
    examples: tuple[str, ...]
    """Ids of up to four of its images, the surest first."""
    merged: tuple[int, ...] = ()
    """Keys of the clusters that were merged into it."""


@documented
@dataclass(frozen=True)
class Past:
    """What an image was in one publication of the pipeline."""

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
    """Its cosine is that to the group's first."""
    exact: bool
    """Whether it has the same bytes as the first."""
    keep: bool
    """Whether it is the one to keep."""


@documented
@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are the same, or nearly."""

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
    """Clusters that are one where the tree is cut."""

    name: str
    size: int
    """Images."""
    keys: tuple[int, ...]
    """Of its clusters, the largest first."""


@documented
@dataclass(frozen=True)
class Tree:
    """The run's clusters as a tree, by average linkage of their centres. Curation does not change it."""

    leaves: tuple[tuple[int, str, int], ...]
    """Key, name and images of each cluster as the run made it; their places are their numbers."""
    nodes: tuple[Node, ...]
    """From the bottom up; the last is the root."""
    groups: tuple[Group, ...]
    """The clusters in as many groups as were asked for, the largest first."""


@documented
@dataclass(frozen=True)
class ImageDetail:
    """All that is known of one image."""

    row: ImageRow
    caption: str | None
    """What was said of it, or of an image with the same bytes; None if none was described."""
    width: int | None
    """Pixels as shown; None where the embeddings are gone."""
    height: int | None
    model_key: int
    """Of the cluster that the run put it into, whatever was curated since."""
    model_name: str
    second: tuple[int, str] | None
    """Key and name, as curated, of the cluster that the model finds next likely; None where there is no other, or that cannot be told."""
    neighbors: tuple[ImageRow, ...]
    """The nearest images, by cosine of their embeddings."""
    duplicates: tuple[ImageRow, ...]
    history: tuple[Past, ...]
    """Of the newest 30 publications those that have the image, newest first."""
    pending: bool = False
    """Whether neighbours and second choice are still being prepared: they are there when the image is asked for again a little later. Such an answer is
    not to be cached."""
    note: str | None = None
    """Why something cannot be told, for people."""


@documented
@dataclass(frozen=True)
class ActRow:
    """What a person said about the clusters of the pipeline."""

    number: int
    """Its place in the log, from 1."""
    kind: str
    who: str
    at: str
    """UTC."""
    why: str | None
    key: int | None
    """The cluster that it is about."""
    keys: tuple[int, ...]
    """Of a merge those that become part of it; of a split its new parts."""
    text: str | None
    images: tuple[str, ...]
    """Ids of the first images that it is about."""
    image_count: int
    """How many it is about."""
    undoes: int | None
    undone: int | None
    """The act that undid it."""
    open: str | None
    """Why it could not be applied to this run's clusters, or not to all that it is about."""


@documented
@dataclass(frozen=True)
class Acts:
    """A part of the log, newest first."""

    rows: tuple[ActRow, ...]
    total: int
    offset: int
    limit: int
