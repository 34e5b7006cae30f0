"""A bound on what is in memory at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock


class Room:
    """``total`` bytes, of which threads take what they need and wait while it is not free.

    First come, first served: nobody who wants much waits behind others for ever. Who wants more than all of it has all of it, alone.
    A thread that has room must not ask for more.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._turn = Lock()
        self._freed = Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        amount = min(amount, self.total)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._freed:
                self._free += amount
                self._freed.notify_all()
