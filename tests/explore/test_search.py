"""The search for images by an image, by an upload or by words."""

import io
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.explore import Collection, ImageRow, collection, vectors
from gsec_core.stages import encode, vocabulary
from gsec_core.stages.canonical import load_joint, usable

from ..pictures import cluster, settings, write_pictures
from .examples import by_uri, embeddings
from .runs import Nights


def test_images_like_an_image_are_ranked_by_cosine(second: Collection) -> None:
    vectors = embeddings(second.context)
    id = by_uri(second, "011.jpg")
    page = second.like(id, offset=2, limit=9)
    ranked = sorted((uri for uri in vectors if uri != "011.jpg"), key=lambda uri: -float(vectors[uri] @ vectors["011.jpg"]))
    assert [row.uri for row in page.rows] == ranked[2:11]
    assert page.total == len(second) - 1


def test_images_like_an_upload_begin_with_itself(nights: Nights, second: Collection) -> None:
    page = second.like_upload((nights.source / "012.jpg").read_bytes(), limit=5)
    assert page.rows[0].uri == "012.jpg"
    assert page.rows[0].cosine == pytest.approx(1, abs=2e-3)
    again = second.like(page.rows[0].id, limit=4)
    assert [row.uri for row in again.rows] == [row.uri for row in page.rows[1:]]


def test_pages_of_equally_near_images_have_each_image_once(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(8))
    for number in range(60):
        shutil.copy(source / "000.jpg", source / f"copy-{number:02d}.jpg")
    found = Collection(cluster(settings(source, tmp_path / "store"))[0].run)
    id = by_uri(found, "000.jpg")
    pages = [found.like(id, offset=offset, limit=7) for offset in range(0, 70, 7)]
    assert len({row.id for page in pages for row in page.rows}) == pages[0].total == 67


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_an_upload_that_is_no_image_is_refused(first: Collection, data: bytes) -> None:
    with pytest.raises(Refused, match="cannot be used"):
        first.like_upload(data)


def test_an_upload_of_too_many_pixels_is_refused_by_its_header(first: Collection) -> None:
    image = Image.new("1", (30_000, 30_000))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with pytest.raises(Refused, match="larger than"):
        first.like_upload(buffer.getvalue())


def test_a_search_by_words_ranks_images_by_the_encoders_text_embedding(second: Collection) -> None:
    encoder = encode.STAGE.load(second.context.config)
    [vector] = vocabulary.embedded(encoder, [["a photo of a ping-pong ball"]])
    rows = usable(second.context).rows["uri"].to_pylist()
    cosines = load_joint(second.context).astype(np.float32) @ vector
    page = second.by_words("  ping-pong   ball ", limit=10)
    assert [row.uri for row in page.rows] == [rows[place] for place in np.argsort(-cosines, kind="stable")[:10]]
    assert page.note is not None
    assert "ImageNet" in page.note
    assert "may show anything" not in page.note
    assert "may show anything" in str(second.by_words("the smell of rain on a Tuesday").note)


@pytest.mark.parametrize("text", ["", "   ", "word " * 200])
def test_empty_or_too_long_words_are_refused(first: Collection, text: str) -> None:
    with pytest.raises(Refused, match="search"):
        first.by_words(text)


def test_concurrent_searches_build_only_one_index(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Counted(vectors.Vectors):
        def __init__(self, table: vectors.Embeddings, column: str, n: int, config: PipelineConfig) -> None:
            made.append(column)
            super().__init__(table, column, n, config)

    monkeypatch.setattr(collection, "Vectors", Counted)
    fresh = Collection(nights.second.run, nights.config)
    id = by_uri(fresh, "001.jpg")
    found: list[tuple[ImageRow, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(fresh.like(id).rows)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["embedding"]
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_quantised_index_finds_nearly_the_exact_results(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    X = random.standard_normal((5000, 64)).astype(np.float32)
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float16)

    class Table(vectors.Embeddings):
        def __init__(self) -> None:
            pass

        def vectors(self, column: str) -> object:  # type: ignore[override]
            return ((np.arange(start, start + 500), X[start : start + 500]) for start in range(0, 5000, 500))

    monkeypatch.setattr(vectors, "_EXACT_BYTES", 0)
    monkeypatch.setattr(vectors, "_SEGMENT_ROWS", 1500)
    index = vectors.Vectors(Table(), "embedding", len(X), PipelineConfig(threads=2))
    cosines = X.astype(np.float32) @ X[7].astype(np.float32)
    out = np.zeros(len(X), bool)
    out[np.argsort(-cosines)[1:4]] = True
    found = index.search(X[7:8], 100, out)
    wanted = np.argsort(-np.where(out, -2, cosines))[:100]
    assert found.rows[0] == 7
    assert not out[found.rows].any()
    assert len(set(found.rows) & set(wanted)) >= 95
    np.testing.assert_allclose(found.cosines, cosines[found.rows], atol=4e-3)


def test_without_a_scratch_folder_the_message_names_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")

    class Unit:
        def vectors(self, column: str) -> list[tuple[np.ndarray, np.ndarray]]:
            return [(np.arange(2), np.eye(2, dtype=np.float16))]

    with pytest.raises(Refused, match='scratch = "/nowhere": no file can be made there'):
        vectors.Vectors(Unit(), "embedding", 2, PipelineConfig())  # type: ignore[arg-type]


def test_torch_is_not_imported_before_the_first_search(nights: Nights) -> None:
    code = f"""
import sys
from gsec_core.explore import Collection
from gsec_core.store import Store
found = Collection(Store.open({str(nights.store)!r}).run({nights.second.run.id!r}))
rows = found.images(found.clusters()[0].key, within=[(0, 0), (1, 0), (1, 1)]).rows
assert found.thumbnail(found.images().rows[0].id)
found.duplicates(), found.map_points(), found.curation()
loaded = {{"torch", "faiss", "open_clip", "sentence_transformers"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)
