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
    """Where the image is, relative to the corpus's source."""
    key: int
    """Key of its cluster."""
    name: str
    """Name of its cluster."""
    confidence: float
    outlier: float | None
    """Distance to its cluster's centre, in standard deviations above the mean of the cluster's images; null if the run has no such score."""
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
    """Number of images in the whole list."""
    offset: int
    limit: int
    note: str | None = None
    """What users should know about the list, in words."""


@documented
@dataclass(frozen=True)
class ClusterRow:
    """One cluster."""

    key: int
    name: str
    description: str
    terms: tuple[str, ...]
    size: int
    """Number of images that are not hidden; of a hidden cluster, of all images."""
    confidence: float | None
    """Mean confidence of its images after curation, hidden images included; null if it has no images."""
    cohesion: float | None
    """Mean cosine of its images to its centre, as measured in the run; null if curation changed its images."""
    agreement: float | None
    """Mean agreement of its images, as `confidence`; null too if the run has no such score."""
    stability: float | None
    """Mean overlap with the matching clusters of the members, as measured in the run; null as `cohesion`."""
    curated: bool
    """Whether users changed its name, description or images."""
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
    """Time of publication, UTC."""
    key: int
    name: str


@documented
@dataclass(frozen=True)
class Duplicate:
    """One image of a group of duplicates."""

    row: ImageRow
    """The image; its `cosine` is that with the first image of the group."""
    exact: bool
    """Whether it has the same bytes as the first image."""
    keep: bool
    """Whether it is the one to keep."""


@documented
@dataclass(frozen=True)
class DuplicateGroup:
    """A group of exact and near copies."""

    number: int
    """Number of the group; 0 is the largest."""
    size: int
    exact: int
    """Number of its images that have the same bytes as the first, which counts too."""
    images: tuple[Duplicate, ...]
    """The image to keep comes first. Of a large group only the first 50 images are listed."""


@documented
@dataclass(frozen=True)
class Groups:
    """A part of the list of duplicates."""

    groups: tuple[DuplicateGroup, ...]
    total: int
    """Number of groups in the whole list."""
    images: int
    """Number of images in all groups."""
    offset: int
    limit: int
    note: str | None = None


@documented
@dataclass(frozen=True)
class Node:
    """An inner node of the tree of clusters."""

    node: int
    """Number of the node. Smaller numbers are clusters."""
    left: int
    right: int
    height: float
    clusters: int
    """Number of clusters below it."""
    size: int
    """Number of images below it."""
    name: str


@documented
@dataclass(frozen=True)
class Group:
    """Clusters that form one group where the tree is cut."""

    name: str
    size: int
    """Number of images."""
    keys: tuple[int, ...]
    """Keys of its clusters, the largest first."""


@documented
@dataclass(frozen=True)
class Tree:
    """The run's clusters as a tree. Curation does not change it."""

    leaves: tuple[tuple[int, str, int], ...]
    """Key, name and number of images of each cluster of the run; its place in the list is its number."""
    nodes: tuple[Node, ...]
    """From the bottom up; the last is the root."""
    groups: tuple[Group, ...]
    """The clusters in the requested number of groups, the largest first; empty if no number was requested."""


@documented
@dataclass(frozen=True)
class ImageDetail:
    """All that is known of one image."""

    row: ImageRow
    caption: str | None
    """Description of the image, or of an image with the same bytes; null if there is none."""
    width: int | None
    """Width in pixels, as a viewer shows the image; null if the embeddings are gone."""
    height: int | None
    """Height, as `width`."""
    model_key: int
    """Key of the image's cluster before curation."""
    model_name: str
    """Name of this cluster before curation."""
    second: tuple[int, str] | None
    """Key and name, after curation, of the second most likely cluster by the model; null if there is none or it is not known."""
    neighbors: tuple[ImageRow, ...]
    """The nearest images, by cosine of their embeddings."""
    duplicates: tuple[ImageRow, ...]
    """The other images of its group of duplicates, at most 50, each with its cosine to this image, as `neighbors`."""
    history: tuple[Past, ...]
    """Its clusters in the newest 30 publications, newest first."""
    pending: bool = False
    """Whether `neighbors`, `second` and the cosines of `duplicates` are still being computed. Ask again a little later; do not cache such an answer."""
    note: str | None = None
    """Why something is not known, in words."""


@documented
@dataclass(frozen=True)
class ActRow:
    """One act in the curation log."""

    number: int
    """Number of the act in the log, from 1."""
    kind: str
    who: str
    at: str
    """UTC."""
    why: str | None
    key: int | None
    """The cluster that the act is about."""
    keys: tuple[int, ...]
    """For a merge, the clusters that become part of `key`; for a split, the new clusters."""
    text: str | None
    images: tuple[str, ...]
    """Ids of the first images that the act is about."""
    image_count: int
    """Number of images that the act is about."""
    undoes: int | None
    """Number of the act that this act undoes."""
    undone: int | None
    """Number of the act that undid this act."""
    open: str | None
    """Why the act could not be applied to this run's clusters, or only in part; null if it was applied."""


@documented
@dataclass(frozen=True)
class Acts:
    """A part of the curation log, newest first."""

    rows: tuple[ActRow, ...]
    total: int
    offset: int
    limit: int
