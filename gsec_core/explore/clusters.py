"""The clusters of a run, as the run made them and as people have curated them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsec_core.curation import Curated, Model, Named
from gsec_core.explore.columns import Columns, to_arrow
from gsec_core.explore.rows import ClusterRow
from gsec_core.results.frames import clusters_of
from gsec_core.store import Run

EXAMPLES = 4


@dataclass(frozen=True)
class Made:
    """One cluster as the run made it."""

    cluster: int
    key: int
    name: str
    description: str
    terms: tuple[str, ...]
    size: int
    cohesion: float | None
    stability: float | None


def made(run: Run) -> list[Made]:
    """The clusters of a run in the order of their numbers. Raises Refused if the run has no names or keys yet."""
    return [
        Made(row["cluster"], row["cluster_key"], row["name"], row["description"] or "", tuple(row["terms"]), row["size"], row["cohesion"], row["stability"])
        for row in clusters_of(run).iter_rows(named=True)
    ]


def model(columns: Columns, clusters: Sequence[Made], encoder: str, embeddings: Callable[[NDArray[np.int64]], NDArray[np.float16]]) -> Model:
    """The clustering before curation, as `gsec_core.curation.replay` takes it. ``embeddings`` returns the embeddings of rows (m,)."""
    keys = np.array([one.key for one in clusters], np.int32)[columns.cluster]
    named = tuple(Named(one.key, one.name, one.description or None) for one in clusters)
    return Model(to_arrow(columns.ids), to_arrow(columns.hashes), keys, named, encoder, embeddings)


class View:
    """The clusters and their images at one state of the curation log.

    Attributes
    ----------
    curated : Curated
        The curated clustering that is shown.
    keys : int32 (n,)
        Key of the cluster of each image.
    hidden, starred : bool (n,)
        Whether each image is hidden, itself or with its cluster, and starred.
    rows : tuple of ClusterRow
        All clusters, the largest first.
    """

    def __init__(self, columns: Columns, clusters: Sequence[Made], curated: Curated) -> None:
        self.curated, self.keys, self.hidden, self.starred = curated, curated.keys, curated.hidden, curated.starred
        self.names = {one.key: one.name for one in curated.clusters}
        # Within a cluster, images that are not hidden come first, and both parts are by descending confidence.
        self._order = np.lexsort((-columns.confidence, self.hidden, self.keys))
        self._keys, starts = np.unique(self.keys[self._order], return_index=True)
        self._starts = np.append(starts, len(self.keys))
        self.rows = tuple(sorted(self._rows(columns, clusters), key=lambda row: (-row.size, row.key)))
        self.by_key: Mapping[int, ClusterRow] = {row.key: row for row in self.rows}

    def images(self, key: int) -> NDArray[np.int64]:
        """Rows of a cluster's images by descending confidence, hidden ones last. Empty for a key without images."""
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return np.empty(0, np.int64)
        return self._order[self._starts[place] : self._starts[place + 1]]

    def _rows(self, columns: Columns, clusters: Sequence[Made]) -> list[ClusterRow]:
        by_key = {one.key: one for one in clusters}
        place = np.searchsorted(self._keys, self.keys)
        count = len(self._keys)
        sizes = np.bincount(place, minlength=count)
        own = np.array([one.key for one in clusters], np.int32)[columns.cluster]
        same = np.bincount(place[self.keys == own], minlength=count)
        means = {name: np.bincount(place, np.nan_to_num(getattr(columns, name)), count) / np.maximum(sizes, 1) for name in ("confidence", "agreement")}
        known = not np.isnan(columns.agreement).all()
        visible = np.bincount(place[~self.hidden], minlength=count)
        at = {int(key): number for number, key in enumerate(self._keys)}
        rows = []
        for one in self.curated.clusters:
            number = at.get(one.key)
            size = 0 if number is None else int(sizes[number])
            shown = size if one.hidden or number is None else int(visible[number])
            was = by_key.get(one.key)
            intact = was if was is not None and was.size == size and (number is None or same[number] == size) else None
            rows.append(
                ClusterRow(
                    key=one.key,
                    name=one.name,
                    description=one.description or "",
                    terms=() if was is None else was.terms,
                    size=shown,
                    confidence=None if number is None else float(means["confidence"][number]),
                    cohesion=intact.cohesion if intact else None,
                    agreement=None if number is None or not known else float(means["agreement"][number]),
                    stability=intact.stability if intact else None,
                    curated=one.curated,
                    starred=one.starred,
                    hidden=one.hidden,
                    examples=tuple(columns.hexes(self.images(one.key)[: min(EXAMPLES, shown)])),
                    merged=one.merged,
                )
            )
        return rows
