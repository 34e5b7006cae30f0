"""Real kills of the real command as training and alignment work; `python -m tests.kills` does many, at any moment."""

from pathlib import Path

import pytest

from ..command import SMALL
from ..kills import prove_at
from ..pictures import write_pictures


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("align", ["gsec.max_steps=150", "gsec.tol=0"]),
        ("train", ["method=tac", "tac.max_steps=40", "text.vocabulary=imagenet"]),
    ],
)
def test_killed_it_ends_with_the_labels_of_an_undisturbed_run(
    stage: str, settings: list[str], tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server)
    source = write_pictures(tmp_path / "in", range(40))
    given = [part for setting in settings for part in ("--set", setting)]
    prove_at(source, [stage], seed=2, settings=["-k", "5", *SMALL, *given], directory=tmp_path)
