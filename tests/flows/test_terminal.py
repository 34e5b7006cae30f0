"""The display of progress: bars on a terminal, lines in a log."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows import terminal
from gsec_core import pipeline

from ..command import wait


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test can change. It is that of this module alone: an event loop in another thread might wait for hours."""
    now = [1000.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_log_has_a_line_every_ten_seconds_of_a_stage_and_one_at_its_end(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = terminal.Lines()
    lines.begin("encode", 480, "images", 0)
    heard = {15: 1, 20: 60, 25: 60, 40: 120}
    for second in range(1, 46):
        clock[0] = 1000 + second
        if second in heard:
            lines.advance("encode", heard[second])
        lines.look()
    lines.end("encode", {"shards": 1, "there": 0, "seconds": 46.3, "ok": 480, "rejected": 2, "copied": 0})
    assert capsys.readouterr().err.splitlines() == [
        "encode      compute embeddings                 0 of 480 images",
        "encode      compute embeddings                 61 of 480 images",  # the first 15 seconds loaded a model, so there is no rate yet
        "encode      compute embeddings                 121 of 480 images, 8/s, 45 s left",
        "encode      compute embeddings                 241 of 480 images, 10/s, 25 s left",
        "encode      compute embeddings                 480 images, 46 s, 2 rejected",
    ]
    clock[0] += 60
    lines.look()
    assert capsys.readouterr().err == "", "without a working stage nothing must be printed"


def test_a_stage_of_unknown_size_has_lines_too(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    lines = terminal.Lines()
    lines.begin("ingest", 0, "images", 0)
    clock[0] += 10
    lines.look()
    lines.end("ingest", {"images": 21, "added": 0, "changed": 1, "deleted": 20, "seconds": 12.0})
    assert capsys.readouterr().err.splitlines() == [
        "ingest      list the images                    at it for 10 s",
        "ingest      list the images                    21 images, 12 s, 1 changed, 20 deleted",
    ]


def test_the_last_line_of_a_stage_counts_the_shards_that_were_there_before(capsys: pytest.CaptureFixture[str]) -> None:
    lines = terminal.Lines()
    lines.begin("encode", 10, "images", 1)
    lines.end("encode", {"seconds": 0.04})
    lines.begin("align", 480, "images", 1)
    lines.begin("align", 0, "images", 2)  # the size of its last step is unknown
    lines.end("align", {"seconds": 0.4})
    assert capsys.readouterr().err.splitlines() == [
        "encode      compute embeddings                 10 images, 0.0 s, 1 shard was there",
        "align       make the consensus                 480 images, 0.4 s, 3 shards were there",
    ]


def drawn(bars: terminal.Bars, output: io.StringIO) -> list[str]:
    """The text of the rows, without the drawn bars."""
    output.truncate(output.seek(0))
    bars.progress.console.print(bars.progress)
    return [" ".join(re.sub("[━╸╺]", "", row).split()) for row in output.getvalue().splitlines()]


def test_bars_show_a_rate_only_after_the_first_images_and_end_with_the_result(clock: list[float]) -> None:
    output = io.StringIO()
    bars = terminal.Bars(Console(file=output, width=80))
    bars.begin("encode", 480, "images", 0)
    bars.advance("encode", 64)
    assert drawn(bars, output) == ["encode 64 of 480 images"], "after only the first images no rate can be shown"
    clock[0] += 4
    bars.advance("encode", 64)
    assert drawn(bars, output) == ["encode 128 of 480 images 16/s, 22 s left"]
    bars.end("encode", {"seconds": 31.2, "missing": 1})
    bars.begin("report", 0, "images", 0)
    bars.begin("report", 0, "images", 2)
    bars.end("report", {"seconds": 0.5})
    assert drawn(bars, output) == ["encode 480 of 480 images 31 s, 1 missing", "report 0.5 s, 2 shards were there"]


def test_a_wide_terminal_shows_what_each_stage_does() -> None:
    output = io.StringIO()
    bars = terminal.Bars(Console(file=output, width=120))
    bars.begin("train", 200, "steps", 0)
    assert drawn(bars, output) == ["train train the ensemble 0 of 200 steps"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.26, "0.3 s"), (9.97, "10 s"), (99.4, "99 s"), (150, "2 min"), (5400, "90 min"), (6060, "1 h 41 min"), (200_000, "2 d 7 h")]
)
def test_durations_are_shown_in_fitting_units(seconds: float, said: str) -> None:
    assert terminal.duration(seconds) == said


def test_every_stage_has_a_short_description() -> None:
    assert set(terminal.DOES) == {"ingest", *(stage.name for stage in pipeline.ALL_STAGES)}
    assert max(map(len, terminal.DOES.values())) <= terminal.DOES_WIDTH


def test_without_a_terminal_lines_are_printed_on_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.Lines, "SECONDS", 0.0)
    with terminal.watcher() as watcher:
        watcher.begin("encode", 2, "images", 0)
        wait(lambda: "0 of 2 images" in capsys.readouterr().err, 300)
