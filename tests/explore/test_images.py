"""The details of one image: its neighbours, second choice, duplicates and history."""

import io
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gsec_core.explore import Collection, collection, vectors
from gsec_core.stages import align, encode
from gsec_core.stages.canonical import usable
from gsec_core.tables import DUPLICATES_TABLE

from .examples import by_uri, embeddings, everything
from .runs import Nights


def test_neighbors_are_the_nearest_by_cosine(second: Collection) -> None:
    vectors = embeddings(second.context)
    detail = second.image(by_uri(second, "021.jpg"), wait=60)
    assert not detail.pending
    cosines = {uri: float(vector @ vectors["021.jpg"]) for uri, vector in vectors.items() if uri != "021.jpg"}
    assert [row.uri for row in detail.neighbors] == sorted(cosines, key=lambda uri: -cosines[uri])[: collection.NEIGHBORS]
    for row in detail.neighbors:
        assert row.cosine == pytest.approx(cosines[row.uri], abs=2e-3)
    assert (detail.width, detail.height) == (64, 48)


def test_the_second_choice_of_an_image_is_that_of_the_head(nights: Nights, second: Collection) -> None:
    """It is computed as in `assign`, since a run that keeps its model has made no counterparts."""
    predicted = align.predicted(nights.first, nights.second, np.arange(len(second)))
    assert set(predicted[0].tolist()) == {0, 1}
    keys = [row.key for row in sorted(second.clusters(), key=lambda row: row.key)]
    for uri in ("000.jpg", "020.jpg"):
        detail = second.image(by_uri(second, uri), wait=60)
        assert detail.second is not None
        assert detail.second[0] == next(key for key in keys if key != detail.model_key)
    row = usable(second.context).rows["uri"].to_pylist().index("020.jpg")
    one = second._embeddings[encode.STAGE.name]().of(row)
    posteriors = second._load_model().posteriors(one["embedding"], one["joint"], None)
    assert posteriors.max() == pytest.approx(predicted[1][row], abs=1e-3)


def test_without_waiting_an_image_has_no_neighbors_yet_and_is_pending(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()

    class Slow(vectors.Vectors):
        def __init__(self, *given: Any) -> None:
            assert looked.wait(60)
            super().__init__(*given)

    monkeypatch.setattr(collection, "Vectors", Slow)
    fresh = Collection(nights.second.run, nights.config)
    detail = fresh.image(by_uri(fresh, "003.jpg"), wait=0)
    assert detail.pending
    assert not detail.neighbors
    assert detail.row.uri == "003.jpg"
    looked.set()
    assert fresh.image(detail.row.id, wait=60).neighbors


def test_an_image_has_its_caption_duplicates_and_history(nights: Nights, second: Collection) -> None:
    captioned = [detail for row in everything(second) if (detail := second.image(row.id, wait=60)).caption]
    assert captioned
    assert all("image" in str(detail.caption).lower() for detail in captioned)
    detail = second.image(by_uri(second, "003.jpg"), wait=60)
    assert {row.uri for row in detail.duplicates} >= {"copy of 003.jpg", "nearly 003.jpg"}
    assert detail.row.id not in [row.id for row in detail.duplicates]
    vectors = embeddings(second.context)
    for uri in ("003.jpg", "nearly 003.jpg"):  # whichever of them is the one to keep
        for row in second.image(by_uri(second, uri), wait=60).duplicates:
            assert row.cosine == pytest.approx(float(vectors[uri] @ vectors[row.uri]), abs=2e-3)
    assert [past.run_id for past in detail.history] == [nights.second.run.id, nights.first.run.id]
    assert {past.key for past in detail.history} == {detail.model_key}
    assert [past.run_id for past in second.image(by_uri(second, "020.jpg"), wait=60).history] == [nights.second.run.id]


def test_groups_of_duplicates_are_those_of_the_table(second: Collection) -> None:
    shards, names = second.run.table(DUPLICATES_TABLE)
    wanted: dict[int, list[tuple[str, bool, bool]]] = {}
    for row in shards.read(names[0]).to_pylist():
        wanted.setdefault(row["group"], []).append((row["uri"], row["exact"], row["keep"]))
    found = second.duplicates()
    assert {group.number: [(one.row.uri, one.exact, one.keep) for one in group.images] for group in found.groups} == wanted
    assert (found.total, found.images, found.note) == (len(wanted), sum(map(len, wanted.values())), None)
    assert all(group.size == len(group.images) for group in found.groups)
    assert [group.exact for group in found.groups] == [sum(exact for _, exact, _ in wanted[group.number]) for group in found.groups]
    assert second.duplicates(offset=1, limit=1).groups == found.groups[1:2]


def test_a_group_of_which_not_all_images_are_listed_is_counted_whole(second: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = second.duplicates()
    monkeypatch.setattr(collection, "MOST_SHOWN", 1)
    found = second.duplicates()
    assert all(len(group.images) == 1 for group in found.groups)
    assert [(group.size, group.exact) for group in found.groups] == [(group.size, group.exact) for group in whole.groups]
    assert max(group.exact for group in found.groups) > 1


def test_without_the_table_of_duplicates_only_exact_copies_are_found(copied: Collection) -> None:
    fingerprint = copied.run.stages()["duplicates"]["fingerprint"]
    shutil.rmtree(Path(copied.run.files.url) / copied.context.corpus.name / DUPLICATES_TABLE / fingerprint)
    found = copied.duplicates()
    assert [[(one.row.uri, one.keep) for one in group.images] for group in found.groups] in (
        [[("003.jpg", True), ("copy of 003.jpg", False)], [("007.jpg", True), ("copy of 007.jpg", False)]],
        [[("007.jpg", True), ("copy of 007.jpg", False)], [("003.jpg", True), ("copy of 003.jpg", False)]],
    )
    assert "same bytes" in str(found.note)
    [twin] = copied.image(by_uri(copied, "007.jpg"), wait=60).duplicates
    assert (twin.uri, twin.cosine) == ("copy of 007.jpg", pytest.approx(1, abs=2e-3))


def test_thumbnails_of_images_are_read(second: Collection) -> None:
    for row in everything(second)[:5]:
        data = second.thumbnail(row.id)
        assert data is not None
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (64, 48)
