"""The published clustering over several nights: which runs replace it, which do not, and the keys of its clusters."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.results import finishing, publishing, status
from gsec_core.stages import align
from gsec_core.stages.base import Context
from gsec_core.store import Store, prune
from gsec_core.store.files import Files, LocalFiles
from gsec_core.store.publications import More, Publication, Publications
from gsec_core.tables import FRESH

from ..pictures import assign_images, cluster, labels, picture, settings, write_pictures
from ..stages.steps import STAGES, run_stages

GROUPS = 3

Night = tuple[Path, PipelineConfig]
"""The folder of images, and the settings."""


def write_groups(folder: Path, numbers: range) -> Path:
    """Write ``KIND-NUMBER.jpg``: pictures of three kinds so different that any clustering tells them apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        for kind in range(GROUPS):
            picture(kind + 1, noise=1 + number).save(folder / f"{kind}-{number:03d}.jpg", quality=90)
    return folder


def night(config: PipelineConfig, redo: tuple[str, ...] = ()) -> tuple[Context, dict[str, Any]]:
    """Do a whole nightly run. Returns its context and its summary."""
    context, _, _ = cluster(config, redo)
    return context, finishing.finish(context)


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``in`` with eight pictures of each kind, a ``copy`` of it, and a ``store`` after the first night."""
    top = tmp_path_factory.mktemp("evening")
    write_groups(top / "in", range(8))
    shutil.copytree(top / "in", top / "copy")
    night(settings(top / "in", top / "store", clusters=GROUPS, pipeline="kinds"))
    return top


@pytest.fixture
def second_night(evening: Path, tmp_path: Path) -> Night:
    """The state before the second night: the folder reset, and the test's own copy of the store."""
    shutil.rmtree(evening / "in")
    shutil.copytree(evening / "copy", evening / "in")
    shutil.copytree(evening / "store", tmp_path / "store")
    return evening / "in", settings(evening / "in", tmp_path / "store", clusters=GROUPS, pipeline="kinds")


def pointer(store: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / "published" / f"{name}.json").read_text())
    return found


def keys_of_kinds(context: Context, summary: dict[str, Any]) -> dict[str, set[int]]:
    """Kind -> the keys of the clusters that hold its pictures."""
    key_of = {row["cluster"]: row["key"] for row in summary["cluster_rows"]}
    found: dict[str, set[int]] = {}
    for uri, label in labels(context).items():
        found.setdefault(uri.split("-")[0], set()).add(key_of[label])
    return found


def test_keys_of_clusters_persist_over_three_nights_of_growth(tmp_path: Path) -> None:
    """The kinds grow at different rates, so that the numbers of clusters, which are by size, change."""
    folder, config = tmp_path / "in", settings(tmp_path / "in", tmp_path / "store", clusters=GROUPS, pipeline="kinds")
    write_groups(folder, range(12))
    first, found = night(config)
    keys = keys_of_kinds(first, found)
    assert sorted(next(iter(kind)) for kind in keys.values()) == [0, 1, 2], "each kind must be a cluster, or this test would prove nothing"
    assert (found["published"], found["moved"]) == (True, None)
    seen = [labels(first)]
    for more in (1, 2):
        for number in range(20 * more, 20 * more + 8):
            kind = more % GROUPS
            picture(kind + 1, noise=1 + number).save(folder / f"{kind}-{number:03d}.jpg", quality=90)
        context, found = night(config)
        assert keys_of_kinds(context, found) == keys
        assert (found["published"], found["moved"], found["warnings"]) == (True, 0.0, ())
        assert pointer(tmp_path / "store", "kinds")["run_id"] == context.run.id
        seen.append(labels(context))
    assert any(seen[0][uri] != seen[-1][uri] for uri in seen[0]), "the numbers of clusters must change, or this test would prove nothing"
    assert [made.generation for made in Store.open(config.store).publications.newest_first("kinds")] == [3, 2, 1]


def test_a_new_cluster_gets_a_key_that_was_never_used(tmp_path: Path) -> None:
    folder = write_groups(tmp_path / "in", range(10))
    _, before = night(settings(folder, tmp_path / "store", clusters=GROUPS, pipeline="kinds"))
    for name in folder.glob("2-*"):
        name.unlink()
    for number in range(10):
        picture(9, noise=1 + number).save(folder / f"9-{number:03d}.jpg", quality=90)
    context, found = night(settings(folder, tmp_path / "store", clusters=GROUPS, pipeline="kinds", ingest={"max_shrink": 0.5}))
    keys = keys_of_kinds(context, found)
    assert keys["9"] == {GROUPS}
    assert {row["key"] for row in before["cluster_rows"]} == {0, 1, 2}
    assert pointer(tmp_path / "store", "kinds")["next_key"] == GROUPS + 1


def test_the_same_request_is_found_again_and_published_only_once(tmp_path: Path) -> None:
    config = settings(write_groups(tmp_path / "in", range(8)), tmp_path / "store", clusters=GROUPS)
    context, _ = night(config)
    again = pipeline.nothing_to_do(config)
    assert again is not None
    assert again.id == context.run.id
    said, points = finishing.finish(Context.of(again, config)), pointer(tmp_path / "store", context.corpus.name)
    assert said["published"]
    assert said["assignments"] == str(tmp_path / "store" / points["corpus"] / "assignments" / points["assignments"]), (
        "the published record must lead to the rows"
    )
    assert len(list(Store.open(config.store).publications.newest_first(context.corpus.name))) == 1


def test_a_failed_night_leaves_the_last_publication_unchanged(second_night: Night, tmp_path: Path) -> None:
    """In one night a third of the images is missing; in another the run stops half-way."""
    folder, config = second_night
    good, _ = night(config)
    before, labelled = pointer(tmp_path / "store", "kinds"), labels(good)
    hidden = [path.rename(tmp_path / path.name) for path in folder.glob("1-*")]
    with pytest.raises(Refused, match="max_shrink"):
        night(config)
    assert pointer(tmp_path / "store", "kinds") == before
    for path in hidden:
        path.rename(folder / path.name)
    write_groups(folder, range(8, 10))
    half = run_stages(config, *STAGES[:4])
    assert not half.run.is_finished()
    assert pointer(tmp_path / "store", "kinds") == before
    assert labels(Context.of(Store.open(config.store).run(before["run_id"]), config)) == labelled


def test_a_run_with_too_many_rejects_is_not_published(second_night: Night, tmp_path: Path) -> None:
    folder, config = second_night
    good, _ = night(config)
    (folder / "bad.jpg").write_text("no image")
    bad, found = night(config)
    assert (found["published"], found["held"]) == (False, True)
    assert "1 of 25 images were rejected" in found["warnings"][0]
    assert found["warnings"][0].endswith("see unusable.csv of gsec export.")
    assert (bad.run.result() or {})["warnings"] == list(found["warnings"]), "the list of runs shows why"
    assert not found["moved_far"]
    assert f"gsec publish --run {bad.run.id}" in found["why_not"]
    assert publishing.told(found) == [*found["warnings"], found["why_not"]]
    assert pointer(tmp_path / "store", "kinds")["run_id"] == good.run.id
    allowed = pipeline.nothing_to_do(config)
    assert allowed is not None, "the run must be finished"
    assert finishing.finish(Context.of(allowed, settings(folder, config.store, clusters=GROUPS, pipeline="kinds", max_rejects=1)))["published"]


def moving(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr("gsec_core.stages.lineage.moved", lambda context: share)


def test_a_run_that_moved_many_images_is_held_unless_its_settings_changed(second_night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = second_night
    good, _ = night(config)
    write_groups(folder, range(8, 10))
    moving(monkeypatch, 0.4)
    far, found = night(config)
    assert (found["published"], found["held"], found["moved_far"]) == (False, True, True)
    assert "40.0% of the images" in found["warnings"][0]
    assert pointer(tmp_path / "store", "kinds")["run_id"] == good.run.id
    other, found = night(settings(folder, config.store, clusters=GROUPS + 1, pipeline="kinds"))
    assert (found["published"], found["held"], found["moved_far"]) == (True, False, True)
    assert "40.0% of the images" in found["warnings"][0]
    with pytest.raises(Refused, match="another run was published after this one was requested"):
        publishing.publish_by_hand(far, finishing.summary(far))
    assert pointer(tmp_path / "store", "kinds")["run_id"] == other.run.id


def test_a_held_run_can_be_published_by_hand_and_going_back_is_respected(second_night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = second_night
    good, _ = night(config)
    write_groups(folder, range(8, 10))
    moving(monkeypatch, 0.4)
    far, found = night(config)
    assert found["held"]
    assert publishing.publish_by_hand(far, finishing.summary(far)).number == 2
    assert pointer(tmp_path / "store", "kinds")["run_id"] == far.run.id
    back = publishing.publish_by_hand(good, finishing.summary(good))
    assert (back.number, back.run_id, back.generation, back.moved) == (3, good.run.id, 1, None)
    moving(monkeypatch, 0.0)
    again, found = night(config)
    assert labels(again) == labels(far)
    assert (found["published"], found["held"]) == (False, True), "clusters a user went back from must not be published again automatically"
    assert f"user went back from these clusters to run {good.run.id}" in found["warnings"][-1]
    write_groups(folder, range(10, 12))
    after, found = night(config)
    assert found["published"], "a night with new images must continue from the run the user went back to"
    assert after.run.request()["previous"]["run_id"] == good.run.id


def test_a_redo_that_a_user_went_back_from_is_not_done_again(second_night: Night) -> None:
    folder, config = second_night
    config = config.model_copy(update={"train": config.train.model_copy(update={"refit": "auto"})})
    good, _ = night(config)
    redone, found = night(config, ("train",))
    assert (redone.decision["decision"], found["published"]) == (FRESH, True)
    publishing.publish_by_hand(good, finishing.summary(good))
    for number in (8, 9):
        write_groups(folder, range(number, number + 1))
        after, found = night(config)
        assert found["published"]
        assert after.run.model().id == good.run.model().id, after.decision["why"]
    write_groups(folder, range(10, 11))
    assert night(config, ("train",))[0].decision["why"] == "it was requested: --redo train"


def test_a_clustering_with_new_keys_that_a_user_went_back_from_is_held_too(second_night: Night, tmp_path: Path) -> None:
    """Repeating it makes another run, since keys are not reused, but with the same clusters."""
    folder, config = second_night
    more = settings(folder, tmp_path / "store", clusters=GROUPS + 1, pipeline="kinds")
    good, _ = night(config)
    wrong, found = night(more)
    assert found["published"]
    publishing.publish_by_hand(good, finishing.summary(good))
    again, found = night(more)
    assert again.run.id != wrong.run.id
    assert (found["published"], found["held"]) == (False, True)
    assert publishing.publish_by_hand(again, finishing.summary(again)).left is None


def test_after_going_back_two_steps_the_clustering_left_is_held(second_night: Night, tmp_path: Path) -> None:
    folder, config = second_night
    first, _ = night(config)
    write_groups(folder, range(8, 10))
    second, _ = night(config)
    write_groups(folder, range(10, 12))
    wrong, found = night(config)
    assert found["published"]
    for context in (second, first):
        publishing.publish_by_hand(context, finishing.summary(context))
    again, found = night(config)
    assert labels(again) == labels(wrong)
    assert (found["published"], found["held"]) == (False, True)
    assert f"user went back from these clusters to run {second.run.id}" in found["warnings"][-1]


def test_after_an_upgrade_going_back_leads_to_the_rows_that_were_published(second_night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = second_night
    old, _ = night(config)
    published = pointer(tmp_path / "store", "kinds")["assignments"]
    monkeypatch.setitem(align.STAGE.__dict__, "version", align.STAGE.version + 1)
    write_groups(folder, range(8, 9))
    _, found = night(config)
    assert found["published"]
    assert pointer(tmp_path / "store", "kinds")["assignments"] != published
    publishing.publish_by_hand(old, finishing.summary(old))
    assert pointer(tmp_path / "store", "kinds")["assignments"] == published


def test_a_number_of_clusters_found_by_auto_does_not_count_as_a_changed_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_groups(tmp_path / "in", range(8))
    moving(monkeypatch, 0.4)

    def counted(clusters: int, counting: str | None) -> dict[str, Any]:
        context, _, _ = cluster(settings(folder, tmp_path / "store", clusters=clusters, pipeline="kinds"), counting=counting)
        return finishing.finish(context)

    asked, _ = pipeline.request(settings(folder, tmp_path / "store", clusters="auto"))
    assert counted(2, asked.id)["published"], "the first run is published"
    assert counted(3, asked.id)["held"], "it moved many images, and three was not asked for"
    assert counted(4, None)["published"], "four was asked for"
    assert counted(5, asked.id)["published"], "the settings changed from a number that was asked for to auto"
    for other in ("a" * 32, pipeline.newest_run(settings(folder, tmp_path / "store")).id):
        with pytest.raises(Refused, match=other):
            counted(6, other)


def test_a_run_without_an_image_in_common_with_the_published_one_is_held(second_night: Night, tmp_path: Path) -> None:
    """All images are overwritten under their names. None is missing, so that ingest does not refuse the run."""
    folder, config = second_night
    for path in folder.iterdir():
        kind, number = path.stem.split("-")
        picture(int(kind) + 1, noise=100 + int(number)).save(path, quality=80)
    _, found = night(config)
    assert (found["published"], found["held"], found["moved_far"], found["moved"]) == (False, True, True, None)
    assert "This clustering has no image in common with the published one" in found["warnings"][0]


def test_a_run_that_two_workers_finish_is_published_once_and_both_report_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second worker checks before the first has published, and writes after it."""
    config = settings(write_groups(tmp_path / "in", range(8)), tmp_path / "store", clusters=GROUPS, pipeline="kinds")
    context, _, _ = cluster(config)
    add = Publications.add

    def slow(self: Publications, publication: Publication, more: More) -> bool:
        with monkeypatch.context() as patched:
            patched.setattr(Publications, "add", add)
            assert finishing.finish(context)["replaces"]
        return add(self, publication, more)

    monkeypatch.setattr(Publications, "add", slow)
    said = finishing.finish(context)
    assert (said["published"], said["why_not"]) == (True, None)
    assert [made.run_id for made in Store.open(config.store).publications.newest_first("kinds")] == [context.run.id]


def test_a_slow_publisher_does_not_leave_an_older_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process publishes between the first one's publication and its pointer."""
    store = Store.open(str(tmp_path / "store"))
    first = Publication("kinds", 1, "a" * 32, "in", 1, "f" * 32, 3, None, None, "2026-01-01T00:00:00+00:00")
    replaced = type(store.files).replace

    def slow(self: Files, path: str, data: bytes) -> None:
        monkeypatch.setattr(type(store.files), "replace", replaced)
        assert store.publications.add(replace(first, number=2, run_id="b" * 32))
        replaced(self, path, data)

    monkeypatch.setattr(type(store.files), "replace", slow)
    assert store.publications.add(first)
    assert pointer(tmp_path / "store", "kinds")["number"] == 2


def test_a_night_without_changes_publishes_nothing(tmp_path: Path) -> None:
    config = settings(write_groups(tmp_path / "in", range(8)), tmp_path / "store", clusters=GROUPS, pipeline="kinds")
    assert [night(config)[1]["replaces"] for _ in range(2)] == [True, False]


def test_the_second_of_two_runs_that_continue_one_clustering_does_not_replace_the_first(second_night: Night, tmp_path: Path) -> None:
    folder, _ = second_night
    one, other = (cluster(settings(folder, tmp_path / "store", clusters=GROUPS + more, pipeline="kinds"))[0] for more in (1, 2))
    assert finishing.finish(one)["published"]
    late = finishing.finish(other)
    assert (late["published"], late["held"]) == (False, False)
    assert "another run was published after this one was requested" in late["why_not"]
    assert pointer(tmp_path / "store", "kinds")["run_id"] == one.run.id
    again, found = night(settings(folder, tmp_path / "store", clusters=GROUPS + 2, pipeline="kinds"))
    assert found["published"]
    assert again.run.request()["previous"]["run_id"] == one.run.id
    assert labels(again) == labels(other), "only keys and report are made again, so labels must be equal"


def test_an_older_generation_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    folder, store = write_groups(tmp_path / "in", range(8)), tmp_path / "store"
    old, _, _ = cluster(settings(folder, store, clusters=GROUPS, pipeline="kinds"))
    write_groups(folder, range(8, 10))
    new, _, _ = cluster(settings(folder, store, clusters=GROUPS, pipeline="kinds"))
    assert finishing.finish(new)["published"]
    late = finishing.finish(old)
    assert not late["published"]
    assert pointer(store, "kinds")["run_id"] == new.run.id


def test_pipelines_of_one_corpus_publish_independently(tmp_path: Path) -> None:
    folder = write_groups(tmp_path / "in", range(8))
    few, _ = night(settings(folder, tmp_path / "store", clusters=2, pipeline="few"))
    many, _ = night(settings(folder, tmp_path / "store", clusters=5, pipeline="many"))
    assert pointer(tmp_path / "store", "few")["run_id"] == few.run.id
    assert pointer(tmp_path / "store", "many")["run_id"] == many.run.id
    assert many.run.request()["previous"] is None
    same, found = night(settings(folder, tmp_path / "store", clusters=2, pipeline="also"))
    assert found["published"]
    assert same.run.id != few.run.id


def test_a_pipeline_publishes_only_one_corpus_and_its_name_is_checked(second_night: Night, tmp_path: Path) -> None:
    folder, _ = second_night
    with pytest.raises(Refused, match="publishes corpus in-"):
        pipeline.request(settings(write_pictures(tmp_path / "other", range(9)), tmp_path / "store", pipeline="kinds"))
    for name in ("../kinds", "kinds.json"):
        with pytest.raises(Refused, match="a pipeline's name has"):
            pipeline.request(settings(folder, tmp_path / "store", pipeline=name))


def test_a_run_that_assigns_is_not_published(second_night: Night, tmp_path: Path) -> None:
    _, config = second_night
    model, _ = night(config)
    before = pointer(tmp_path / "store", "kinds")
    context = assign_images(model, settings(write_pictures(tmp_path / "new", range(4)), tmp_path / "store"))
    said = finishing.finish(context)
    assert (said["images"], said["published"], said["held"]) == (4, False, False)
    assert pointer(tmp_path / "store", "kinds") == before


def test_a_pointer_missing_after_a_kill_is_written_by_the_next_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(write_groups(tmp_path / "in", range(8)), tmp_path / "store", clusters=GROUPS, pipeline="kinds")
    context, _, _ = cluster(config)
    with monkeypatch.context() as patched:
        patched.setattr(LocalFiles, "replace", lambda self, path, data: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finishing.finish(context)
    assert [made.run_id for made in Store.open(config.store).publications.newest_first("kinds")] == [context.run.id]
    assert not (tmp_path / "store" / "published" / "kinds.json").exists()
    assert finishing.finish(context)["published"]
    assert pointer(tmp_path / "store", "kinds")["run_id"] == context.run.id


def test_a_published_run_whose_request_is_lost_is_made_again(tmp_path: Path) -> None:
    folder, store = write_groups(tmp_path / "in", range(8)), tmp_path / "store"
    config = settings(folder, store, clusters=GROUPS, pipeline="kinds")
    for number in range(8, 11):
        context, found = night(config)
        request = store / "runs" / context.run.id / "request.json"
        before = json.loads(request.read_text())
        shutil.rmtree(request.parent)
        with pytest.raises(Refused, match="which is published, is no longer in"):
            prune.plan(Store.open(config.store))
        again, found = night(config)
        assert (again.run.id, found["published"]) == (context.run.id, True)
        assert {**json.loads(request.read_text()), "created": before["created"]} == before
        write_groups(folder, range(number, number + 1))
    assert [made.number for made in Store.open(config.store).publications.newest_first("kinds")] == [3, 2, 1]
    shutil.rmtree(request.parent)
    with pytest.raises(Refused, match="which is published, is no longer in") as raised:  # new images make it another request
        pipeline.request(config)
    path = store / "published" / "kinds" / "00000003.json"
    assert f"or remove {path}, " in str(raised.value)
    path.unlink()
    assert night(config)[1]["published"]


def test_foreign_files_beside_publications_are_ignored(second_night: Night, tmp_path: Path) -> None:
    _, config = second_night
    (tmp_path / "store" / "published" / "Kinds old").mkdir()
    (tmp_path / "store" / "published" / "kinds" / "00000002.json.bak").write_text("{}")
    store = Store.open(config.store)
    assert [row["pipeline"] for row in status.published(store)] == ["kinds"]
    assert [made.number for made in store.publications.newest_first("kinds")] == [1]
    prune.plan(store)
