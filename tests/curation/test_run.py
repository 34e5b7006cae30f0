"""Curation of a run's clusters, and all the places that show it after the next nightly run."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import doctor
from flows.serve import known, metrics, overview
from gsec_core.config import PipelineConfig
from gsec_core.curation import Curated, add, curated, log_of
from gsec_core.curation import published as telling
from gsec_core.curation.log import FIRST_NEW
from gsec_core.errors import BadRecord, GsecError, Refused
from gsec_core.report import collect, pages
from gsec_core.results import finishing, publishing, status
from gsec_core.results.export import export
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import usable
from gsec_core.store import Store, prune
from gsec_core.store.files import LocalFiles

from ..command import gsec_here, last_json
from ..pictures import assign_images, settings
from ..results.test_publishing import GROUPS, night, write_groups


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``in`` with five pictures of each kind and two copies of one, and a ``store`` after the first night."""
    top = tmp_path_factory.mktemp("evening")
    write_groups(top / "in", range(5))
    for copy in ("0-101.jpg", "0-102.jpg"):
        shutil.copy(top / "in" / "0-000.jpg", top / "in" / copy)
    _, found = night(config_of(top / "in", top / "store"))
    assert found["published"]
    return top


def config_of(images: Path, store: Path) -> PipelineConfig:
    return settings(images, store, clusters=GROUPS, pipeline="kinds", train={"refit": "auto"})


@pytest.fixture
def run(evening: Path, tmp_path: Path) -> Context:
    """The published run, in the test's own copy of the store."""
    shutil.copytree(evening / "store", tmp_path / "store")
    store = Store.open(str(tmp_path / "store"))
    newest = store.publications.newest("kinds")
    assert newest is not None
    found = store.run(newest.run_id)
    return Context.of(found, found.config())


@pytest.fixture
def images(evening: Path) -> Iterator[Path]:
    """The source, to which a test may add images; they are removed after it."""
    before = set((evening / "in").iterdir())
    yield evening / "in"
    for path in set((evening / "in").iterdir()) - before:
        path.unlink()


def pointer(context: Context) -> dict[str, Any]:
    return Store(context.run.files).publications.pointer("kinds")


def names(found: Curated) -> dict[int, str]:
    return {cluster.key: cluster.name for cluster in found.clusters}


def ids(context: Context) -> list[str]:
    return [id.hex() for id in usable(context).rows["image_id"].to_pylist()]


def say(context: Context, kind: str, **what: Any) -> int:
    return add(context, kind, who="ann", **what).number


def test_a_name_given_once_stays_after_every_nightly_run(run: Context, images: Path, tmp_path: Path) -> None:
    say(run, "rename", key=0, text="airplanes", why="they are")
    say(run, "split", key=1, parts=2)
    say(run, "merge", key=0, keys=[FIRST_NEW])
    for number in (5, 6):
        write_groups(images, range(number, number + 1))
        context, found = night(config_of(images, tmp_path / "store"))
        assert found["published"]
        now = curated(context)
        assert (now.of_model(0).name, now.open, now.acts, len(now.keys)) == ("airplanes", (), 3, 2 + 3 * (number + 1))
        told = {row["key"]: row for row in pointer(context)["clusters"]}
        assert (told[0]["name"], told[0]["size"]) == ("airplanes", now.of_model(0).size)
        assert set(told) == {0, 1, 2}
        assert pointer(context)["curated"] == {"acts": 3, "open": 0, "last": 3, "error": None}
        assert {row["key"]: row["name"] for row in found["cluster_rows"]}[0] == "airplanes"
        assert found["cluster_rows"][0]["model_name"] != "airplanes"
    assert context.keeps, "the last night must have kept the model of another run"


def test_an_act_about_a_missing_cluster_is_reported_as_open_and_applies_again_later(run: Context, images: Path, tmp_path: Path) -> None:
    for key in range(GROUPS):
        say(run, "rename", key=key, text=f"name {key}")
    fewer = config_of(images, tmp_path / "store").model_copy(update={"clusters": GROUPS - 1})
    context, found = night(fewer)
    assert found["published"]
    now = curated(context)
    gone = set(range(GROUPS)) - {cluster.key for cluster in now.clusters}
    assert {one.act.number: one.why for one in now.open} == {key + 1: f"there is no cluster {key} in this run." for key in gone}
    assert gone
    assert f"{len(gone)} of 3 curation acts cannot be applied" in found["warnings"][-1]
    assert pointer(context)["curated"]["open"] == len(gone)
    assert all(names(now)[key] == f"name {key}" for key in set(range(GROUPS)) - gone)
    publishing.publish_by_hand(run, finishing.summary(run))
    assert pointer(run)["curated"]["open"] == 0
    assert {row["key"]: row["name"] for row in pointer(run)["clusters"]} == {key: f"name {key}" for key in range(GROUPS)}


def test_a_split_divides_the_images_of_a_cluster_into_new_keys_by_size(run: Context) -> None:
    sizes = Counter(curated(run).keys.tolist())
    say(run, "split", key=1, parts=3)
    now = curated(run)
    parts = Counter(now.keys.tolist())
    assert parts[1] + parts[FIRST_NEW] + parts[FIRST_NEW + 1] == sizes[1]
    assert parts[1] >= parts[FIRST_NEW] >= parts[FIRST_NEW + 1] > 0
    assert names(now)[FIRST_NEW] == f"{names(now)[1]} (2)"
    say(run, "split", key=2, parts=2)
    assert FIRST_NEW + 2 in names(curated(run))


def test_images_can_be_moved_hidden_and_starred(run: Context) -> None:
    first, second, third = ids(run)[:3]
    target = next(key for key in range(GROUPS) if key != curated(run).keys[0])
    say(run, "move", key=target, images=[first])
    say(run, "hide", images=[second, second])
    say(run, "star", images=[third])
    say(run, "star", key=target)
    now = curated(run)
    assert (now.keys[0], now.hidden.nonzero()[0].tolist(), now.starred.nonzero()[0].tolist()) == (target, [1], [2])
    assert [cluster.key for cluster in now.clusters if cluster.starred] == [target]
    before = log_of(run).read()
    assert before[1].images[0].content_hash == usable(run).rows["content_hash"][1].as_py().hex()
    assert len(before[1].images) == 1


WRONG = {
    "an empty name": ({"kind": "rename", "key": 0, "text": "  "}, "the name is empty"),
    "a long name": ({"kind": "rename", "key": 0, "text": "x" * 10_000}, "the name has 10,000 characters; at most 200"),
    "a name on two lines": ({"kind": "rename", "key": 0, "text": "a\nb"}, r"the name holds the character U\+000A"),
    "a name that turns around": ({"kind": "rename", "key": 0, "text": "a\u202eb"}, r"the name holds the character U\+202E"),
    "half a character": ({"kind": "rename", "key": 0, "text": "a\ud800"}, r"U\+D800"),
    "no cluster": ({"kind": "rename", "key": 77, "text": "a"}, "rename: there is no cluster 77 in this run"),
    "a negative key": ({"kind": "rename", "key": -1, "text": "a"}, "there is no cluster -1"),
    "a long description": ({"kind": "describe", "key": 0, "text": "x" * 10_000}, "the description has 10,000 characters; at most 2,000"),
    "a cluster with itself": ({"kind": "merge", "key": 0, "keys": [0]}, "a cluster cannot be merged with itself"),
    "a cluster with none": ({"kind": "merge", "key": 0, "keys": [1, 77]}, "there is no cluster 77"),
    "one cluster alone": ({"kind": "merge", "key": 0}, "merge: it takes two or more clusters' keys"),
    "more parts than images": ({"kind": "split", "key": 0, "parts": 8}, "split: cluster 0 has 7 images, fewer than 8 parts"),
    "parts of equal images": ({"kind": "split", "key": 0, "parts": 7}, "split: the images of cluster 0 are too similar to tell 7 parts apart"),
    "one part": ({"kind": "split", "key": 0, "parts": 1}, "split: 1 parts; it must be between 2 and 1,000"),
    "parts of nothing": ({"kind": "split", "key": 77, "parts": 2}, "split: there is no cluster 77"),
    "no parts": ({"kind": "split", "key": 0}, "split: give the cluster, and the number of parts"),
    "no image": ({"kind": "move", "key": 0}, "move: it takes a cluster's key and images, and nothing else"),
    "an unknown image": ({"kind": "hide", "images": ["0" * 32]}, f"image {'0' * 32}: this run has no such image"),
    "a name for an image": ({"kind": "hide", "images": ["a.jpg"]}, "image a.jpg: this is not an image's id"),
    "a cluster and an image": ({"kind": "hide", "key": 0, "images": ["0" * 32]}, "hide: it takes a cluster's key or images"),
    "an unknown act": ({"kind": "undo", "undoes": 9}, "undo: there is no act 9"),
    "an unknown kind": ({"kind": "recolour", "key": 0}, "recolour: there is no such act"),
    "nobody": ({"kind": "star", "key": 0, "who": " "}, "--who is empty"),
    "a reason that cannot be seen": ({"kind": "star", "key": 0, "why": "a\x00"}, r"--why holds the character U\+0000"),
}


@pytest.fixture(scope="module")
def untouched(evening: Path) -> Context:
    store = Store.open(str(evening / "store"))
    [run] = store.runs()
    return Context.of(run, run.config())


@pytest.mark.parametrize("wrong", WRONG)
def test_an_invalid_act_is_refused_in_one_sentence_and_not_logged(untouched: Context, wrong: str) -> None:
    what, says = WRONG[wrong]
    with pytest.raises(Refused, match=says) as raised:
        add(untouched, **{"who": "ann", **what})
    assert "\n" not in str(raised.value)
    assert not untouched.run.files.directories("curation")


def test_a_name_that_another_cluster_has_is_refused_with_the_advice_to_merge(run: Context) -> None:
    say(run, "rename", key=0, text="Straße")
    say(run, "rename", key=0, text="straße", why="its own name is no other's")
    with pytest.raises(Refused, match=r"cluster 0 is called straße already. Give another name, or merge them: gsec curate merge 0 1"):
        say(run, "rename", key=1, text="STRASSE")
    say(run, "merge", key=0, keys=[1])
    with pytest.raises(Refused, match="cluster 1 is part of cluster 0 since act 3"):
        say(run, "rename", key=1, text="birds")
    with pytest.raises(Refused, match="cluster 1 is part of cluster 0 since act 3"):
        say(run, "merge", key=2, keys=[1])


def test_an_image_of_a_hidden_cluster_can_be_shown_only_with_its_cluster(run: Context) -> None:
    key = int(curated(run).keys[0])
    say(run, "hide", key=key)
    with pytest.raises(Refused, match=f"is hidden with its cluster. Show the cluster: gsec curate show --cluster {key}"):
        say(run, "show", images=ids(run)[:1])
    say(run, "show", key=key)
    say(run, "show", images=ids(run)[:1])


def test_an_act_can_be_undone_only_once(run: Context) -> None:
    say(run, "rename", key=0, text="airplanes")
    say(run, "undo", undoes=1)
    with pytest.raises(Refused, match=r"act 1 is undone already, by act 2. To bring it back, undo that one"):
        say(run, "undo", undoes=1)
    say(run, "undo", undoes=2)
    assert names(curated(run))[0] == "airplanes"


def test_the_second_of_two_concurrent_acts_is_checked_again_after_the_first(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    create = LocalFiles.create

    def slow(self: LocalFiles, path: str, data: bytes) -> bool:
        monkeypatch.setattr(LocalFiles, "create", create)
        first = Context.of(run.run, run.config)
        add(first, "split", who="bob", key=2, parts=2)
        return create(self, path, data)

    monkeypatch.setattr(LocalFiles, "create", slow)
    second = add(run, "split", who="ann", key=1, parts=2)
    assert [(act.number, act.keys) for act in log_of(run).read()] == [(1, (FIRST_NEW,)), (2, (FIRST_NEW + 1,))]
    assert second.number == 2
    assert pointer(run)["curated"]["acts"] == 2


def test_a_pointer_not_updated_because_of_a_kill_is_updated_by_the_next_finish(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(telling, "tell", lambda *of: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            say(run, "rename", key=0, text="airplanes")
    assert pointer(run)["curated"]["acts"] == 0
    assert finishing.finish(run)["published"], "a night without changes must succeed"
    assert pointer(run)["curated"]["acts"] == 1
    assert "airplanes" in [row["name"] for row in pointer(run)["clusters"]]


def test_a_slow_writer_does_not_leave_an_older_pointer(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = LocalFiles.replace

    def slow(self: LocalFiles, path: str, data: bytes) -> None:
        monkeypatch.setattr(LocalFiles, "replace", replaced)
        add(Context.of(run.run, run.config), "rename", who="bob", key=1, text="birds")
        replaced(self, path, data)

    monkeypatch.setattr(LocalFiles, "replace", slow)
    say(run, "rename", key=0, text="airplanes")
    assert pointer(run)["curated"]["acts"] == 2
    assert {"airplanes", "birds"} <= {row["name"] for row in pointer(run)["clusters"]}


def test_a_damaged_log_does_not_stop_the_nightly_run_and_is_reported_everywhere(run: Context, images: Path, tmp_path: Path) -> None:
    say(run, "rename", key=0, text="airplanes")
    path = tmp_path / "store" / "curation" / "kinds" / "00000001.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    write_groups(images, range(6, 7))
    context, found = night(config_of(images, tmp_path / "store"))
    assert found["published"]
    assert str(path) in found["warnings"][-1]
    assert str(path) in pointer(context)["curated"]["error"]
    assert str(path) in status.published(Store(context.run.files))[0]["error"]
    assert any(str(path) in line for line in collect.collect(context).curation)
    with pytest.raises(BadRecord, match="it is not what gsec writes"):
        export(context, tmp_path / "out")
    with pytest.raises(GsecError, match=f"{path}: it is not what gsec writes"):
        doctor.store(context.config)
    shown = known.Known(Store(context.run.files))
    assert [line for line in overview.overview([shown]).wrong if str(path) in line]
    assert "gsec_unreadable_records" in [family.name for family in metrics.Stores([shown]).collect()]
    path.write_bytes(whole)
    assert finishing.finish(context)["published"]
    assert pointer(context)["curated"]["error"] is None
    assert ", 1 acts of curation, " in doctor.store(context.config)


def test_after_a_damaged_last_act_is_renamed_the_pointer_has_the_next_act(run: Context, tmp_path: Path) -> None:
    say(run, "rename", key=0, text="airplanes")
    say(run, "rename", key=1, text="lost")
    path = tmp_path / "store" / "curation" / "kinds" / "00000002.json"
    path.write_bytes(b"")
    run = Context.of(run.run, run.config)  # as the next command opens it
    with pytest.raises(BadRecord, match=f"rename it to {path.name}.damaged: its act is then lost"):
        say(run, "rename", key=2, text="birds")
    path.rename(f"{path}.damaged")
    assert say(run, "rename", key=2, text="birds") == 3
    told = {row["key"]: row["name"] for row in pointer(run)["clusters"]}
    assert told == names(curated(run))
    assert (told[0], told[1] == "lost", told[2]) == ("airplanes", False, "birds")


def test_doctor_reports_acts_of_a_newer_gsec(run: Context, tmp_path: Path) -> None:
    say(run, "rename", key=0, text="airplanes")
    path = tmp_path / "store" / "curation" / "kinds" / "00000002.json"
    path.write_text(json.dumps({"kind": "recolour", "who": "bob", "at": "2030"}))
    [one] = curated(run).open
    assert (one.act.number, names(curated(run))[0]) == (2, "airplanes")
    with pytest.raises(GsecError, match="pipeline kinds: acts 2 come from a newer gsec"):
        doctor.store(run.config)


def test_exports_have_the_curated_clusters_and_the_models_own_beside_them(run: Context, tmp_path: Path) -> None:
    plain = export(run, tmp_path / "plain")
    before = pl.read_parquet(tmp_path / "plain" / "assignments.parquet")
    assert "hidden" not in before.columns
    first, second = ids(run)[:2]
    say(run, "rename", key=0, text="airplanes")
    say(run, "merge", key=0, keys=[1])
    say(run, "split", key=2, parts=2)
    say(run, "hide", images=[first])
    say(run, "move", key=FIRST_NEW, images=[second])
    written = export(run, tmp_path / "out", "links")
    after = pl.read_parquet(tmp_path / "out" / "assignments.parquet")
    now = curated(run)
    assert (written["assignments.parquet"], written["images"]) == (plain["assignments.parquet"], len(before) - 1)
    assert after["cluster_key"].to_list() == now.keys.tolist()
    assert after["name"].to_list() == [names(now)[key] for key in now.keys.tolist()]
    assert after["hidden"].to_list() == now.hidden.tolist()
    assert after.select(cluster_key="model_cluster_key", name="model_name").equals(before.select("cluster_key", "name"))
    assert before.drop("cluster_key", "name").equals(after.drop("cluster_key", "name", "hidden", "model_cluster_key", "model_name"))
    cells = {row["cluster_key"]: row for row in csv.DictReader((tmp_path / "out" / "clusters.csv").open(newline=""))}
    assert [cells["0"][name] for name in ("name", "merged", "model_cluster_key")] == ["airplanes", "1", "0"]
    assert cells["0"]["model_name"] == before.filter(pl.col("cluster_key") == 0)["name"][0]
    assert (cells[str(FIRST_NEW)]["model_name"], "1" in cells) == ("", False)
    found = json.loads((tmp_path / "out" / "clusters.json").read_text())
    assert sum(row["size"] for row in found["clusters"]) == len(before)
    assert [row["merged"] for row in found["clusters"]] == [[1], [], []]
    assert found["model_clusters"] == json.loads((tmp_path / "plain" / "clusters.json").read_text())["clusters"]
    assert (found["acts"], found["open_acts"]) == (5, 0)
    folders = {path.name: len(list(path.iterdir())) for path in (tmp_path / "out" / "images").iterdir()}
    shown = Counter(f"{key} {names(now)[key]}" for key, hidden in zip(now.keys.tolist(), now.hidden.tolist(), strict=True) if not hidden)
    assert folders == dict(shown)


def test_a_report_shows_curated_names_beside_the_models_and_hides_hidden_clusters(run: Context) -> None:
    assert collect.collect(run).curation == ()
    say(run, "rename", key=0, text="airplanes & <b>birds</b>")
    say(run, "merge", key=0, keys=[1])
    say(run, "hide", key=2)
    content = collect.collect(run)
    assert [row.name for row in content.clusters][:2] == ["airplanes & <b>birds</b>"] * 2
    assert all(row.model_name for row in content.clusters[:2])
    assert not [shown for shown in content.shown if shown.cluster == 2]
    page = dict(pages.pages(content))["index.html"].decode()
    assert "up to act 3" in page
    assert "airplanes &amp; &lt;b&gt;birds" in page
    assert f"model: <bdi>{content.clusters[0].model_name}</bdi>" in page


def test_status_and_metrics_count_the_acts_and_prune_keeps_the_log(run: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say(run, "rename", key=0, text="airplanes")
    store = Store(run.run.files)
    assert [(row["acts"], row["open_acts"], row["error"]) for row in status.published(store)] == [(1, 0, None)]
    samples = {sample.name: sample.value for family in metrics.Stores([known.Known(store)]).collect() for sample in family.samples}
    assert (samples["gsec_curation_acts"], samples["gsec_curation_open_acts"]) == (1, 0)
    monkeypatch.setattr(prune, "GRACE", -prune.GRACE)
    for deletion in prune.plan(store, 1):
        assert not deletion.path.startswith("curation")
    assert "curation" not in [corpus.name for corpus in store.corpora()]
    with pytest.raises(Refused, match="--corpus curation"):
        store.corpus("curation")


def test_assigned_images_get_the_curated_clusters(run: Context, tmp_path: Path) -> None:
    say(run, "rename", key=0, text="airplanes")
    say(run, "split", key=1, parts=2)
    say(run, "hide", images=ids(run))
    context = assign_images(run, settings(write_groups(tmp_path / "new", range(3)), tmp_path / "store"))
    found = finishing.finish(context)
    assert {row["key"]: row["name"] for row in found["cluster_rows"]}[0] == "airplanes"
    now = curated(context)
    assert (len(now.keys), names(now)[0], now.open, now.acts) == (9, "airplanes", (), 3)
    shared = {*ids(run)} & {*ids(context)}
    assert shared
    assert not now.hidden.any(), "acts on images are about the images of the run, even if new ones have the same name and bytes"
    export(context, tmp_path / "out")
    assert "airplanes" in pl.read_parquet(tmp_path / "out" / "assignments.parquet")["name"].to_list()
    with pytest.raises(Refused, match=f"it assigns images to the clusters of run {run.run.id}. Name that run to curate them"):
        say(context, "rename", key=0, text="birds")


def test_every_subcommand_of_curate_works(run: Context, tmp_path: Path) -> None:
    store = ["--store", tmp_path / "store"]
    done = gsec_here("curate", "rename", "0", "airplanes", *store, "--who", "ann", "--why", "they are")
    assert done.stdout == 'act 1 of pipeline kinds: rename 0 "airplanes"\n'
    assert last_json(gsec_here("curate", "move", "1", "0-001.jpg", ids(run)[0], "--json", "--run", run.run.id[:8], *store))["number"] == 2
    for command in (["hide", "0-001.jpg"], ["star", "-c", "2"], ["show", "0-001.jpg"], ["unstar", "-c", "2"], ["describe", "0", "They fly."]):
        gsec_here("curate", *command, *store)
    assert "split 2 2, making 1000000" in gsec_here("curate", "split", "2", "2", *store, "--pipeline", "kinds").stdout
    gsec_here("curate", "rename", "1000000", "gulls", *store)
    gsec_here("curate", "undo", "8", *store)
    gsec_here("curate", "merge", "0", "1", *store)
    lines = gsec_here("curate", "log", *store).stdout.splitlines()
    assert re.fullmatch(r' +1  \d{4}-\d\d-\d\d \d\d:\d\d UTC  ann: rename 0 "airplanes" \(they are\)', lines[0])
    assert lines[7].endswith("undone by 10")
    assert lines[8].endswith("OPEN: there is no cluster 1000000, as act 8, which makes it, is undone or open.")
    assert lines[-1] == f"11 acts in pipeline kinds, 1 open in run {run.run.id}"
    found = last_json(gsec_here("curate", "log", "--json", *store))
    assert (found["open"], found["acts"][7]["undone_by"], found["acts"][0]["who"]) == (1, 10, "ann")
    assert "kinds: 11 acts of curation, 1 open" in gsec_here("status", *store).stdout


def test_invalid_curate_commands_are_refused_with_exit_code_2(run: Context, tmp_path: Path) -> None:
    store = ["--store", tmp_path / "store"]
    before = pointer(run)
    for command, says in {
        ("rename", "77", "birds"): "rename: there is no cluster 77",
        ("rename", "zero", "birds"): "zero",
        ("merge",): "merge: it takes two or more clusters' keys",
        ("hide", "nothing.jpg"): f'image "nothing.jpg": run {run.run.id} has no usable image of this URI',
        ("hide", "2"): f'image "2": run {run.run.id} has no usable image of this URI. If you mean cluster 2, write: --cluster 2',
        ("move", "0", "2"): "Give it as in the table of assignments",
        ("move", "0", ""): f'image "": run {run.run.id} has no usable image of this URI',
        ("hide", "caf\udce9.jpg"): 'image "caf\udce9.jpg": run ',
        ("hide",): "hide: it takes a cluster's key or images",
        ("log", "--pipeline", "other"): "--pipeline other:",
        ("log", "--pipeline", "other", "--run", run.run.id): f"run {run.run.id} is of pipeline kinds",
        ("log", "--run", "nothing"): "there is no such run",
    }.items():
        error = gsec_here("curate", *command, *store, check=2).stderr
        assert says in error
        assert error.count("\n") == 1
    assert pointer(run) == before
    assert "nothing is published. Name a finished run with --run" in gsec_here("curate", "log", "--store", tmp_path / "empty", check=2).stderr
