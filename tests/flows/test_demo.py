"""The demonstration's images: Debian's stamps where they are installed, else crops of photographs."""

from pathlib import Path

import pytest
from PIL import Image

from flows import demo
from gsec_core.captioners.table import file_and_column
from gsec_core.sources.keyed import read_keyed


@pytest.fixture
def stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a described picture for each class, another of the same name deeper, and a mirror image, which has no description."""
    monkeypatch.setattr(demo, "STAMPS", tmp_path / "stamps")
    for folder in demo.KINDS.values():
        for name in ("one.png", "deeper/one.png", "one_mirror.png"):
            picture = tmp_path / "stamps" / folder / name
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (8, 8)).save(picture)
            if "mirror" not in name:
                picture.with_suffix(".txt").write_text(f"A thing in {folder}, “{name}”.\nde.utf8=Ein Ding\n", "utf-8")
    return tmp_path / "stamps"


def test_installed_stamps_are_clustered_with_their_own_sentences_as_captions(stamps: Path, tmp_path: Path) -> None:
    shown = demo.prepare(tmp_path / "demo")
    source = Path(shown.settings["source"])
    assert shown.settings["clusters"] == len(demo.KINDS)
    assert "22 photographs" in shown.images
    file, column = file_and_column(shown.settings["describe"]["captioner"].removeprefix("table:"))
    captions = read_keyed(file, column, setting="describe.captioner")
    images = [path.relative_to(source).as_posix() for path in source.rglob("*.png")]
    assert {image.partition("/")[0] for image in images} == demo.KINDS.keys()
    assert {image: captions.lookup(image, b"") for image in images} == {
        f"{kind}/{name}": f"A thing in {folder}, “{name}”." for kind, folder in demo.KINDS.items() for name in ("one.png", "deeper/one.png")
    }


def test_without_stamps_there_are_crops_of_photographs_and_each_call_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STAMPS", tmp_path / "none")
    monkeypatch.setattr(demo, "CROPS", 2)
    shown = demo.prepare(tmp_path / "demo")
    first = {path: path.read_bytes() for path in Path(shown.settings["source"]).rglob("*.jpg")}
    assert len(first) == 2 * demo.CLUSTERS == 2 * shown.settings["clusters"]
    next(iter(first)).unlink()
    assert demo.prepare(tmp_path / "demo") == shown
    assert {path: path.read_bytes() for path in first} == first
