"""What a log has of progress, where stderr is no terminal."""

import pytest

from flows import terminal


def test_lines_come_now_and_then_and_estimate_only_what_they_have_seen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    lines = terminal.Lines()
    lines.begin("encode", 480, "images", 0)
    for seconds, by in ((19, 1), (5, 60), (5, 60), (1, 60), (30, 299)):
        now += seconds
        lines.advance("encode", by)
    assert capsys.readouterr().err.splitlines() == [
        "encode: 480 images to work on",
        "encode: 1 of 480 images",  # 19 seconds to load a model are no rate
        "encode: 121 of 480 images, 12/s, 30 s left",
        "encode: 480 of 480 images, 12/s, 0 s left",
    ]
    lines.begin("encode", 10, "images", 3)
    assert capsys.readouterr().err == "encode: 10 images to work on, 3 shards were there\n"
