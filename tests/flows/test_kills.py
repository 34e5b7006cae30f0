"""Real kills of the real command as training and as alignment work; `python -m tests.kills` does many, at any moment."""

from pathlib import Path

import pytest

from ..command import SMALL
from ..kills import prove_at
from ..pictures import write_pictures

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "grey", "orange")


def test_killed_it_ends_with_the_labels_of_an_undisturbed_run(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server)
    source = write_pictures(tmp_path / "in", range(40))
    (tmp_path / "words.txt").write_text("\n".join(f"{size} {colour} disc" for size in ("small", "large") for colour in COLOURS))
    tac = ["method=tac", "tac.max_steps=40", "train.n_members=4", f"text.vocabulary=file:{tmp_path / 'words.txt'}"]
    given = [part for setting in tac for part in ("--set", setting)]
    prove_at(source, ["train", "align"], seed=2, settings=["-k", "5", *SMALL, *given], directory=tmp_path)
