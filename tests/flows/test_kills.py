"""A few seeded kills of the real command; `python -m tests.kills` does many."""

from pathlib import Path

from ..command import SMALL
from ..kills import prove
from ..pictures import write_pictures


def test_killed_and_started_again_it_ends_with_the_labels_of_an_undisturbed_run(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(80))
    rounds = prove(source, times=2, seed=2, settings=["-k", "5", *SMALL], directory=tmp_path)
    assert sum(bool(attempt.killed) for round in rounds for attempt in round.attempts) == 2
