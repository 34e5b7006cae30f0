"""From embeddings and counterparts to the consensus: what is made again after which change, and what must stay equal."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_info

from gsec_core import GSEC, pipeline
from gsec_core.clustering import ensemble
from gsec_core.errors import GsecError, Refused
from gsec_core.methods.gsec import estimator as gsec
from gsec_core.stages import align, assign, baseline, encode, fuse, refit, train
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.canonical import load_embeddings
from gsec_core.tables import ALIGNMENT_TABLE, ASSIGNED_TABLE, ASSIGNMENTS_TABLE, CLUSTERS_TABLE, MEMBERS_TABLE

from ..pictures import SMALL, assign_images, cluster, labels, settings, write_pictures
from .steps import STAGES


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "in", range(40))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A finished run with two blocks of members."""
    return cluster(settings(source, tmp_path_factory.mktemp("whole"), clusters=3, train={"n_members": 12}))[0]


def test_training_uses_the_threads_of_the_settings_also_outside_torch(whole: Context) -> None:
    """Members start from a k-means, whose rounding depends on the threads of BLAS."""
    context = replace(whole, config=whole.config.model_copy(update={"threads": 1}))
    seen: set[int] = set()

    def look(steps: int) -> None:
        seen.update(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")

    assert len(list(train.work(context, list(train.blocks(context)), look))) == 2
    assert seen == {1}


def test_the_stages_give_the_same_result_as_the_estimator(whole: Context) -> None:
    """Members, alignment and assignments are those of GSEC fitted to the same matrices."""
    fitted = GSEC(3, text_weight=0.15, **{**SMALL, "n_members": 12}).fit(load_embeddings(whole), text=fuse.load_counterparts(whole))
    for ours, theirs in zip(train.load_members(whole)[0], fitted.members_, strict=True):
        np.testing.assert_allclose(ours.parameters["weights"], theirs.parameters["weights"], rtol=0, atol=1e-5)
    rows = whole.shards(align.STAGE, ASSIGNMENTS_TABLE).read("part-00000")
    assert np.array_equal(rows["cluster"].to_numpy(), fitted.labels_)
    assert rows["confidence"].to_numpy() == pytest.approx(fitted.confidence_, abs=1e-5)
    assert rows["agreement"].to_numpy() == pytest.approx(fitted.agreement_, abs=1e-6)


def test_a_run_interrupted_in_train_repeats_only_the_open_block_and_ends_with_equal_labels(
    source: Path, whole: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(source, tmp_path, clusters=3, train={"n_members": 12})
    trained = []
    real = gsec.train_block

    def cut(*args: object, block: int, progress: object, **kwargs: object) -> object:
        trained.append(block)

        def steps(by: int) -> None:
            if trained == [0, 1]:
                raise KeyboardInterrupt

        return real(*args, block=block, progress=steps, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(gsec, "train_block", cut)
    with pytest.raises(KeyboardInterrupt):
        cluster(config)
    context, _, made = cluster(config)
    assert trained == [0, 1, 1], "the first block was already committed"
    assert made["train"]["members"] == 10, "a block always trains all its members, also those that are not wanted"
    assert labels(context) == labels(whole)
    for name in ("block-0000", "block-0001"):
        assert context.shards(train.STAGE, MEMBERS_TABLE).read(name) == whole.shards(train.STAGE, MEMBERS_TABLE).read(name)


def test_a_run_interrupted_in_align_goes_on_with_the_permutations_already_committed(
    source: Path, whole: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = labels(whole)
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 16)
    config = settings(source, tmp_path, clusters=3, train={"n_members": 12})
    real, calls = ensemble.Ensemble.assigned, []

    def cut(self: ensemble.Ensemble, *args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ensemble.Ensemble, "assigned", cut)
    with pytest.raises(KeyboardInterrupt):
        cluster(config)  # call 1 counts the agreement, call 2 writes the first part, call 3, of the second part, is interrupted
    monkeypatch.setattr(gsec.GSECPlan, "align", lambda *args: pytest.fail("the permutations were there"))
    context, _, made = cluster(config)
    assert made["align"]["shards"] == 3, "the two missing parts and the cluster table"
    assert labels(context) == truth


def test_labels_depend_on_the_images_and_not_on_their_names_order_or_sharding(source: Path, whole: Context, tmp_path: Path) -> None:
    other = tmp_path / "in"
    other.mkdir()
    names = {}
    for number, path in enumerate(sorted(source.iterdir(), reverse=True)):
        names[path.name] = f"{number % 7}-{number}.jpg"
        shutil.copy(path, other / names[path.name])
    context, _, _ = cluster(settings(other, tmp_path / "store", clusters=3, train={"n_members": 12}, ingest={"shard_rows": 11}))
    # The canonical order is by content, so equal images get equal rows.
    renamed = labels(context)
    assert {name: renamed[names[name]] for name in names} == labels(whole)


def test_the_cluster_table_agrees_with_the_assignments(whole: Context) -> None:
    assignments = whole.shards(align.STAGE, ASSIGNMENTS_TABLE).read("part-00000").to_pylist()
    sizes = []
    for row in whole.read(align.STAGE, CLUSTERS_TABLE).to_pylist():
        images = [image for image in assignments if image["cluster"] == row["cluster"]]
        assert row["size"] == len(images)
        sizes.append(row["size"])
        if images:
            assert row["agreement"] == pytest.approx(np.mean([image["agreement"] for image in images]))
    assert sizes == sorted(sizes, reverse=True)
    assert all(0 <= image["margin"] <= image["confidence"] <= 1 for image in assignments)


def test_each_member_has_a_valid_permutation_and_its_agreement_fits_the_assignments(whole: Context) -> None:
    rows = whole.read(align.STAGE, ALIGNMENT_TABLE).to_pylist()
    assert [row["member"] for row in rows] == list(range(12))
    assert all(sorted(row["permutation"]) == [0, 1, 2] for row in rows)
    assignments = whole.shards(align.STAGE, ASSIGNMENTS_TABLE).read("part-00000")
    assert np.mean([row["agreement"] for row in rows]) == pytest.approx(np.mean(assignments["agreement"].to_numpy()), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"fuse": {"text_weight": 0.2}}, {"fuse", "prepare", "duplicates", "train", "align", "publish", "hierarchy", "map", "lineage", "report"}),
        ({"gsec": {"tol": 0.5}}, {"train", "align", "publish", "hierarchy", "map", "lineage", "report"}),
        ({"baseline": {"n_init": 3}}, {"baseline", "report"}),
        (
            {"prototypes": {"random_state": 5}},
            {"prototypes", "describe", "fuse", "prepare", "duplicates", "train", "align", "publish", "hierarchy", "map", "lineage", "report"},
        ),
    ],
)
def test_a_changed_setting_redoes_the_stages_that_depend_on_it(source: Path, whole: Context, change: dict[str, object], again: set[str]) -> None:
    changed = {**change, "train": {"n_members": 12, **change.get("train", {})}}  # type: ignore[dict-item]
    _, _, made = cluster(settings(source, whole.run.files.url, clusters=3, **changed))
    assert {stage for stage, sums in made.items() if sums} == again


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES if stage not in (baseline.STAGE, refit.STAGE)][1:])
def test_every_stage_can_be_redone_and_gives_equal_labels(source: Path, whole: Context, stage: str) -> None:
    config = settings(source, whole.run.files.url, clusters=3, train={"n_members": 12})
    again, _, made = cluster(config, redo=(stage,))
    below = [
        name for name in (s.name for s in STAGES) if name not in ("baseline", "refit")
    ]  # baseline is read by no stage, and refit has no published model to decide about
    unread = {
        "publish": {"lineage"},
        "hierarchy": {"map", "lineage"},
        "map": {"lineage"},
        "duplicates": {"train", "align", "publish", "hierarchy", "map", "lineage"},
    }  # later stages that do not read the tables of this one
    assert {name for name, sums in made.items() if sums} == set(below[below.index(stage) :]) - unread.get(stage, set())
    assert again.run.id != whole.run.id
    assert labels(again) == labels(whole)


def assigned(source: Path, whole: Context, store: str) -> tuple[Context, dict[str, int]]:
    context = assign_images(whole, settings(source, store))
    rows = context.shards(assign.STAGE, ASSIGNED_TABLE).read("part-00000")
    return context, dict(zip(rows["uri"].to_pylist(), rows["cluster"].to_pylist(), strict=True))


def test_new_images_are_assigned_to_the_clusters_that_equal_images_have_in_the_run(source: Path, whole: Context, tmp_path: Path) -> None:
    fresh = write_pictures(tmp_path / "new", range(30, 50))
    before = {shards.directory: shards.names() for shards in whole.corpus.tables()}
    context, found = assigned(fresh, whole, whole.run.files.url)
    assert set(found) == {path.name for path in fresh.iterdir()}
    known = labels(whole)
    same = [found[name] == known[name] for name in found if name in known]
    assert np.mean(same) >= 0.9, "the head must agree with the consensus"
    assert context.corpus.name != whole.corpus.name
    assert {shards.directory: shards.names() for shards in whole.corpus.tables()} == before, "the run's corpus was changed"


def test_a_single_new_image_can_be_assigned(whole: Context, tmp_path: Path) -> None:
    _, found = assigned(write_pictures(tmp_path / "one", range(60, 61)), whole, whole.run.files.url)
    assert len(found) == 1


def test_a_run_that_only_assigns_is_refused_with_the_run_that_has_the_clusters(whole: Context, tmp_path: Path) -> None:
    one, two = write_pictures(tmp_path / "one", range(60, 61)), write_pictures(tmp_path / "two", range(61, 62))
    context, _ = assigned(one, whole, whole.run.files.url)
    for source in (one, two):
        with pytest.raises(Refused, match=f"assigns to those of run {whole.run.id}. Name that one"):
            assigned(source, context, whole.run.files.url)
    with pytest.raises(Refused, match=f"has no stage lineage; it has .* It assigns images to the clusters of run {whole.run.id}: name that run"):
        context.run.check_stage("lineage")


def test_assigning_a_runs_own_source_is_refused(source: Path, whole: Context) -> None:
    with pytest.raises(Refused, match="is the source of run"):
        assigned(source, whole, whole.run.files.url)


def test_assigning_by_an_unfinished_run_is_refused_with_the_missing_stage(source: Path, tmp_path: Path) -> None:
    config = settings(source, tmp_path / "store", clusters=3)
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    for stage in STAGES[: STAGES.index(train.STAGE)]:
        run_stage(context, stage)
    fresh = write_pictures(tmp_path / "new", range(30, 35))
    with pytest.raises(Refused, match="its stage train is not complete"):
        assigned(fresh, context, str(tmp_path / "store"))


def test_members_made_again_that_differ_are_not_joined_to_the_old_permutations(source: Path, tmp_path: Path) -> None:
    """That happens if damaged members are made again on a machine that computes slightly differently."""
    config = settings(source, tmp_path, clusters=3)
    context, _, _ = cluster(config)
    members = context.shards(train.STAGE, MEMBERS_TABLE)
    table = members.read("block-0000")
    other = table.set_column(2, "bias", pa.array([[1.0, 0.0, 0.0]] * table.num_rows, table.schema.field("bias").type))
    members.replace("block-0000", other, {})
    Path(context.shards(align.STAGE, ASSIGNMENTS_TABLE).location("part-00000")).unlink()
    with pytest.raises(GsecError, match=r"were made again and differ.*--redo align"):
        run_stage(context, align.STAGE)
    again, _, _ = cluster(config, redo=("align",))
    assert len(labels(again)) == 40


def test_more_members_only_add_blocks(source: Path, whole: Context) -> None:
    """Twelve members take two blocks, as do twenty; twenty-one take three."""
    for count, trained in ((20, 0), (21, 1), (2, 0)):
        context, _, made = cluster(settings(source, whole.run.files.url, clusters=3, train={"n_members": count}))
        assert made["train"].get("shards", 0) == trained
        assert context.read(align.STAGE, ALIGNMENT_TABLE).num_rows == count


def test_assigning_with_another_encoder_than_the_runs_is_refused(whole: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = write_pictures(tmp_path / "new", range(30, 33))
    monkeypatch.setattr(encode, "encoder_identity", lambda name: {"name": name, "checkpoint": "another"})
    with pytest.raises(Refused, match="its encoder or checkpoint has changed since the run was encoded"):
        assigned(fresh, whole, whole.run.files.url)


def test_assigning_nothing_usable_is_refused(whole: Context, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "bad.jpg").write_text("no image")
    with pytest.raises(Refused, match=r"none of 1 images is usable \(1 rejected: "):
        assigned(tmp_path / "new", whole, whole.run.files.url)


def test_settings_that_cannot_be_trained_are_refused_before_anything_is_encoded(source: Path, tmp_path: Path) -> None:
    for change, says in (({"device": "cuda:99"}, "train.device = "), ({"n_members": 1000}, "train.n_members = 1000: aligning them")):
        with pytest.raises(Refused, match=says):
            pipeline.request(settings(source, tmp_path / "store", clusters=40, train=change))
    assert not list((tmp_path / "store").glob("*/images"))
