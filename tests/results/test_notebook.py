"""`open_run`, the view of a finished run for notebooks."""

import base64
import io
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pytest
from PIL import Image

from gsec_core import open_run, pipeline
from gsec_core.curation import add
from gsec_core.errors import NotFound, Refused
from gsec_core.results.export import export
from gsec_core.results.notebook import CLUSTERS_SHOWN, OpenRun
from gsec_core.stages.base import Context
from gsec_core.store import Store
from gsec_core.tables import MAP_TABLE

from ..explore.runs import Nights, two_nights
from ..pictures import assign_images, cluster, picture, settings, write_pictures

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "notebook.py"


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Two nights: the first with 20 pictures and 2 copies; the second has 4 more, keeps the first's model and is what `nightly` publishes."""
    return two_nights(tmp_path_factory.mktemp("notebook"))


@pytest.fixture
def run(nights: Nights) -> OpenRun:
    return open_run(nights.store, "published/nightly")


@pytest.fixture
def copied(nights: Nights, tmp_path: Path) -> Context:
    """The second run in a copy of the store, which a test can curate."""
    shutil.copytree(nights.store, tmp_path / "store")
    found = Store.open(str(tmp_path / "store")).run(nights.second.run.id)
    return Context.of(found, found.config())


# Finding a run


def test_a_run_is_found_by_its_id_or_its_beginning_or_by_its_publication(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = nights.first.run.id, nights.second.run.id
    assert [open_run(nights.store, id).id for id in (first, first[:9], "published/nightly")] == [first, first, second]
    assert open_run(nights.store, second).pipeline == "nightly"
    monkeypatch.setenv("GSEC_STORE", str(nights.store))
    assert open_run(run=first).id == first


def test_without_a_run_the_newest_is_opened_and_the_store_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, _, _ = cluster(settings(write_pictures(tmp_path / "in", range(8)), tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_run("~/store").id == context.run.id


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("published/other", r"^--run published/other: .* publishes nothing under this name; there is published/nightly\.$"),
        ("published/../runs", r"^pipeline = \.\./runs: a pipeline's name has"),
        ("0000", r"^--run 0000: there is no such run in .*\. `gsec status` lists the runs\.$"),
    ],
)
def test_a_missing_run_is_refused_in_one_sentence(nights: Nights, run: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        open_run(nights.store, run)


def test_a_store_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="it holds no finished run"):
        open_run(tmp_path / "none")
    config = settings(write_pictures(tmp_path / "in", range(8)), tmp_path / "store")
    begun, _ = pipeline.request(config)
    with pytest.raises(Refused, match="it holds no finished run"):
        open_run(tmp_path / "store")
    with pytest.raises(Refused, match=f"run {begun.id} has no complete table assignments"):
        open_run(tmp_path / "store", begun.id)


def test_importing_the_library_and_opening_a_run_do_not_load_torch(nights: Nights) -> None:
    code = f"""
import sys
import gsec_core
assert not [name for name in ("torch", "polars", "numpy") if name in sys.modules]
run = gsec_core.open_run({str(nights.store)!r}, "published/nightly")
run._repr_html_(), run.embeddings, run.duplicates, run.unusable
assert not [name for name in ("torch", "prefect") if name in sys.modules]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Frames


def test_the_frames_equal_the_tables_that_export_writes(run: OpenRun, nights: Nights, tmp_path: Path) -> None:
    export(nights.second, tmp_path)
    assert run.assignments.equals(pl.read_parquet(tmp_path / "assignments.parquet"))
    assert len(run) == len(run.assignments) == 26
    assert run.clusters["name"].to_list() == pl.read_csv(tmp_path / "clusters.csv")["name"].to_list()
    assert run.duplicates["uri"].to_list() == pl.read_csv(tmp_path / "duplicates.csv")["uri"].to_list()
    assert len(run.duplicates)
    assert run.unusable.is_empty()


def test_outliers_are_the_images_above_the_threshold_with_the_farthest_first(run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.results.notebook.OUTLYING", 1.0)
    scores = run.outliers["outlier"].to_list()
    assert scores == sorted((score for score in run.assignments["outlier"] if score > 1), reverse=True)
    assert scores


def test_embeddings_are_a_read_only_memory_map_in_the_order_of_the_assignments(run: OpenRun) -> None:
    stored = {id: vector for id, status, vector in run.table("embeddings").select("image_id", "status", "embedding").iter_rows() if status == "ok"}
    assert isinstance(run.embeddings, np.memmap)
    assert run.embeddings.shape == (26, 1280)
    for id, vector in zip(run.assignments["image_id"], run.embeddings, strict=True):
        assert np.array_equal(vector, np.asarray(stored[id], np.float16))
    with pytest.raises(ValueError, match="read-only"):
        run.embeddings[0] = 0


def test_tables_of_the_run_can_be_read_and_the_error_for_another_lists_them(run: OpenRun) -> None:
    assert set(run.table(MAP_TABLE)["image_id"]) == set(run.assignments["image_id"])
    assert len(run.table("members")), "the table must be found in the run whose model was kept"
    with pytest.raises(NotFound, match=rf"^run {run.id} has no table maps; it has alignment, assignments, baseline"):
        run.table("maps")


@pytest.mark.parametrize("frame", ["assignments", "clusters", "duplicates", "unusable"])
def test_docstrings_describe_each_column(run: OpenRun, frame: str) -> None:
    said = getattr(OpenRun, frame).__doc__
    assert {name for name in getattr(run, frame).columns if f"\n        {name} : " not in said} == set()


# Images


def test_images_of_a_cluster_are_found_by_key_and_by_name(run: OpenRun) -> None:
    for key, name in run.clusters.select("cluster_key", "name").iter_rows():
        found = run.images(key)
        assert found.equals(run.images(name))
        assert set(found["uri"]) == set(run.assignments.filter(pl.col("cluster_key") == key)["uri"])
        assert found["confidence"].is_sorted(descending=True)
    for wrong, says in ((77, "no cluster of this key"), ("zebras", "no cluster of this name")):
        with pytest.raises(NotFound, match=rf"^cluster {wrong}: run {run.id} has {says}. run.clusters has all of them"):
            run.images(wrong)


def test_images_are_read_from_the_source_and_thumbnails_from_the_store(run: OpenRun, nights: Nights) -> None:
    rows = run.assignments.filter(pl.col("uri").is_in(["003.jpg", "020.jpg"]))
    for uri, thumbnail in zip(rows["uri"], run.thumbnails(rows), strict=True):
        assert run.read(uri) == (nights.source / uri).read_bytes()
        exact = np.asarray(picture(int(uri[:3])), int)
        for found in (run.open(uri), thumbnail):
            assert found is not None
            assert abs(np.asarray(found, int) - exact).mean() < 5
    with pytest.raises(NotFound, match=rf"^nothing.jpg: run {run.id} has no image of this URI"):
        run.read("nothing.jpg")
    with pytest.raises(Refused, match=r"no column image_id: give rows of run\.assignments"):
        run.thumbnails(rows.select("uri"))


def test_a_missing_or_changed_image_is_an_error_but_its_thumbnail_is_there(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(8))
    cluster(settings(folder, tmp_path / "store"))
    found = open_run(tmp_path / "store")
    (folder / "003.jpg").unlink()
    picture(99).save(folder / "004.jpg")
    for uri, says in (("003.jpg", "the source no longer has it"), ("004.jpg", "the file has changed since it was clustered")):
        with pytest.raises(NotFound, match=rf"^{uri}: {says}"):
            found.open(uri)
    shutil.rmtree(folder)
    assert None not in found.thumbnails(found.assignments)


# HTML


class Shown(HTMLParser):
    """A parser that collects a page's texts, tags and embedded pictures, and fails for scripts and external files."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[Image.Image] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href"):
                found = re.fullmatch(r"data:image/jpeg;base64,(.*)", str(value))
                assert found, value
                self.pictures.append(Image.open(io.BytesIO(base64.b64decode(found[1]))))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_html_of_a_run_shows_its_clusters_with_three_pictures_each(run: OpenRun) -> None:
    page = run._repr_html_()
    shown = Shown(page)
    assert len(shown.pictures) == 3 * len(run.clusters)
    for text in ("nightly", f", published, run {run.id}", "26 images in 2 clusters, method gsec, encoder lite"):
        assert text in shown.texts
    assert {"key", "name", "images", "confidence", *run.clusters["name"]} <= set(shown.texts)
    surest = run.thumbnails(run.images(0).head(3))
    drawn = [picture.tobytes() for picture in shown.pictures]
    assert all(picture is not None and picture.tobytes() in drawn for picture in surest)
    assert len(page) < 50_000
    assert repr(run) == f"<gsec run {run.id}: 26 images in 2 clusters>"


def test_of_many_clusters_only_the_largest_are_shown(run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CLUSTERS_SHOWN >= 10
    monkeypatch.setattr("gsec_core.results.notebook.CLUSTERS_SHOWN", 1)
    shown = Shown(run._repr_html_())
    assert len(shown.pictures) == 3
    assert "and 1 smaller clusters" in shown.texts


def test_a_gallery_shows_the_pictures_of_given_rows_up_to_a_limit(run: OpenRun) -> None:
    shown = Shown(run.gallery(run.assignments, most=5)._repr_html_())
    assert len(shown.pictures) == 5
    assert "and 21 more" in shown.texts
    assert len(Shown(run.gallery(run.duplicates)._repr_html_()).pictures) == len(run.duplicates)
    assert len(Shown(run.gallery(run.duplicates.to_pandas())._repr_html_()).pictures) == len(run.duplicates)


def test_curation_is_seen_when_the_run_is_opened_again(copied: Context) -> None:
    before = open_run(copied.run.files.url, copied.run.id)
    model = before.assignments
    add(copied, "rename", who="ann", key=0, text="<b>discs</b> & more")
    add(copied, "hide", who="ann", images=[before.images(0)["image_id"][0].hex()])
    assert before.assignments.equals(model)
    now = open_run(copied.run.files.url, copied.run.id)
    assert now.assignments["hidden"].sum() == 1
    assert len(now.images("<b>discs</b> & more")) == len(before.images(0)) - 1
    assert len(now.images(0, hidden=True)) == len(before.images(0))
    shown = Shown(now._repr_html_())
    assert "<b>discs</b> & more" in shown.texts
    assert shown.tags.count("b") == 1
    assert "26 images in 2 clusters, 1 hidden, method gsec, encoder lite" in shown.texts
    assert Shown(now.gallery(now.images(0))._repr_html_()).tags.count("b") == 0
    add(copied, "merge", who="ann", key=0, keys=[1])
    with pytest.raises(NotFound, match=r"^cluster 1 is part of cluster 0 now"):
        open_run(copied.run.files.url, copied.run.id).images(1)


def test_a_run_that_assigns_is_opened_with_the_clusters_of_its_model(copied: Context, tmp_path: Path) -> None:
    asked = assign_images(copied, settings(write_pictures(tmp_path / "new", range(30, 34)), copied.config.store)).run
    found = open_run(copied.config.store, asked.id)
    assert (len(found), found.embeddings.shape) == (4, (4, 1280))
    assert found.clusters.equals(open_run(copied.config.store, copied.run.id).clusters)
    assert len(Shown(found._repr_html_()).pictures) == min(4, 6)
    with pytest.raises(Refused, match=f"^run {asked.id} has no table duplicates: it assigns"):
        _ = found.duplicates


def test_a_run_in_a_store_on_s3_can_be_opened(nights: Nights, bucket: str) -> None:
    fs, root = fsspec.url_to_fs(f"{bucket}/store")
    fs.put(str(nights.store), root, recursive=True)
    found = open_run(f"{bucket}/store", "published/nightly")
    assert np.array_equal(found.embeddings, open_run(nights.store, "published/nightly").embeddings)
    assert len(Shown(found._repr_html_()).pictures) == 6


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on a store in the place where `make demo` makes one."""
    cluster(settings(write_pictures(tmp_path / "in", range(20)), tmp_path / "gsec-demo" / "store", clusters=3))
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLE))
    assert names["nearest"]["uri"][0] == names["images"]["uri"][0], "an image must be most similar to itself"
    assert names["picture"].size == (64, 48)
