"""The export of a run's result as files for other programs."""

import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gsec_core import pipeline
from gsec_core.errors import GsecError, Refused
from gsec_core.results.export import export, write_csv
from gsec_core.results.images import file_names, open_for, safe_name
from gsec_core.stages.base import Context
from gsec_core.tables import CLUSTER_NAMES_TABLE, HIERARCHY_TABLE

from ..disks import as_anyone
from ..pictures import cluster, picture, settings, write_pictures
from ..sources.examples import write_parquet


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Context]:
    """A folder with 12 pictures, a 13th of the same name in a subfolder, and a bad file; and a run on it."""
    top = tmp_path_factory.mktemp("export")
    folder = write_pictures(top / "in", range(12))
    (folder / "more").mkdir()
    picture(50).save(folder / "more" / "000.jpg")
    (folder / "bad.jpg").write_text("no image")
    context, _, _ = cluster(settings(folder, top / "store"))
    return folder, context


def test_exported_assignments_have_the_names_of_their_clusters_and_bad_files_are_listed(place: tuple[Path, Context], tmp_path: Path) -> None:
    written = export(place[1], tmp_path / "out")
    assert written == {"assignments.parquet": 13, "clusters.json": 2, "assignments.csv": 13, "clusters.csv": 2, "unusable.csv": 1, "duplicates.csv": 2}
    names = {row["cluster"]: row["name"] for row in place[1].run.table(CLUSTER_NAMES_TABLE)[0].read("all").to_pylist()}
    exact = pl.read_parquet(tmp_path / "out" / "assignments.parquet")
    assert all(names[cluster] == name for cluster, name in exact.select("cluster", "name").iter_rows())
    cells = list(csv.DictReader((tmp_path / "out" / "assignments.csv").open(newline="")))
    assert [cell["uri"] for cell in cells] == exact["uri"].to_list()
    assert [bytes.fromhex(cell["image_id"]) for cell in cells] == exact["image_id"].to_list()
    assert {row["uri"]: row["status"] for row in csv.DictReader((tmp_path / "out" / "unusable.csv").open(newline=""))} == {"bad.jpg": "rejected"}


def test_a_folder_that_this_user_cannot_write_is_refused(place: tuple[Path, Context], tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(Refused, match=r"^--to .*: this user cannot write there\. Name another folder"):
        as_anyone(lambda: export(place[1], tmp_path))
    tmp_path.chmod(0o755)


def test_an_encoder_that_the_run_has_not_trained_is_refused_before_anything_is_written(place: tuple[Path, Context], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="has trained no encoder"):
        export(place[1], tmp_path / "out", encoder=True)
    assert not (tmp_path / "out").exists()


def test_clusters_json_has_the_run_and_its_clusters(place: tuple[Path, Context], tmp_path: Path) -> None:
    export(place[1], tmp_path)
    found = json.loads((tmp_path / "clusters.json").read_text())
    assert (found["run_id"], found["encoder"], found["captioner"]) == (place[1].run.id, "lite", "tagger")
    assert [row["cluster"] for row in found["clusters"]] == [0, 1]
    assert sum(row["size"] for row in found["clusters"]) == 13
    assert all(row["name"] and row["terms"] for row in found["clusters"])


def test_groups_csv_puts_clusters_into_the_requested_number_of_groups(place: tuple[Path, Context], tmp_path: Path) -> None:
    export(place[1], tmp_path, groups=1)
    together = pl.read_csv(tmp_path / "groups.csv")
    root = place[1].run.table(HIERARCHY_TABLE)[0].read("all")["name"].to_pylist()[-1]
    assert together.select("cluster", "group", "group_name").rows() == [(0, 0, root), (1, 0, root)]
    export(place[1], tmp_path, groups=2)
    apart = pl.read_csv(tmp_path / "groups.csv")
    assert (apart["group"].to_list(), apart["group_name"].to_list()) == ([0, 1], apart["name"].to_list())
    for groups in (0, 3):
        with pytest.raises(Refused, match=rf"--groups {groups}: the run has 2 clusters. Give 1 to 2"):
            export(place[1], tmp_path / "none", groups=groups)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["links", "copies"])
def test_images_are_linked_or_copied_into_a_folder_per_cluster(place: tuple[Path, Context], tmp_path: Path, kind: str) -> None:
    folder, context = place
    written = export(context, tmp_path, kind)  # type: ignore[arg-type]
    assert (written["images"], written["lost"]) == (13, 0)
    files = list((tmp_path / "images").glob("*/*"))
    assert sorted(path.read_bytes() for path in files) == sorted(path.read_bytes() for path in folder.rglob("*.jpg") if path.name != "bad.jpg")
    assert all(path.is_symlink() == (kind == "links") for path in files)
    by_name = {f"{row['cluster']} {row['name']}" for row in pl.read_parquet(tmp_path / "assignments.parquet").iter_rows(named=True)}
    assert {path.parent.name for path in files} == by_name


def test_a_second_export_replaces_tables_and_refuses_to_mix_images(place: tuple[Path, Context], tmp_path: Path) -> None:
    export(place[1], tmp_path, "links")
    (tmp_path / "assignments.csv").write_text("old")
    export(place[1], tmp_path)
    assert (tmp_path / "assignments.csv").read_text() != "old"
    with pytest.raises(Refused, match=r"^--images copies: .*images exists already"):
        export(place[1], tmp_path, "copies")


@pytest.mark.parametrize("inside", [".", "more", "new/folder"])
def test_images_are_not_exported_into_the_source_where_the_next_run_would_take_them_for_new_ones(place: tuple[Path, Context], inside: str) -> None:
    with pytest.raises(Refused, match=r"^--to .*: it is in the source .*, and the next run would read what is exported"):
        export(place[1], place[0] / inside, "links")
    assert not [*place[0].rglob("assignments.*"), *place[0].rglob("images")]
    for elsewhere in (place[0] / ".hidden", place[0] / "lost+found", Path(f"{place[0]}2")):
        assert open_for(place[1], "links", elsewhere) is not None, "the next run does not list it"


def test_images_of_a_parquet_file_are_copied_with_an_ending_and_cannot_be_linked(tmp_path: Path) -> None:
    images = {f"{seed // 2}{'.png' if seed % 2 else ''}": png(picture(seed)) for seed in range(6)}
    source = write_parquet(tmp_path / "x.parquet", images)
    context, _, _ = cluster(settings(source, tmp_path / "store"))
    with pytest.raises(Refused, match=r"^--images links: .*Use --images copies"):
        export(context, tmp_path / "out", "links")
    assert not (tmp_path / "out").exists()
    export(context, tmp_path / "out", "copies")
    files = list((tmp_path / "out" / "images").glob("*/*"))
    assert sorted(path.read_bytes() for path in files) == sorted(images.values())
    assert all(path.suffix == ".png" for path in files)


@pytest.mark.parametrize(("source", "to"), [("*.parquet", "."), ("**/*.parquet", "out"), ("assignments.parquet", ".")])
def test_tables_are_not_exported_into_a_source_of_parquet_files(tmp_path: Path, source: str, to: str) -> None:
    write_parquet(tmp_path / "assignments.parquet", {f"{seed}": png(picture(seed)) for seed in range(6)})
    before = (tmp_path / "assignments.parquet").read_bytes()
    (tmp_path / "linked").symlink_to(tmp_path)
    context, _, _ = cluster(settings(tmp_path / source, tmp_path / "store"))
    for folder in (tmp_path / to, tmp_path / "linked" / to):
        with pytest.raises(Refused, match=r"^--to .*: it is in the source .*, and the next run would read what is exported"):
            export(context, folder)
    assert (tmp_path / "assignments.parquet").read_bytes() == before
    export(context, tmp_path / ".hidden")


def test_a_target_that_is_a_file_is_refused(place: tuple[Path, Context], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(Refused, match=r"^--to .*out: no folder can be made there \(File exists\)"):
        export(place[1], tmp_path / "out")


def test_a_source_that_does_not_answer_is_an_error_and_leaves_no_images(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(8))
    context, _, _ = cluster(settings(folder, tmp_path / "store"))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(GsecError, match="does not answer"):
        export(context, tmp_path / "out", "copies")
    assert not (tmp_path / "out" / "images").exists()


def test_missing_images_are_counted_and_the_others_exported(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(8))
    context, _, _ = cluster(settings(folder, tmp_path / "store"))
    (folder / "003.jpg").unlink()
    for kind in ("links", "copies"):
        written = export(context, tmp_path / kind, kind)  # type: ignore[arg-type]
        assert (written["images"], written["lost"]) == (7, 1)


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(8)), tmp_path / "store")
    run, _ = pipeline.request(config)
    with pytest.raises(Refused, match="has no complete table"):
        export(Context.of(run, config), tmp_path / "out")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", " =1+1", "\u200b=1", "＝1+1", "=cmd|' /C calc'!A0"])
def test_a_csv_cell_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    _, (cell, number) = csv_of(pl.DataFrame({"text": [text], "number": [-1.5]}))
    assert cell == f"'{text}"
    assert float(number) == -1.5


@pytest.mark.parametrize("text", ["a=1", "1-2", 'quote"comma,', "line\nbreak", "", "<script>alert(1)</script>"])
def test_other_csv_cells_are_read_back_unchanged(text: str) -> None:
    assert csv_of(pl.DataFrame({"text": [text]}))[1] == [text]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def csv_of(table: pl.DataFrame) -> list[list[str]]:
    buffer = io.BytesIO()
    write_csv(table, buffer)
    return list(csv.reader(io.StringIO(buffer.getvalue().decode(), newline="")))


@given(st.text(max_size=300))
def test_any_text_becomes_a_valid_file_name(text: str) -> None:
    name = safe_name(text.encode(errors="ignore").decode())
    assert 0 < len(name.encode()) <= 130
    assert os.path.basename(name) == name
    assert not name.startswith((".", "-", " "))
    assert not name.endswith((".", " "))


@pytest.mark.parametrize(
    ("text", "name"), [("CON.jpg", "_CON.jpg"), ("a.", "a"), ("a\x85b.jpg", "a_b.jpg"), ("../x", "_x"), ("", "_"), ("console.jpg", "console.jpg")]
)
def test_names_that_some_operating_system_refuses_are_changed(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.lists(st.sampled_from(["a/x.jpg", "b/X.jpg", "x 2.jpg", "x 3.JPG", "\u00e9.jpg", "e\u0301.jpg", "x", "c/x", "x.jpg"]), max_size=12))
def test_names_in_one_folder_are_different_on_every_operating_system(uris: list[str]) -> None:
    names = file_names(uris)
    written = [name if "." in name else f"{name}.jpg" for name in names]  # as `_copy` does
    assert len({unicodedata.normalize("NFC", name).casefold() for name in written}) == len(uris)
    assert all(name.lower().endswith(".jpg") == uri.lower().endswith(".jpg") for name, uri in zip(names, uris, strict=True))


def test_an_image_that_changed_since_the_run_is_not_exported(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(8))
    context, _, _ = cluster(settings(folder, tmp_path / "store"))
    picture(99).save(folder / "003.jpg")
    assert export(context, tmp_path / "out", "copies")["lost"] == 1
    assert not list((tmp_path / "out").rglob("003.jpg"))


def test_a_shortened_name_keeps_its_ending() -> None:
    assert safe_name("x" * 300 + ".jpeg").endswith("x.jpeg")
