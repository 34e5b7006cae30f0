"""Values that are computed at the first access, by one thread, while other threads that need them wait."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Lazy(Generic[T]):
    """A value that ``make`` computes once. If it raises, all waiting threads get the error, and the next access tries again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = Lock()
        self._future: Future[T] | None = None

    def __call__(self) -> T:
        """The value. Computes it, or waits for the thread that does."""
        future, is_new = self._begun()
        if is_new:
            self._run(future)
        return future.result()

    @property
    def made(self) -> T | None:
        """The value if it has been computed, else None."""
        future = self._future
        return None if future is None or not future.done() or future.exception() else future.result()

    def future(self) -> "Future[T]":
        """A future of the value, which another thread computes."""
        future, is_new = self._begun()
        if is_new:
            Thread(target=self._run, args=(future,), daemon=True).start()
        return future

    def _begun(self) -> "tuple[Future[T], bool]":
        with self._lock:
            is_new = self._future is None or (self._future.done() and self._future.exception() is not None)
            if is_new:
                self._future = Future()
            assert self._future is not None
            return self._future, is_new

    def _run(self, future: "Future[T]") -> None:
        try:
            future.set_result(self._make())
        except BaseException as error:  # noqa: BLE001 - all waiting threads get it
            future.set_exception(error)
