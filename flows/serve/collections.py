"""The runs that users look into; a few of them stay in memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from flows.serve.known import FINISHED, Known
from gsec_core.config import PipelineConfig
from gsec_core.errors import NotFound, Refused
from gsec_core.explore import Collection
from gsec_core.store import Run

MOST_OPEN = 8
MOST_IMAGES = 2_000_000
"""Maximal numbers of open runs, and of their images in memory. A single run may have more images."""


class Unfinished(Refused):
    """Raised for a run that cannot be explored: it is not finished, or has no clusters of its own."""


class Collections:
    """The collections of several stores, by run id. The most recently used ones stay open."""

    def __init__(self, stores: Sequence[Known], config: PipelineConfig | None = None) -> None:
        """``config`` gives threads, device and scratch folder of all collections."""
        self._stores = stores
        self._config = config
        self._open: OrderedDict[tuple[str, str], Collection] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, run_id: str) -> tuple[Known, Run]:
        """The run with this id and its store, the first one that has it. Raises NotFound."""
        for store in self._stores:
            run = store.find(run_id)
            if run is not None:
                return store, run
        raise NotFound(f"run {run_id[:40]}: there is no such run here; it may have been pruned. A run's id is 32 hex digits.")

    def check_there(self, run_id: str) -> None:
        """Raises NotFound if a run is gone, which the cached records do not tell. Drops the records of all runs that are gone."""
        for store in self._stores:
            store.drop_gone()
        self.find(run_id)

    def open(self, run_id: str) -> Collection:
        """Open a finished run, or return its open collection. Raises NotFound, `Unfinished`, and as `Known.state` does."""
        store, run = self.find(run_id)
        place = store.url, run.id
        with self._lock:
            if place in self._open:
                self._open.move_to_end(place)
                return self._open[place]
        asked = store.asked(run)
        if not asked.makes_clusters:
            raise Unfinished(f"run {run.id} has no clusters of its own" + (f". Explore run {asked.of_run}, whose clusters it uses." if asked.of_run else "."))
        state = store.state(run)
        if state != FINISHED:
            raise Unfinished(f"run {run.id} is {state}, and can be explored when it is finished.")
        with self._lock:
            collection = self._open.setdefault(place, Collection(run, self._config))
            # A collection that a request still reads stays in memory until the request ends.
            while len(self._open) > MOST_OPEN or (len(self._open) > 1 and sum(one.images_in_memory for one in self._open.values()) > MOST_IMAGES):
                self._open.popitem(last=False)
            return collection
