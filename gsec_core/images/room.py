"""A limit on the memory that threads use at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock


class Room:
    """A budget of ``total`` bytes, from which threads take what they need, and wait while it is not free.

    Requests are served in order, so that a large request does not wait forever. A request for more than ``total`` gets all of it.
    A thread that holds a part must not ask for more.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._turn = Lock()
        self._freed = Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Context manager that holds ``amount`` bytes of the budget. Waits until they are free."""
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
