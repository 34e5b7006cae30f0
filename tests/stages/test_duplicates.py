"""Stage duplicates: planted copies among photographs are found, and they are reported and exported."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from skimage import data

from gsec_core.clustering.duplicates import Likeness
from gsec_core.config import PipelineConfig
from gsec_core.results import finishing
from gsec_core.results.export import export
from gsec_core.stages import duplicates, encode, prepare
from gsec_core.stages.base import Context, run_stage
from gsec_core.store import Run
from gsec_core.tables import DUPLICATES, DUPLICATES_TABLE, NEIGHBORS_TABLE, THUMBNAILS_TABLE

from ..pictures import assign_images, cluster, settings
from .steps import run_stages

PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "retina", "rocket")

PLANTED = {
    ("astronaut.png", "astronaut again.png", "astronaut twin.png"),
    ("chelsea.png", "chelsea half.jpg"),
    ("coffee.png", "coffee compressed.jpg"),
    ("rocket.png", "rocket cropped.jpg"),
}
"""Groups of copies; the first of each is to be kept."""


def photograph(name: str) -> Image.Image:
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    image.thumbnail((300, 300))
    return image


def write_photographs(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in PHOTOGRAPHS:
        photograph(name).save(folder / f"{name}.png")
    for copy in ("again", "twin"):
        shutil.copy(folder / "astronaut.png", folder / f"astronaut {copy}.png")
    write_copies(folder, "chelsea", "coffee", "rocket")
    return folder


def write_copies(folder: Path, half: str, compressed: str, cropped: str) -> None:
    image = photograph(half)
    image.resize((image.width // 2, image.height // 2)).save(folder / f"{half} half.jpg", quality=90)
    photograph(compressed).save(folder / f"{compressed} compressed.jpg", quality=60)
    image = photograph(cropped)
    image.crop((image.width // 20, image.height // 20, image.width, image.height)).save(folder / f"{cropped} cropped.jpg", quality=90)


def rows(context: Context) -> pl.DataFrame:
    return pl.DataFrame(context.read(duplicates.STAGE, DUPLICATES_TABLE))


def grouped(context: Context) -> set[tuple[str, ...]]:
    """The URIs of each group: the one to keep, then exact copies, then the others by name."""
    found = rows(context).sort("group", "keep", "exact", "uri", descending=[False, True, True, False])
    firsts = {
        uris[0]: tuple(uris) for (_,), frame in found.partition_by("group", as_dict=True, maintain_order=True).items() if (uris := frame["uri"].to_list())
    }
    return set(firsts.values())


def prepared(source: Path, store: Path, **more: Any) -> Context:
    return run_stages(settings(source, store, text={"source": "none"}, **more), encode.STAGE, prepare.STAGE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs in ``in``, encoded in ``store``."""
    folder = tmp_path_factory.mktemp("duplicates")
    write_photographs(folder / "in")
    prepared(folder / "in", folder / "store")
    return folder


@pytest.fixture
def context(place: Path, tmp_path: Path) -> Context:
    """A run of the photographs that has done all stages before duplicates."""
    shutil.copytree(place / "store", tmp_path / "store")
    return prepared(place / "in", tmp_path / "store")


# Up to FEW images are all compared with each other. Otherwise each is compared with the neighbours that `prepare` has found, which is one each for so
# few images, if these are enough; neighbours of images that have none, or of all, are searched in an index.
@pytest.mark.parametrize(("few", "enough", "many"), [(4096, 20, 16_384), (1, 1, 16_384), (1, 20, 16_384), (1, 1, 0)])
def test_planted_copies_are_found_and_the_largest_is_kept(context: Context, few: int, enough: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "FEW", few)
    monkeypatch.setattr(duplicates, "CANDIDATES", enough)
    monkeypatch.setattr(duplicates, "MANY", many)
    run_stage(context, duplicates.STAGE)
    assert grouped(context) == {tuple(sorted(group, key=lambda uri: (uri != group[0], uri))) for group in _by_pixels(PLANTED)}


def _by_pixels(planted: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Among copies of equal size the first by URI is to be kept."""
    swapped = {("coffee.png", "coffee compressed.jpg"): ("coffee compressed.jpg", "coffee.png")}
    exact = {("astronaut.png", "astronaut again.png", "astronaut twin.png"): ("astronaut again.png", "astronaut twin.png", "astronaut.png")}
    return {(swapped | exact).get(group, group) for group in planted}


def test_rows_are_sorted_by_group_and_mark_the_kept_and_the_exact_copies(context: Context) -> None:
    run_stage(context, duplicates.STAGE)
    table = context.read(duplicates.STAGE, DUPLICATES_TABLE)
    assert table.schema.equals(DUPLICATES)
    found = pl.DataFrame(table)
    assert found.equals(found.sort("group", "keep", "cosine", "uri", descending=[False, True, True, False]))
    assert found["group"].to_list() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert found.group_by("group", maintain_order=True).first()["keep"].all()
    assert found["keep"].sum() == 4
    exact = found.filter("exact")
    assert (exact["cosine"] == 1).all()
    assert exact["group"].to_list() == [0, 0, 0, 1, 2, 3]
    assert found.filter(~pl.col("exact"))["cosine"].is_between(0.6, 0.999).all()
    assert context.shards(duplicates.STAGE, DUPLICATES_TABLE).facts("all")["groups"] == 4


def test_duplicates_do_not_depend_on_the_sharding_and_a_second_attempt_gives_the_same(
    context: Context, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(context, duplicates.STAGE)
    was = rows(context)
    assert run_stage(context, duplicates.STAGE) == {}
    shards = context.shards(duplicates.STAGE, DUPLICATES_TABLE)
    Path(shards.location("all")).unlink()
    assert run_stage(context, duplicates.STAGE)["shards"] == 1
    assert rows(context).equals(was)
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 4)
    other = prepared(place / "in", tmp_path / "other", ingest={"shard_rows": 3})
    run_stage(other, duplicates.STAGE)
    assert rows(other).with_columns(pl.col("cosine").round(4)).equals(was.with_columns(pl.col("cosine").round(4)))


def test_the_threshold_is_a_setting_whose_default_depends_on_the_encoder(place: Path, tmp_path: Path) -> None:
    assert duplicates.threshold_of(PipelineConfig()) == duplicates.THRESHOLDS["lite"]
    clip = PipelineConfig.model_validate({"encode": {"encoder": "open_clip:ViT-B-32:openai"}})
    assert duplicates.threshold_of(clip) == duplicates.THRESHOLD
    assert duplicates.STAGE.settings(clip) == {}, "with the default threshold a run keeps the identity it had before this stage existed"
    shutil.copytree(place / "store", tmp_path / "store")
    strict = prepared(place / "in", tmp_path / "store", duplicates={"threshold": 1})
    run_stage(strict, duplicates.STAGE)
    assert ("rocket.png", "rocket cropped.jpg") not in grouped(strict)
    assert duplicates.STAGE.settings(strict.config) == {"threshold": 1}


def test_without_thumbnails_copies_are_found_by_embeddings_alone(context: Context) -> None:
    thumbnails = context.shards(encode.STAGE, THUMBNAILS_TABLE)
    for name in thumbnails.names():
        thumbnails.replace(name, thumbnails.read(name).slice(0, 0), {})
    run_stage(context, duplicates.STAGE)
    found = grouped(context)
    assert ("coffee compressed.jpg", "coffee.png") not in found
    assert ("rocket.png", "rocket cropped.jpg") in found


def test_two_images_are_a_group_only_if_they_are_equal(tmp_path: Path) -> None:
    for name, others in (("different", "coffee"), ("equal", "chelsea")):
        folder = tmp_path / name
        folder.mkdir()
        photograph("chelsea").save(folder / "a.png")
        photograph(others).save(folder / "b.png")
        context = prepared(folder, tmp_path / f"{name} store")
        run_stage(context, duplicates.STAGE)
        assert rows(context)["uri"].to_list() == (["a.png", "b.png"] if name == "equal" else [])


def test_many_copies_of_one_file_are_compared_as_a_single_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    photograph("rocket").save(folder / "placeholder.png")
    for number in range(40):
        (folder / f"placeholder {number:03d}.png").write_bytes((folder / "placeholder.png").read_bytes())
    write_copies(folder, "chelsea", "coffee", "rocket")
    photograph("chelsea").save(folder / "chelsea.png")
    context = prepared(folder, tmp_path / "store", ingest={"shard_rows": 64})
    monkeypatch.setattr(duplicates, "FEW", 1)
    compared, cosines = [], Likeness.cosines
    monkeypatch.setattr(Likeness, "cosines", lambda like, a, b: compared.append(len(a)) or cosines(like, a, b))
    run_stage(context, duplicates.STAGE)
    found = rows(context)
    assert found["group"].value_counts(sort=True)["count"].to_list() == [42, 2]
    assert found["uri"][0] == "placeholder 000.png"
    assert found.filter(pl.col("group") == 0)["exact"].sum() == 41
    assert sum(compared) < 100


@pytest.fixture(scope="module")
def published(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PipelineConfig, Context]:
    """A published clustering of the photographs, and the settings of the nightly run."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(place / "in", folder / "in")
    config = settings(folder / "in", folder / "store", text={"source": "none"}, train={"refit": "never", "n_members": 2}, gsec={"max_steps": 5})
    context, _, _ = cluster(config)
    assert finishing.finish(context)["published"]
    return config, context


def test_copies_appear_in_the_remarks_the_report_and_the_export(published: tuple[PipelineConfig, Context], tmp_path: Path) -> None:
    context = published[1]
    said = finishing.finish(context)
    assert "5 images are copies of 4 others, 2 exact and 3 near copies: see duplicates.csv of gsec export." in said["remarks"]
    page = Path(said["report"]).read_text()
    assert "The 4 largest groups" in page
    assert "rocket cropped.jpg" in page
    assert page.count("same bytes</p>") == 2
    assert export(context, tmp_path)["duplicates.csv"] == 9
    cells = pl.read_csv(tmp_path / "duplicates.csv")
    assert cells["uri"].to_list() == rows(context)["uri"].to_list()
    assert [bytes.fromhex(id) for id in cells["image_id"]] == rows(context)["image_id"].to_list()
    assert cells.columns == DUPLICATES.names


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_that_keeps_its_model_reuses_its_neighbours_and_searches_only_those_of_new_images(
    published: tuple[PipelineConfig, Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """If the neighbours of the model's run are ``gone``, those of all images are searched."""
    monkeypatch.setattr(duplicates, "FEW", 1)
    monkeypatch.setattr(duplicates, "CANDIDATES", 1)
    config, first = published
    folder = Path(str(config.source))
    write_copies(folder, "retina", "grass", "camera")
    shutil.copy(folder / "brick.png", folder / "brick twin.png")
    (folder / "chelsea half.jpg").unlink(missing_ok=True)
    photograph("chelsea").save(folder / "chelsea other.jpg", quality=50 + gone)  # so that each case has something new
    searched, searching = [], duplicates.neighbors_of
    monkeypatch.setattr(
        duplicates, "neighbors_of", lambda rows, n, alone, *args, **more: searched.append(len(alone)) or searching(rows, n, alone, *args, **more)
    )
    neighbors = Path(first.shards(prepare.STAGE, NEIGHBORS_TABLE).location("part-00000"))
    aside = neighbors.rename(neighbors.with_name("aside")) if gone else None
    context, _, made = cluster(config)
    if aside:
        aside.rename(neighbors)
    assert context.keeps
    assert "prepare" not in made
    assert context.model.run == Run(context.run.files, first.run.id)
    assert grouped(context) == {
        ("astronaut again.png", "astronaut twin.png", "astronaut.png"),
        ("brick twin.png", "brick.png"),
        ("camera.png", "camera cropped.jpg"),
        ("chelsea other.jpg", "chelsea.png"),
        ("coffee compressed.jpg", "coffee.png"),
        ("grass compressed.jpg", "grass.png"),
        ("retina.png", "retina half.jpg"),
        ("rocket.png", "rocket cropped.jpg"),
    }
    distinct = len({path.read_bytes() for path in folder.iterdir()})
    assert searched[0] == distinct if gone else 4 <= searched[0] < distinct
    assert finishing.finish(context)["published"]


def test_a_run_that_only_assigns_does_not_look_for_copies(published: tuple[PipelineConfig, Context], tmp_path: Path) -> None:
    config, first = published
    write_photographs(tmp_path / "new")
    assigning = assign_images(first, settings(tmp_path / "new", config.store))
    assert "duplicates.csv" not in export(assigning, tmp_path / "out")
    assert not [remark for remark in finishing.summary(assigning)["remarks"] if "copies" in remark]
    assert np.isin(["encode", "assign"], assigning.run.stage_names()).all()
