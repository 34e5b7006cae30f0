"""A bound on bytes in flight, by real threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gsec_core.images.room import Room


def most_at_once(amounts: list[int], total: int, threads: int) -> tuple[int, int]:
    """The most bytes, and the most holders, that were under way at once."""
    room, lock = Room(total), threading.Lock()
    now: list[int] = []
    seen: list[tuple[int, int]] = []

    def take(amount: int) -> None:
        with room.taken(amount):
            with lock:
                now.append(amount)
                seen.append((sum(now), len(now)))
            threading.Event().wait(0.001)
            with lock:
                now.remove(amount)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(take, amounts, timeout=60))
    return max(bytes for bytes, _ in seen), max(count for _, count in seen)


@pytest.mark.parametrize("threads", [1, 6, 32])
def test_no_more_than_the_total_is_under_way(threads: int) -> None:
    amounts = np.random.default_rng(0).integers(1, 100, 300).tolist()
    assert most_at_once(amounts, 100, threads)[0] <= 100


def test_many_small_ones_are_under_way_together() -> None:
    assert most_at_once([1] * 200, 100, 8)[1] > 1


def test_what_is_larger_than_the_total_goes_alone() -> None:
    assert most_at_once([1000] * 20, 100, 8) == (1000, 1)


def test_who_wants_much_comes_before_those_who_ask_later() -> None:
    room = Room(10)
    order: list[str] = []
    large, later = threading.Event(), threading.Event()

    def take(name: str, amount: int, begun: threading.Event) -> None:
        begun.set()
        with room.taken(amount):
            order.append(name)

    with room.taken(5):
        first = threading.Thread(target=take, args=("large", 10, large))
        first.start()
        while not room._turn.locked():  # it waits for its turn's bytes
            large.wait(0.01)
        second = threading.Thread(target=take, args=("small", 1, later))
        second.start()
        later.wait(5)
        threading.Event().wait(0.05)
        assert order == []
    first.join(5)
    second.join(5)
    assert order == ["large", "small"]


def test_an_error_gives_the_room_back() -> None:
    room = Room(10)
    for _ in range(3):
        with pytest.raises(RuntimeError), room.taken(10):
            raise RuntimeError
    with room.taken(10):
        pass
