"""`Room`, the bound on bytes in use at once, with real threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gsec_core.images.room import Room


def most_at_once(amounts: list[int], total: int, threads: int) -> tuple[int, int]:
    """The most bytes, and the most holders, that had room at once."""
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
def test_no_more_bytes_than_the_total_are_in_use_at_once(threads: int) -> None:
    amounts = np.random.default_rng(0).integers(1, 100, 300).tolist()
    assert most_at_once(amounts, 100, threads)[0] <= 100


def test_small_amounts_are_in_use_together() -> None:
    assert most_at_once([1] * 200, 100, 8)[1] > 1


def test_an_amount_larger_than_the_total_is_in_use_alone() -> None:
    assert most_at_once([1000] * 20, 100, 8) == (1000, 1)


def test_a_large_request_is_served_before_later_small_ones() -> None:
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
        while not room._turn.locked():  # the large request has its turn and waits for its bytes
            large.wait(0.01)
        second = threading.Thread(target=take, args=("small", 1, later))
        second.start()
        later.wait(60)
        threading.Event().wait(0.05)
        assert order == []
    first.join(60)
    second.join(60)
    assert order == ["large", "small"]


def test_the_room_is_given_back_after_an_error() -> None:
    room = Room(10)
    for _ in range(3):
        with pytest.raises(RuntimeError), room.taken(10):
            raise RuntimeError
    with room.taken(10):
        pass
