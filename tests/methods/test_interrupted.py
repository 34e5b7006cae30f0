"""What happens if a training is interrupted."""

import time
from collections.abc import Callable

import pytest

from gsec_core import TURTLE


def test_an_interrupted_training_ends_at_its_next_step() -> None:
    done = []

    def train(block: int, told: Callable[[int], None]) -> None:
        for step in range(20_000):
            time.sleep(0.01)
            told(1)
            done.append(step)

    def interrupt(steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(TURTLE(2, device="cpu").plan().side_by_side(train, range(3), interrupt))
    assert len(done) < 20_000, "no block may be trained to its end"
