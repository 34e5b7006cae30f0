"""The commands of gsec on one small store."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from flows.cli import main
from gsec_core.errors import GsecError
from gsec_core.results import finishing
from gsec_core.results.status import verify
from gsec_core.store import Store
from gsec_core.tables import LAYOUT_TABLE, LINEAGE_TABLE

from ..command import SMALL, asking, environment, gsec, gsec_here, last_json
from ..pictures import cluster, picture, settings, write_pictures
from ..stages.steps import STAGES, make_up, run_stages


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, home: Path) -> dict[str, Path | str]:
    """A folder of 20 pictures and one bad file, clustered once."""
    top = tmp_path_factory.mktemp("place")
    folder = write_pictures(top / "in", range(20))
    (folder / "bad.jpg").write_text("not an image")
    done = gsec("run", folder, "-k", "3", "--store", top / "store", "--json", *SMALL, home=home, check=3)
    return {"folder": folder, "store": top / "store", "run": last_json(done)["run_id"], "json": done.stdout.splitlines()[-1], "stderr": done.stderr}


@pytest.fixture(autouse=True)
def _one_server(place: dict[str, Path | str], server: str) -> Iterator[None]:
    """All commands after the first run in this process and use one Prefect server. The first was a process that started a temporary one."""
    with asking(server):
        yield


def test_run_exits_with_3_and_a_warning_if_more_images_are_rejected_than_allowed(place: dict[str, str]) -> None:
    assert "1 of 21 images were rejected, more than max_rejects = 0.01 allows" in place["stderr"]


def test_the_json_result_is_the_last_line_and_its_counts_add_up(place: dict[str, str]) -> None:
    result = json.loads(place["json"])
    counts = ["run_id", "images", "rejected", "missing", "decision", "clusters", "assignments", "cluster_table", "report"]
    assert list(result) == [*counts, "moved", "published", "why_not", "warnings", "remarks", "seconds"]
    assignments = ds.dataset(result["assignments"]).to_table()
    assert result["images"] == assignments.num_rows + result["rejected"] + result["missing"] == 21
    assert sum(pq.read_table(result["cluster_table"])["size"].to_pylist()) == 20


def test_run_prints_a_line_per_stage_and_the_cluster_table(place: dict[str, str]) -> None:
    lines = place["stderr"].splitlines()
    assert lines[0] == f"starting: the images of {place['folder']} into 3 clusters, store {place['store']}"
    run = Store.open(str(place["store"])).run(place["run"])
    stages = ["ingest", *run.stage_names()]
    by_stage = groupby((line for line in lines if line.partition(" ")[0] in stages), lambda line: line.partition(" ")[0])
    last = {stage: line for stage, told in by_stage for line in told}
    assert list(last) == stages, "stages must be in order; each has a line every ten seconds and one at its end"
    assert re.fullmatch(r"ingest +list the images +21 images, \S+ s, 21 new", last["ingest"])
    assert re.fullmatch(r"encode +compute embeddings +21 images, \S+ s, 1 rejected", last["encode"])
    for text in ("name", "cohesion", "k-means", "20 images in 3 clusters, 1 rejected, 0 missing; "):
        assert text in place["stderr"]
    assert lines[-1].startswith("look into it   "), "the last line must say how to go on"


def test_repeating_a_finished_run_starts_nothing_and_prints_the_same_clusters(place: dict[str, str]) -> None:
    done = gsec_here("run", place["folder"], "-k", "3", "--store", place["store"], *SMALL, check=3)
    assert "nothing to do" in done.stderr
    assert "starting" not in done.stderr
    shown = place["stderr"][place["stderr"].index("clusters of run") : place["stderr"].index("20 images in 3 clusters")]
    assert shown in done.stderr, "the clusters must be printed as after the run itself"
    gsec_here("run", place["folder"], "-k", "3", "--store", place["store"], "--set", "max_rejects=0.1", *SMALL, check=0)


def test_version_prints_the_version_of_the_distribution() -> None:
    assert gsec_here("--version").stdout.strip() == version("gsec")


def test_status_prints_the_state_and_the_images_of_a_run(place: dict[str, str]) -> None:
    runs = last_json(gsec_here("status", "--store", place["store"], "--json"))["runs"]
    [run] = [run for run in runs if run["run"] == place["run"]]
    assert run["state"] == "finished"
    assert run["images"] == {"listed": 21, "ok": 20, "rejected": 1, "missing": 0, "damaged_shards": 0}
    assert place["run"] in gsec_here("status", "--store", place["store"]).stdout


def test_commands_that_compute_nothing_import_neither_torch_nor_scikit_learn_nor_prefect(place: dict[str, str], home: Path, tmp_path: Path) -> None:
    of_store = ["--store", str(place["store"])]
    export = ["export", "--to", str(tmp_path / "out"), "--images", "copies"]
    dataset = ["export", "--to", str(tmp_path / "dataset"), "--format", "huggingface"]
    again = ["run", str(place["folder"]), "-k", "3", "--set", "max_rejects=0.1", *SMALL]
    commands = [["status"], again, export, dataset, ["prune", "--dry-run"], ["curate", "star", "--cluster", "0", "--run", str(place["run"])]]
    code = f"""
import sys
from flows.cli import main
from gsec_core.results.status import verify
from gsec_core.store import Store
for command in {[[*command, *of_store] for command in commands]!r}:
    try:
        main(command)
    except SystemExit as exit:
        assert not exit.code
    print("imported:", command[0], [name for name in ("torch", "sklearn", "prefect") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(home), check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("imported: ")]
    assert said == [f"imported: {command[0]} []" for command in commands]


def test_assign_labels_new_images_and_a_second_time_has_nothing_to_do(place: dict[str, str], tmp_path: Path) -> None:
    fresh = write_pictures(tmp_path / "new", range(15, 25))
    command = ["assign", fresh, "--run", place["run"][:8], "--store", place["store"], "--json"]
    done = gsec_here(*command)
    result = last_json(done)
    assert (result["images"], result["clusters"]) == (10, 3)
    found = ds.dataset(result["assignments"]).to_table()
    shown = done.stderr.partition(f"images assigned to the clusters of run {place['run']}")[2].partition("\n\n")[0]
    filled = {int(cluster) for cluster in re.findall(r"^ *(\d+) ", shown, re.MULTILINE)}  # long names go on in a second line
    assert filled == set(found["cluster"].to_pylist()), "the table must show where the new images are"
    assert f"10 images in {len(filled)} of 3 clusters, 0 rejected" in done.stderr
    assert sorted(found["uri"].to_pylist()) == sorted(path.name for path in fresh.iterdir())
    assert result["cluster_table"] == json.loads(place["json"])["cluster_table"], "the clusters must be those of the run"
    assert "nothing to do" in gsec_here(*command).stderr


def test_assign_takes_the_column_of_the_new_images_and_no_other_setting_of_the_output(place: dict[str, str], tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in sorted(write_pictures(tmp_path / "new", range(30, 33)).iterdir())]
    pq.write_table(pa.table({"img": pictures}), tmp_path / "new.parquet")
    command = ["assign", tmp_path / "new.parquet", "--run", place["run"], "--store", place["store"], "--json", "--set", "ingest.image_column=img"]
    assert last_json(gsec_here(*command))["images"] == 3
    assert "are taken from the run" in gsec_here(*command, "--set", "gsec.tol=0.5", check=2).stderr


def test_status_shows_no_password_of_an_error(tmp_path: Path) -> None:
    context = make_up(settings(write_pictures(tmp_path / "in", range(4)), tmp_path / "store"))
    with pytest.raises(GsecError), context.run.attempt({}):
        raise GsecError("https://me:secret@host/images does not answer")
    for form in ((), ("--json",)):
        said = gsec_here("status", "--store", tmp_path / "store", *form).stdout
        assert "does not answer" in said
        assert "secret" not in said


def test_evaluate_scores_consensus_and_kmeans_against_a_file_of_labels(place: dict[str, str], tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("uri,label\n" + "".join(f"{number:03d}.jpg,{'even' if number % 2 == 0 else 'odd'}\n" for number in range(18)))
    arguments = ["evaluate", "--labels", labels, "--run", place["run"], "--store", place["store"]]
    scores = last_json(gsec_here(*arguments, "--json"))["scores"]
    assert [(row["labelling"], row["images"], row["unlabelled"]) for row in scores] == [("consensus", 18, 2), ("k-means", 18, 2)]
    assert all(0 < row["ACC"] <= 1 for row in scores)
    shown = gsec_here(*arguments).stdout
    assert "consensus" in shown
    assert "the most frequent label of each cluster" in shown
    clusters = last_json(gsec_here(*arguments, "--json"))["clusters"]
    assert [row["cluster"] for row in clusters] == [0, 1, 2]
    assert all(row["label"] in ("even", "odd") and 0.5 <= row["share"] <= 1 and row["name"] for row in clusters)


def test_run_and_report_print_the_path_of_the_report_and_report_to_draws_a_copy(place: dict[str, str], tmp_path: Path) -> None:
    report = Path(json.loads(place["json"])["report"])
    assert place["run"] in report.read_text()
    assert f"report         {report}" in place["stderr"]
    arguments = ["report", "--run", place["run"], "--store", place["store"]]
    assert gsec_here(*arguments).stdout.strip() == str(report)
    drawn = last_json(gsec_here(*arguments, "--to", tmp_path / "drawn", "--json"))
    assert drawn == {"run_id": place["run"], "report": str(tmp_path / "drawn" / "index.html")}
    assert (tmp_path / "drawn" / "index.html").read_bytes() == report.read_bytes()


def test_export_prints_the_files_it_wrote(place: dict[str, str], tmp_path: Path) -> None:
    done = gsec_here("export", "--to", tmp_path / "out", "--images", "links", "--run", place["run"], "--store", place["store"])
    for line in ("assignments.parquet: 20 rows", "clusters.json: 3 rows", "unusable.csv: 1 rows", "images: 20 images"):
        assert line in done.stdout
    result = last_json(gsec_here("export", "--to", tmp_path / "out", "--run", place["run"], "--store", place["store"], "--json"))
    assert (result["to"], result["assignments.csv"]) == (str(tmp_path / "out"), 20)


def test_letters_that_the_output_cannot_show_are_escaped(place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal without UTF-8, and a folder whose name is not UTF-8."""
    for encoding, folder in (("ascii", "caf\xe9"), ("utf-8", "caf\udce9")):
        with io.TextIOWrapper(io.BytesIO(), encoding) as out:
            monkeypatch.setattr("sys.stdout", out)
            with pytest.raises(SystemExit) as exit:
                main(["export", "--to", str(tmp_path / folder), "--run", place["run"], "--store", str(place["store"])])
            out.seek(0)
            assert (exit.value.code, folder.encode("ascii", "backslashreplace").decode() in out.read()) == (0, True)


def test_export_in_the_format_of_a_library_prints_how_to_load_it_and_refuses_other_options(place: dict[str, str], tmp_path: Path) -> None:
    of_run = ["--run", place["run"], "--store", place["store"]]
    done = gsec_here("export", "--to", tmp_path / "out", "--format", "coco", "--images", "copies", *of_run)
    assert [f"run {place['run']} to {tmp_path / 'out'}:", "  annotations.json: 20 rows", "  images: 20 images"] == done.stdout.splitlines()[:3]
    assert done.stdout.splitlines()[3] == f"to load it: pycocotools.coco.COCO('{tmp_path}/out/annotations.json')"
    result = last_json(gsec_here("export", "--to", tmp_path / "atlas", "--format", "embedding-atlas", *of_run, "--json"))
    assert result == {"run_id": place["run"], "to": str(tmp_path / "atlas"), "atlas.parquet": 20, "labels.parquet": 3}
    for options, says in {
        ("--format", "coco", "--encoder"): "--encoder: --format coco does not include this.",
        ("--format", "fiftyone", "--groups", "2"): "--groups: --format fiftyone does not include this.",
        ("--format", "huggingface", "--images", "links"): "--format huggingface contains the images already.",
        ("--format", "csv"): "csv",
    }.items():
        assert says in gsec_here("export", "--to", tmp_path / "none", *options, *of_run, check=2).stderr
    assert not (tmp_path / "none").exists()


def test_commands_accept_published_and_the_pipelines_name_as_a_run(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(6)), tmp_path / "store", pipeline="nightly", max_rejects=1)
    context, _, _ = cluster(config)
    assert finishing.finish(context)["published"]
    of_run = ["--run", "published/nightly", "--store", tmp_path / "store"]
    assert last_json(gsec_here("export", "--to", tmp_path / "out", *of_run, "--json"))["run_id"] == context.run.id
    assert last_json(gsec_here("report", *of_run, "--json"))["run_id"] == context.run.id
    assert last_json(gsec_here("curate", "log", *of_run, "--json"))["run_id"] == context.run.id
    said = gsec_here("export", "--to", tmp_path / "out", "--run", "published/x", "--store", tmp_path / "store", check=2).stderr
    assert "publishes nothing under this name; there is published/nightly." in said


def test_compare_reports_on_runs_and_changes_nothing_in_the_store(place: dict[str, str], tmp_path: Path) -> None:
    store = ["--store", place["store"]]
    another = ["run", place["folder"], "-k", "4", "--method", "turtle", "--set", "turtle.max_steps=20", "--pipeline", "another", *store, "--json"]
    other = last_json(gsec_here(*another, *SMALL, check=3))["run_id"]
    labels = tmp_path / "labels.csv"
    labels.write_text("uri,kind\n" + "".join(f"{number:03d}.jpg,{'even' if number % 2 == 0 else 'odd'}\n" for number in range(18)))
    before = {path: path.read_bytes() for path in Path(place["store"]).rglob("*") if path.is_file()}
    command = ["compare", place["run"], other[:10], *store, "--labels", labels, "--column", "kind"]
    found = last_json(gsec_here(*command, "--to", tmp_path / "page", "--json"))
    assert [(row["run"], row["method"], row["text"], row["clusters"]) for row in found["runs"]] == [
        (place["run"], "gsec", "captions", 3),
        (other, "turtle", "none", 4),
    ]
    assert (found["images"], [row["left out"] for row in found["runs"]], [row["labelled"] for row in found["runs"]]) == (20, [0, 0], [18, 18])
    [[same, alike], [_, _]] = found["ari"]
    assert same == 1 > alike
    scored = last_json(gsec_here("evaluate", "--run", other, *store, "--labels", labels, "--column", "kind", "--json"))["scores"][0]
    assert {name: found["runs"][1][name] for name in ("ACC", "NMI", "ARI")} == {name: scored[name] for name in ("ACC", "NMI", "ARI")}
    assert found["page"] == str(tmp_path / "page" / "compare.html")
    assert place["run"] in Path(found["page"]).read_text()
    shown = gsec_here(*command).stdout
    assert "20 images of corpus" in shown
    assert all(said in shown for said in (place["run"][:8], other[:8], "turtle", "how similar: ARI", f"{alike:.3f}", "against labels", "purity"))
    assert "left out" not in shown, "without images left out, the column must not be shown"
    assert {path: path.read_bytes() for path in Path(place["store"]).rglob("*") if path.is_file()} == before


def test_compare_refuses_runs_of_different_corpora(tmp_path: Path) -> None:
    here, elsewhere = (make_up(settings(write_pictures(tmp_path / name, range(6)), tmp_path / "store")).run.id for name in ("here", "elsewhere"))
    done = gsec_here("compare", here, elsewhere, "--store", tmp_path / "store", check=2)
    assert f"run {here} is of corpus here-" in done.stderr
    assert f"run {elsewhere} of elsewhere-" in done.stderr
    assert "Compare runs of one corpus." in done.stderr


def test_assigned_images_are_exported_with_the_cluster_names_of_the_run(place: dict[str, str], tmp_path: Path) -> None:
    fresh = write_pictures(tmp_path / "new", range(30, 34))
    made = last_json(gsec_here("assign", fresh, "--run", place["run"], "--store", place["store"], "--json"))
    done = gsec_here("export", "--to", tmp_path / "out", "--run", made["run_id"], "--store", place["store"], "--images", "copies")
    assert "images: 4 images" in done.stdout
    assert {path.parent.name for path in (tmp_path / "out" / "images").glob("*/*")} <= {
        f"{row['cluster']} {row['name']}" for row in json.loads((tmp_path / "out" / "clusters.json").read_text())["clusters"]
    }
    assert "whose report shows them" in gsec_here("report", "--run", made["run_id"], "--store", place["store"], check=2).stderr


def test_stage_refuses_to_run_before_earlier_stages_and_names_them(place: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "gsec.toml"
    config.write_text(f'source = "{place["folder"]}"\nstore = "{tmp_path / "store"}"\nclusters = 3\n[encode]\nbatch_size = 8\n')
    assert "Run stage ingest first" in gsec_here("stage", "encode", "--config", config, check=2).stderr
    run = last_json(gsec_here("stage", "ingest", "--config", config, "--json"))["run_id"]
    assert f"First: gsec stage encode --run {run}" in gsec_here("stage", "baseline", "--config", config, check=2).stderr
    assert last_json(gsec_here("stage", "encode", "--config", config, "--json"))["ok"] == 20
    assert last_json(gsec_here("stage", "baseline", "--run", run[:8], "--store", tmp_path / "store", "--json"))["shards"] == 3


def test_redo_of_a_stage_makes_a_new_run(place: dict[str, str]) -> None:
    done = gsec_here("stage", "baseline", "--run", place["run"], "--store", place["store"], "--redo", "--json")
    result = last_json(done)
    assert result["run_id"] != place["run"]
    assert (result["shards"], result["there"]) == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nowhere", "-k", "3"], "nowhere is not there"),
        (["run", "{folder}", "-k", "30"], "clusters = 30: the source has only 21 images"),
        (["run", "{folder}", "-k", "1"], 'clusters = "1": give `auto` or a whole number, at least 2'),
        (["run", "{folder}", "-k", "2.7"], 'clusters = "2.7": give `auto` or a whole number'),
        (["run", "{folder}", "--encoder", "lit"], "there is no such encoder"),
        (["run", "{folder}", "--store", "http://x/y"], "a store is a folder or one of"),
        (["run", "{folder}", "--set", "encode.batch=3"], "encode.batch: there is no such setting; did you mean encode.batch_size?"),
        (["run", "{folder}", "--redo", "ingest"], "there is nothing to redo"),
        (["run", "{folder}", "--redo", "caption"], "there is no such stage"),
        (["run", "{folder}", "--corpus", "A b"], "a corpus's name has"),
        (["run", "{folder}", "--store", "/proc/nothing"], "cannot be written"),
        (["run"], "give the place of the images"),
        (["run", "caf\udce9", "-k", "3"], r"source = 'caf\udce9': it is not UTF-8. Rename the file or folder, or give a link to it."),
        (["run", "{folder}", "-k", "auto", "--redo", "tarin"], "there is no such stage"),
        (["prune", "--store", "{store}", "--keep-runs", "0"], "Must be >= 1"),
        (["run", "{folder}", "--captioner", "gpt"], "there is no such captioner"),
        (["run", "{folder}", "--redo", "assign"], "there is no such stage"),
        (["run", "{folder}", "--set", "train.device=cuda:99"], "train.device"),
        (["assign", "{folder}", "--run", "{run}", "--store", "{store}"], "is the source of run"),
        (["assign", "{folder}", "--run", "{run}", "--store", "{store}", "--set", "gsec.tol=0.5"], "are taken from the run"),
        (["stage", "assign", "--run", "{run}", "--store", "{store}"], "has no stage assign"),
        (["stage", "nouns", "--run", "{run}", "--store", "{store}"], "Its settings need no such stage"),
        (["assign", "{folder}", "--run", "ffff", "--store", "{store}"], "there is no such run"),
        (["evaluate", "--labels", "nowhere.csv", "--store", "{store}"], "there is no file"),
        (["evaluate", "--labels", "x.csv", "--store", "{folder}"], "it holds no finished run"),
        (["compare", "--store", "{store}"], "give two or more runs"),
        (["compare", "{run}", "--store", "{store}"], "give two or more runs"),
        (["compare", "{run}", "{run}", "--store", "{store}"], "is given twice"),
        (["compare", "{run}", "ffff", "--store", "{store}"], "--run ffff: there is no such run"),
        (["stage", "encode"], "give either --run ID or --config FILE"),
        (["stage", "encode", "--run", "ffff", "--store", "{store}"], "there is no such run"),
        (["stage", "encode", "--run", "{run}", "--store", "{store}", "--set", "clusters=5"], "are taken from the run"),
        (["export", "--to", "", "--store", "{store}"], "--to: it is empty"),
        (["run", "--bogus"], "Unknown option"),
    ],
)
def test_a_wrong_request_is_refused_with_exit_code_2_before_anything_starts(
    arguments: list[str], says: str, place: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.commands._run_flow", lambda config, redo: pytest.fail("it started"))
    with pytest.raises(SystemExit) as exit:
        main([argument.format(**place) for argument in arguments])
    assert exit.value.code == 2
    assert says in capsys.readouterr().err


def flip_a_byte(place: dict[str, str]) -> Path:
    """Damage one embeddings shard, in the middle of its vectors."""
    path = next(Path(place["store"]).glob("in-*/embeddings/*/[!_]*.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return path


def test_a_damaged_shard_is_found_by_doctor_and_made_again_by_the_next_run(place: dict[str, str]) -> None:
    path = flip_a_byte(place)
    done = gsec_here("doctor", "--verify", "--store", place["store"], check=1)
    assert f"FAIL  shards: 1 damaged: {path.relative_to(place['store'])}" in done.stdout
    assert "ok    captioner: tagger can be used" in done.stdout
    done = gsec_here("run", place["folder"], "-k", "3", "--store", place["store"], *SMALL, check=3)
    assert re.search(r"^encode .*, 2 shards were there$", done.stderr, re.MULTILINE)
    assert verify(Store.open(str(place["store"]))) == []


def test_a_damaged_shard_found_by_a_stage_is_set_aside_without_a_traceback(place: dict[str, str]) -> None:
    path = flip_a_byte(place)
    done = gsec_here("stage", "baseline", "--run", place["run"], "--store", place["store"], "--redo", check=1)
    assert "It was set aside" in done.stderr
    assert "Traceback" not in done.stderr
    assert not path.exists()


def test_a_damaged_shard_found_by_a_run_is_made_again_by_the_same_run(place: dict[str, str]) -> None:
    path = flip_a_byte(place)
    done = gsec_here("run", place["folder"], "-k", "4", "--store", place["store"], *SMALL, check=3)
    assert f"damaged, set aside and made again: {path.relative_to(place['store'])}" in done.stderr
    assert "20 images in 4 clusters" in done.stderr


def test_damaged_shards_of_a_finished_run_are_made_again_by_the_same_command(place: dict[str, str]) -> None:
    result = json.loads(place["json"])
    tables = [Path(result["cluster_table"]), Path(result["assignments"]) / "part-00000.parquet"]
    whole = [table.read_bytes() for table in tables]
    for table, data in zip(tables, whole, strict=True):
        table.write_bytes(data[:-20])
    done = gsec_here("run", place["folder"], "-k", "3", "--store", place["store"], *SMALL, check=3)
    for table, data in zip(tables, whole, strict=True):
        assert f"damaged, set aside and made again: {table.relative_to(place['store'])}" in done.stderr
        assert pq.read_table(table) == pq.read_table(io.BytesIO(data))


def test_clusters_auto_finds_the_number_of_clusters_and_encodes_once(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(3))
    for original in sorted(folder.iterdir()):
        for copy in range(29):
            picture(int(original.stem), noise=copy + 1).save(folder / f"{original.stem}-{copy:02d}.jpg", quality=90)
    command = ("run", folder, "-k", "auto", "--store", tmp_path / "store", "--json", *SMALL)
    done = gsec_here(*command)
    assert last_json(done)["clusters"] == 3
    assert "up to 3 clusters are separated, and not more" in done.stderr
    assert len(re.findall("^encode ", done.stderr, re.MULTILINE)) == 1, "the clustering run must reuse what the counting run encoded"
    again = gsec_here(*command)
    assert "nothing to do" in again.stderr
    assert "up to 3 clusters are separated, and not more" in again.stderr
    assert last_json(again)["run_id"] == last_json(done)["run_id"]
    [counts] = (tmp_path / "store").glob("in-*/cluster_counts/*/all.parquet")
    counts.write_bytes(b"damaged")
    assert f"damaged, set aside and made again: {counts.relative_to(tmp_path / 'store')}" in gsec_here(*command).stderr
    [counting, clustering] = last_json(gsec_here("status", "--store", tmp_path / "store", "--json"))["runs"]
    assert (counting["clusters"], list(counting["stages"]), clustering["clusters"]) == ("auto", ["encode", "count"], 3)
    assert (tmp_path / "store").as_posix() in gsec_here("report", "--store", tmp_path / "store").stdout, "report must take the newest run that has clusters"


def test_clusters_auto_is_refused_with_the_purity_curve_if_no_number_stands_out(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(60))
    for _ in range(2):
        done = gsec_here("run", folder, "-k", "auto", "--store", tmp_path / "store", *SMALL, check=2)
        assert "clusters = auto: the images do not show how many clusters there are: no number stands out" in done.stderr
        assert "(purity, mean / low: 2: 0." in done.stderr
        assert "Give a number with --clusters" in done.stderr
    few = write_pictures(tmp_path / "few", range(20))
    done = gsec_here("run", few, "-k", "auto", "--store", tmp_path / "store", *SMALL, check=2)
    assert "clusters = auto: X has 20 rows" in done.stderr


def test_a_run_finished_stage_by_stage_is_published(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(12)), tmp_path / "store", pipeline="by-hand")
    run = run_stages(config, *STAGES[:-1]).run
    assert not (tmp_path / "store" / "published").exists()
    gsec_here("stage", "report", "--run", run.id, "--store", tmp_path / "store")
    assert json.loads((tmp_path / "store" / "published" / "by-hand.json").read_text())["run_id"] == run.id
    said = last_json(gsec_here("status", "--store", tmp_path / "store", "--json"))
    assert [(row["pipeline"], row["run_id"]) for row in said["published"]] == [("by-hand", run.id)]
    assert last_json(gsec_here("publish", "--run", run.id, "--store", tmp_path / "store", "--json"))["number"] == 1, (
        "publishing again must give the same publication"
    )


def test_a_second_run_with_new_images_says_that_the_model_is_kept(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(20))
    command = ("run", folder, "-k", "3", "--store", tmp_path / "store", "--json", *SMALL)
    first = last_json(gsec_here(*command))
    assert first["decision"] is None
    for number in range(2):
        picture(number, noise=1).save(folder / f"new-{number}.jpg", quality=90)
    done = gsec_here(*command)
    second = last_json(done)
    assert second["decision"] == "The published model is kept: 2 new images fit as well as the old ones."
    assert second["decision"] in done.stderr
    assert "the consensus\n" in done.stderr, "a run that keeps the model has no k-means to show"
    assert (second["moved"], second["published"], second["images"]) == (0.0, True, 22)
    assert "model: kept: 2 new images fit as well as the old ones" in gsec_here("status", "--store", tmp_path / "store").stdout
    refused = gsec_here("stage", "train", "--run", second["run_id"], "--store", tmp_path / "store", check=2).stderr
    assert f"keeps the model of run {first['run_id']} and has no stage train of its own" in refused


def test_a_night_makes_damaged_and_lost_tables_of_the_published_run_again(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(20))
    command = ("run", folder, "-k", "3", "--store", tmp_path / "store", "--json", *SMALL)
    first = last_json(gsec_here(*command))
    run = Store.open(str(tmp_path / "store")).run(first["run_id"])
    places = [Path(shards.location(name)) for table in (LAYOUT_TABLE, LINEAGE_TABLE) for shards, [name] in [run.table(table)]]
    whole = [pq.read_table(path) for path in places]
    damaged, lost = places
    damaged.write_bytes(b"damaged")
    lost.unlink()
    picture(0, noise=1).save(folder / "new.jpg", quality=90)
    done = gsec_here(*command)
    second = last_json(done)
    assert second["decision"] == "The published model is kept: 1 new images fit as well as the old ones."
    assert (second["published"], second["images"]) == (True, 21)
    assert f"damaged, set aside and made again: {damaged.relative_to(tmp_path / 'store')}" in done.stderr
    assert [pq.read_table(path) for path in places] == whole
