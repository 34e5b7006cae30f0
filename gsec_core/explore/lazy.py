"""Values that are made when they are first asked for, by one thread, while others that ask wait."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Lazy(Generic[T]):
    """A value that ``make`` makes once. What it raises, all that wait hear, and it is tried again for the next."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = Lock()
        self._future: Future[T] | None = None

    def __call__(self) -> T:
        """The value. Waits until it is made."""
        future, is_new = self._begun()
        if is_new:
            self._run(future)
        return future.result()

    @property
    def made(self) -> T | None:
        """The value, if it is made."""
        future = self._future
        return None if future is None or not future.done() or future.exception() else future.result()

    def future(self) -> "Future[T]":
        """The value to come, which another thread makes."""
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
        except BaseException as error:  # noqa: BLE001 - all that wait get it
            future.set_exception(error)
