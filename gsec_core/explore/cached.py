"""A cache of shards, for readers that need single rows of them."""

from collections import OrderedDict
from threading import Lock

import pyarrow as pa

from gsec_core.store import Shards

KEPT_BYTES = 32 * 2**20


class CachedShards:
    """The shards of a table, with the most recently used ones in memory: up to ``kept_bytes``, or a single larger one."""

    def __init__(self, shards: Shards, kept_bytes: int = KEPT_BYTES) -> None:
        self.shards = shards
        self._most = kept_bytes
        self._kept: OrderedDict[str, pa.Table] = OrderedDict()
        self._lock = Lock()

    def read(self, name: str) -> pa.Table:
        """All rows of a shard. Raises BadShard, or FileNotFoundError if there is no such shard."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        table = self.shards.read(name)
        with self._lock:
            self._kept[name] = table
            self._kept.move_to_end(name)
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._most:
                self._kept.popitem(last=False)
        return table
