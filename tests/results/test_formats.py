"""The export in formats of other libraries, read back by those libraries if they are installed."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import datasets
import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

from gsec_core import pipeline
from gsec_core.curation import Act, add, log_of
from gsec_core.errors import GsecError, Refused
from gsec_core.images.decode import decode
from gsec_core.results import formats, images
from gsec_core.results.formats import Format, huggingface, labelled
from gsec_core.results.frames import Frames
from gsec_core.stages.base import Context
from gsec_core.store import Store
from gsec_core.tables import REPRESENTATIVE_CAPTIONS_TABLE

from ..pictures import assign_images, cluster, picture, settings, write_pictures
from ..sources.examples import png, write_parquet

ALL: tuple[Format, ...] = get_args(Format)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Context]:
    """A folder with 20 pictures, two more whose names must be escaped, and a bad file; and a run on it."""
    top = tmp_path_factory.mktemp("formats")
    folder = write_pictures(top / "in", range(20))
    (folder / "a b").mkdir()
    picture(50).save(folder / "a b" / "000.jpg")
    picture(51).save(folder / "100%#.png")
    (folder / "bad.jpg").write_text("no image")
    context, _, _ = cluster(settings(folder, top / "store", clusters=3))
    return folder, context


@pytest.fixture
def curated(place: tuple[Path, Context]) -> Iterator[tuple[Path, Context]]:
    """The same run with two clusters of one name, a hidden cluster and a hidden image. The curation is removed after the test."""
    context = place[1]
    add(context, "rename", who="ann", key=0, text="discs")
    add(context, "hide", who="ann", key=2)
    # As if it had been logged while there was no cluster 0, since equal names are refused.
    log_of(context).append(lambda _: Act("rename", "ann", "2026-01-01T00:00:00+00:00", key=1, text="discs"))
    shown = Frames(context).shown
    add(context, "hide", who="ann", images=[shown["image_id"][0].hex()])
    log = Path(context.run.files.url) / "curation"
    yield place
    for path in log.rglob("*.json"):
        path.unlink()


def load_dataset(folder: Path, cache: Path) -> Any:
    return datasets.load_dataset(str(folder), cache_dir=str(cache))["train"]


def expected(context: Context) -> dict[str, tuple[str, float]]:
    """URI -> the name of the image's cluster and its confidence."""
    rows = Frames(context).shown.select("uri", "name", "confidence").iter_rows()
    return {uri: (name, confidence) for uri, name, confidence in rows}


def test_a_hugging_face_dataset_has_the_images_with_their_classes(place: tuple[Path, Context], tmp_path: Path) -> None:
    folder, context = place
    assert formats.write(context, tmp_path / "out", "huggingface") == {"data": 22, "lost": 0}
    found = load_dataset(tmp_path / "out", tmp_path / "cache")
    named = Counter(found["uri"])
    assert set(named) == set(expected(context))
    assert set(named.values()) == {1}
    names = found.features["label"].names
    assert names == Frames(context).clusters["name"].to_list()
    for row in found:
        assert (row["name"], row["confidence"]) == expected(context)[row["uri"]]
        assert names[row["label"]] == row["name"]
        path = folder / row["uri"].replace("%25", "%").replace("%23", "#")
        assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(path)))
        assert row["image"].format == ("PNG" if path.suffix == ".png" else "JPEG")
    assert next(iter(datasets.load_dataset(str(tmp_path / "out"), streaming=True)["train"]))["image"].size == (64, 48)


def test_a_dataset_is_written_in_shards_of_small_row_groups(place: tuple[Path, Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_AT_ONCE", 3)
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 8_000)
    formats.write(place[1], tmp_path / "out", "huggingface")
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert len(files) > 2
    assert [file.name for file in files] == [f"train-{number:05d}-of-{len(files):05d}.parquet" for number in range(len(files))]
    footers = [pq.read_metadata(file) for file in files]
    assert max(footer.row_group(group).num_rows for footer in footers for group in range(footer.num_row_groups)) == 3
    assert sorted(load_dataset(tmp_path / "out", tmp_path / "cache")["uri"]) == sorted(expected(place[1]))


def test_images_are_read_in_parts_of_limited_bytes(place: tuple[Path, Context], monkeypatch: pytest.MonkeyPatch) -> None:
    context, largest = place[1], max(context_sizes(place[1]))
    monkeypatch.setattr(images, "_BYTES_AT_ONCE", 2 * largest)
    source, shown = context.open_source(), Frames(context).shown
    parts = [[len(data) for data in found] for _, found in images.read_images(context, source, shown)]
    assert sum(map(len, parts)) == len(shown)
    assert max(map(sum, parts)) <= 2 * largest
    monkeypatch.setattr(images, "_BYTES_AT_ONCE", 1)
    assert [len(found) for _, found in images.read_images(context, source, shown)] == [1] * len(shown)


def context_sizes(context: Context) -> list[int]:
    sizes: list[int] = context.live["size_bytes"].to_pylist()
    return sizes


def test_a_killed_export_leaves_no_dataset_and_can_be_repeated(place: tuple[Path, Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as at_the_end:
        at_the_end.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            formats.write(place[1], tmp_path, "huggingface")
    assert [path.name for path in tmp_path.iterdir()] == [".data.partial"]
    assert formats.write(place[1], tmp_path, "huggingface")["data"] == 22
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "data"]
    with pytest.raises(Refused, match=r"^--to .*data exists already, and may belong to another run"):
        formats.write(place[1], tmp_path, "huggingface")


def test_coco_has_one_category_per_cluster_and_one_annotation_per_image(place: tuple[Path, Context], tmp_path: Path) -> None:
    folder, context = place
    assert formats.write(context, tmp_path, "coco") == {"annotations.json": 22, "lost": 0}
    coco = COCO(str(tmp_path / "annotations.json"))
    assert {row["id"]: row["name"] for row in coco.loadCats(coco.getCatIds())} == dict(Frames(context).clusters.select("cluster_key", "name").iter_rows())
    found = {}
    for row in coco.loadImgs(coco.getImgIds()):
        [annotation] = coco.loadAnns(coco.getAnnIds(imgIds=[row["id"]]))
        with Image.open(folder / row["file_name"]) as image:
            assert (row["width"], row["height"]) == image.size
            assert annotation["bbox"] == [0, 0, *image.size]
        found[row["file_name"]] = (coco.cats[annotation["category_id"]]["name"], annotation["score"])
    assert found == {uri.replace("%25", "%").replace("%23", "#"): said for uri, said in expected(context).items()}


@pytest.mark.parametrize("kind", ["links", "copies"])
def test_the_annotations_name_exactly_the_exported_images(place: tuple[Path, Context], tmp_path: Path, kind: images.Images) -> None:
    for format in ("coco", "fiftyone"):
        written = formats.write(place[1], tmp_path / format, format, kind)  # type: ignore[arg-type]
        assert (written["images"], written["lost"]) == (22, 0)
    named = [tmp_path / "coco" / row["file_name"] for row in json.loads((tmp_path / "coco" / "annotations.json").read_text())["images"]]
    manifest = json.loads((tmp_path / "fiftyone" / "data.json").read_text())
    assert sorted(named) == sorted((tmp_path / "coco" / "images").glob("*/*"))
    assert sorted(tmp_path / "fiftyone" / path for path in manifest.values()) == sorted((tmp_path / "fiftyone" / "images").glob("*/*"))
    assert all(path.is_symlink() == (kind == "links") for path in named)


def test_fiftyone_files_have_a_label_and_a_file_for_each_image(place: tuple[Path, Context], tmp_path: Path) -> None:
    """The files are as documented for FiftyOneImageClassificationDataset: labels by id, and a manifest with the file of each id."""
    folder, context = place
    assert formats.write(context, tmp_path, "fiftyone") == {"labels.json": 22, "data.json": 22, "lost": 0}
    told, manifest = (json.loads((tmp_path / name).read_text()) for name in ("labels.json", "data.json"))
    assert set(told) == {"classes", "labels"}
    assert set(told["labels"]) == set(manifest)
    assert {os.path.splitext(id)[0] for id in manifest} == set(manifest), "FiftyOne takes off file endings, so ids must have none"
    found = {}
    for id, label in told["labels"].items():
        uri = label["attributes"]["uri"]
        assert Path(manifest[id]) == folder / uri.replace("%25", "%").replace("%23", "#")
        assert Path(manifest[id]).is_file()
        found[uri] = (told["classes"][label["label"]], label["confidence"])
    assert found == expected(context)


def test_an_embedding_atlas_has_places_texts_and_thumbnails(place: tuple[Path, Context], tmp_path: Path) -> None:
    context = place[1]
    assert formats.write(context, tmp_path, "embedding-atlas") == {"atlas.parquet": 22, "labels.parquet": 3}
    found = pl.read_parquet(tmp_path / "atlas.parquet")
    assert {row["uri"]: (row["name"], row["confidence"]) for row in found.iter_rows(named=True)} == expected(context)
    assert len(found) == 22
    points = {id: place for id, *place in Frames(context).points.iter_rows()}  # type: ignore[union-attr]
    ids = dict(Frames(context).assignments.select("uri", "image_id").iter_rows())
    captions = {row["image_id"]: row["text"] for row in context.run.table(REPRESENTATIVE_CAPTIONS_TABLE)[0].read("all").to_pylist()}
    assert captions
    for row in found.iter_rows(named=True):
        assert [row["x"], row["y"]] == points[ids[row["uri"]]]
        assert row["text"] == captions.get(ids[row["uri"]], row["name"])
        assert decode(row["image"]["bytes"]).size == (64, 48)
    labels = pl.read_parquet(tmp_path / "labels.parquet")
    assert dict(labels.select("text", "priority").iter_rows()) == Counter(found["name"])


@pytest.mark.parametrize("format", ALL)
def test_hidden_images_are_left_out_and_two_clusters_of_one_name_are_two_classes(curated: tuple[Path, Context], tmp_path: Path, format: Format) -> None:
    context = curated[1]
    shown = Frames(context).shown
    written = formats.write(context, tmp_path, format)
    assert 0 < len(shown) < 22
    assert next(iter(written.values())) == len(shown)
    match format:
        case "huggingface":
            found = load_dataset(tmp_path, tmp_path / "cache")
            classes, keys, uris = found.features["label"].names, found["cluster_key"], found["uri"]
        case "fiftyone":
            told = json.loads((tmp_path / "labels.json").read_text())
            classes, attributes = told["classes"], [label["attributes"] for label in told["labels"].values()]
            keys, uris = ([of[name] for of in attributes] for name in ("cluster_key", "uri"))
        case "coco":
            told = json.loads((tmp_path / "annotations.json").read_text())
            classes, keys = [row["name"] for row in told["categories"]], [row["category_id"] for row in told["annotations"]]
            uris = [row["file_name"].replace("%", "%25").replace("#", "%23") for row in told["images"]]
        case _:
            table = pl.read_parquet(tmp_path / "atlas.parquet")
            classes, keys, uris = sorted(set(table["name"])), table["cluster_key"], table["uri"]
    assert classes == ["discs (0)", "discs (1)"]
    assert dict(zip(uris, keys, strict=True)) == dict(shown.select("uri", "cluster_key").iter_rows())


@pytest.mark.parametrize(
    ("names", "distinct"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["cat", "dog", "cat"], ["cat (1)", "dog", "cat (3)"]),
        (["cat", "cat", "cat (1)"], ["cat (1) (1)", "cat (2)", "cat (1) (3)"]),
    ],
)
def test_names_of_classes_are_distinct(names: list[str], distinct: list[str]) -> None:
    assert labelled._distinct(names, [1, 2, 3][: len(names)]) == distinct


@pytest.mark.parametrize("format", ["huggingface", "coco", "fiftyone"])
def test_a_source_that_does_not_answer_is_an_error_and_leaves_no_files(tmp_path: Path, format: Format) -> None:
    folder = write_pictures(tmp_path / "in", range(8))
    context, _, _ = cluster(settings(folder, tmp_path / "store"))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(GsecError, match="does not answer"):
        formats.write(context, tmp_path / "out", format, "copies" if format != "huggingface" else None)
    assert not (tmp_path / "out").exists()


def test_images_of_a_parquet_file_are_written_into_a_dataset_or_copied(tmp_path: Path) -> None:
    pictures = {f"{seed}": png(20 * seed) for seed in range(8)}
    context, _, _ = cluster(settings(write_parquet(tmp_path / "x.parquet", pictures), tmp_path / "store"))
    assert formats.write(context, tmp_path / "huggingface", "huggingface")["data"] == 8
    found = pq.read_table(next((tmp_path / "huggingface" / "data").iterdir()))
    assert [row["bytes"] for row in found["image"].to_pylist()] == list(pictures.values())
    for format in ("coco", "fiftyone"):
        with pytest.raises(Refused, match=rf"^--format {format}: the images of .*x.parquet are not separate files. Add --images copies"):
            formats.write(context, tmp_path / format, format)  # type: ignore[arg-type]
        assert not (tmp_path / format).exists()
        assert formats.write(context, tmp_path / format, format, "copies")["images"] == 8  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"^--images copies: --format huggingface contains the images already"):
        formats.write(context, tmp_path / "more", "huggingface", "copies")


def test_missing_and_changed_images_are_counted_by_each_format(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(8))
    context, _, _ = cluster(settings(folder, tmp_path / "store"))
    (folder / "003.jpg").unlink()
    picture(99).save(folder / "004.jpg")
    lost = {format: formats.write(context, tmp_path / format, format).get("lost") for format in ALL}
    assert lost == {"huggingface": 2, "fiftyone": 1, "coco": 1, "embedding-atlas": None}
    assert "003.jpg" not in (tmp_path / "coco" / "annotations.json").read_text()


def test_an_atlas_of_a_run_that_assigns_has_no_places(place: tuple[Path, Context], tmp_path: Path) -> None:
    context = place[1]
    assigning = assign_images(context, settings(write_pictures(tmp_path / "new", range(30, 34)), context.config.store))
    written = formats.write(assigning, tmp_path / "atlas", "embedding-atlas")
    assert written == {"atlas.parquet": 4}
    assert not {"x", "y"} & set(pl.read_parquet(tmp_path / "atlas" / "atlas.parquet").columns)
    assert "--x" not in formats.load("embedding-atlas", tmp_path / "atlas", written)
    assert formats.write(assigning, tmp_path / "hf", "huggingface")["data"] == 4


@pytest.mark.parametrize("format", ALL)
def test_a_run_that_is_not_finished_is_refused(tmp_path: Path, format: Format) -> None:
    config = settings(write_pictures(tmp_path / "in", range(8)), tmp_path / "store")
    run, _ = pipeline.request(config)
    with pytest.raises(Refused, match="has no complete table"):
        formats.write(Context.of(run, config), tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_run_on_s3_is_exported_in_every_format_that_holds_images(place: tuple[Path, Context], bucket: str, tmp_path: Path) -> None:
    """Images are written into the dataset, or copied for the other formats."""
    folder, context = place
    fs, root = fsspec.url_to_fs(bucket)
    fs.put(str(folder), f"{root}/in", recursive=True)
    fs.put(context.config.store, f"{root}/store", recursive=True)
    request = f"{root}/store/runs/{context.run.id}/request.json"
    fs.pipe_file(request, fs.cat_file(request).replace(json.dumps(str(folder)).encode(), json.dumps(f"{bucket}/in").encode()))
    run = Store.open(f"{bucket}/store").run(context.run.id)
    there = Context.of(run, run.config())
    assert formats.write(there, tmp_path / "hf", "huggingface") == {"data": 22, "lost": 0}
    assert formats.write(there, tmp_path / "coco", "coco") == {"annotations.json": 22, "lost": 0}
    with pytest.raises(Refused, match=r"^--format fiftyone: the images of s3://.* are not files on this machine. Add --images copies"):
        formats.write(there, tmp_path / "fiftyone", "fiftyone")
    assert formats.write(there, tmp_path / "fiftyone", "fiftyone", "copies")["images"] == 22
