"""Real kills of the real command as training and alignment work; `python -m tests.kills` does many, at any moment."""

from pathlib import Path

import pytest

from ..command import SMALL
from ..kills import prove_at
from ..pictures import write_pictures


def test_killed_in_train_and_in_align_it_ends_with_the_labels_of_an_undisturbed_run(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server)
    source = write_pictures(tmp_path / "in", range(40))
    settings = ["-k", "5", *SMALL, "--set", "gsec.max_steps=150", "--set", "gsec.tol=0"]
    prove_at(source, ["train", "align"], seed=2, settings=settings, directory=tmp_path)
