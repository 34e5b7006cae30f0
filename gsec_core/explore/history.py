"""The clusters of an image in the publications of a pipeline."""

import numpy as np
from numpy.typing import NDArray

from gsec_core.errors import Refused
from gsec_core.explore.clusters import Made, made
from gsec_core.explore.columns import bytes16, first_half
from gsec_core.explore.rows import Past
from gsec_core.store import Publication, Publications, Run
from gsec_core.store.files import Files
from gsec_core.tables import ASSIGNMENTS_TABLE

MOST_PUBLICATIONS = 30

_KEPT_BYTES = 2**27
"""Bytes of assignments that are kept in memory, 20 for each image, those of the newest publications. Others are read at every request."""


class History:
    """The newest publications of a pipeline. Their records and tables never change, so those that fit in memory are read only once."""

    def __init__(self, files: Files, pipeline: str) -> None:
        self._files, self._pipeline = files, pipeline
        self._records: dict[int, Publication] = {}
        self._clusters: dict[str, list[Made]] = {}
        self._kept: dict[int, tuple[NDArray[np.void], NDArray[np.int32]]] = {}
        """Number of the publication -> image ids and cluster labels."""

    def of(self, image_id: bytes) -> list[Past]:
        """The clusters of one image, newest publication first. Publications whose run was pruned, or that lack the image, are left out."""
        publications = Publications(self._files)
        found = []
        for number in sorted(publications.numbers(self._pipeline), reverse=True)[:MOST_PUBLICATIONS]:
            if number not in self._records:
                self._records[number] = publications.read(self._pipeline, number)
            past = self._past(self._records[number], image_id)
            if past is not None:
                found.append(past)
        return found

    def _past(self, publication: Publication, image_id: bytes) -> Past | None:
        run = Run(self._files, publication.run_id)
        try:
            ids, labels = self._assignments(publication, run)
            if publication.run_id not in self._clusters:
                self._clusters[publication.run_id] = made(run)
        except (Refused, FileNotFoundError):
            return None
        wanted = np.frombuffer(image_id, "V16")
        near = np.flatnonzero(first_half(ids) == first_half(wanted))
        place = near[ids[near] == wanted]
        if not len(place):
            return None
        cluster = self._clusters[publication.run_id][labels[place[0]]]
        return Past(publication.run_id, publication.at, cluster.key, cluster.name)

    def _assignments(self, publication: Publication, run: Run) -> tuple[NDArray[np.void], NDArray[np.int32]]:
        found = self._kept.get(publication.number)
        if found is None:
            table = run.read_table(ASSIGNMENTS_TABLE, ["image_id", "cluster"])
            found = bytes16(table["image_id"]), table["cluster"].to_numpy()
            kept = {**self._kept, publication.number: found}
            while sum(ids.nbytes + labels.nbytes for ids, labels in kept.values()) > _KEPT_BYTES:
                del kept[min(kept)]
            self._kept = kept  # replaced at once, because other threads read it
        return found
