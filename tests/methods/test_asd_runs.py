"""Both forms of ASD (on pixels and on embeddings) in the pipeline, with tiny images of four colours and tiny networks."""

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gsec_core import ASD, GSEC, Mixture, pipeline
from gsec_core.clustering.ensemble import Head, joined
from gsec_core.clustering.features import Features
from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.methods.asd import networks, pixels
from gsec_core.methods.asd.estimator import ASDPlan
from gsec_core.methods.plan import Leg
from gsec_core.report.collect import collect
from gsec_core.results import finishing
from gsec_core.results.export import export
from gsec_core.stages import align, encode, prepare, train
from gsec_core.stages.base import Context, begin, missing, run_stage
from gsec_core.stages.canonical import load_pixels, usable
from gsec_core.tables import (
    ALIGNMENT_TABLE,
    CHECKPOINTS_TABLE,
    INSTANCE_GROUPS_TABLE,
    MEMBERS_TABLE,
    THUMBNAILS,
    THUMBNAILS_TABLE,
    TRANSITIONS_TABLE,
    schemas,
)

from ..pictures import assign_images, cluster, labels, settings
from ..planted import planted
from .test_asd_pixels import shapes

IMAGES, CLUSTERS, STEPS = 60, 4, 32
TABLES = (CHECKPOINTS_TABLE, TRANSITIONS_TABLE, INSTANCE_GROUPS_TABLE, MEMBERS_TABLE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "in"
    folder.mkdir()
    for number, image in enumerate(shapes(IMAGES)):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Small batches, and a checkpoint after each quarter of the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "BATCH_ROWS", 16)
        patch.setattr(networks, "PARTS", 4)
        yield


def asking(source: Path, store: Path | str, **more: Any) -> PipelineConfig:
    """Settings of a run with ASD on pixels and two members."""
    train, asd = {"n_members": 2, "device": "cpu"}, {"pixels": True, "side": 16, "max_steps": STEPS}
    given = {"clusters": CLUSTERS, "method": "asd", **more}
    return settings(source, store, **given | {"train": train | more.get("train", {}), "asd": asd | more.get("asd", {})})


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run that was not interrupted."""
    return cluster(asking(source, tmp_path_factory.mktemp("whole")))[0]


def until_train(config: PipelineConfig) -> Context:
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    for name in ("encode", "prepare"):
        run_stage(context, pipeline.stage(name))
    return context


def shards(context: Context, table: str) -> dict[str, pa.Table]:
    found = context.shards(train.STAGE, table)
    return {name: found.read(name) for name in sorted(found.names())}


def test_the_tables_have_the_schemas_of_the_reference(whole: Context) -> None:
    assert sorted(shards(whole, CHECKPOINTS_TABLE)) == [f"block-000{block}-step-00000{step:02d}" for block in (0, 1) for step in (8, 12, 16)]
    for table in TABLES[:3]:
        assert {found.schema for found in shards(whole, table).values()} == {schemas()[table].remove_metadata()}
    assert finishing.summary(whole)["clusters"] == CLUSTERS
    assert len(labels(whole)) == IMAGES


def test_a_member_trained_with_checkpoints_equals_one_trained_without_them(whole: Context) -> None:
    plan = prepare.plan_of(whole.config)
    [expected] = next(plan.trained(prepare.load_features(whole), prepare.load_neighbors(whole), [1]))
    found = train.load_members(whole)[0][1]
    assert found.parameters.keys() == expected.parameters.keys()
    for name, array in expected.parameters.items():
        assert np.array_equal(array, found.parameters[name]), name
    assert found[1:] == pytest.approx(expected[1:])
    assert 0 <= found.changed < 1, "the share of labels changed in the last steps must be recorded"


def test_the_pixels_are_the_centres_of_the_thumbnails_in_canonical_order(whole: Context) -> None:
    found = load_pixels(whole, 8)
    tables = whole.shards(encode.STAGE, THUMBNAILS_TABLE).read_all(whole.generation.shard_names)
    thumbnails = {row["image_id"]: row["thumbnail"] for table in tables for row in table.to_pylist()}
    for row, image_id in enumerate(usable(whole).rows["image_id"].to_pylist()):
        with Image.open(BytesIO(thumbnails[image_id])) as image:
            assert np.array_equal(found[row], ImageOps.fit(image, (8, 8)))
    assert prepare.load_features(whole).pixels is not None
    assert len(np.unique(found.reshape(IMAGES, -1), axis=0)) == IMAGES


def test_the_tables_of_instance_groups_and_transitions_are_those_the_members_learnt_from(whole: Context) -> None:
    for member, (transitions, groups) in enumerate(zip(*(shards(whole, table).values() for table in TABLES[1:3]), strict=True)):
        learner = pixels.Learner(load_pixels(whole, 16), CLUSTERS, max_steps=STEPS, depth=10, width=1, random_state=prepare.plan_of(whole.config).seed(member))
        while learner.step <= learner.instance_steps:
            learner.learn()
        ids = usable(whole).rows["image_id"].to_pylist()
        expected = {(ids[row], learner.class_of[row], label) for row, label in zip(learner.drawn, learner.labels, strict=True)}
        assert {(row["image_id"], row["class"], row["group"]) for row in groups.to_pylist()} == expected
        assert {(row["class"], row["next_class"]): row["count"] for row in transitions.to_pylist()} == {
            (before, after): learner.transitions.counts[before, after] for before, after in zip(*learner.transitions.counts.nonzero(), strict=True)
        }
        assert set(groups["member"].to_pylist()) == set(transitions["member"].to_pylist()) == {member}


def test_pseudo_labels_are_exported_by_consensus_cluster_and_a_remark_says_how_good_they_are(whole: Context, tmp_path: Path) -> None:
    written = export(whole, tmp_path)
    rows = list(csv.DictReader((tmp_path / "pseudo_labels.csv").open(newline="")))
    assert len(rows) == written["pseudo_labels.csv"] == sum(groups.num_rows for groups in shards(whole, INSTANCE_GROUPS_TABLE).values())
    permutations = whole.read(align.STAGE, ALIGNMENT_TABLE)["permutation"].to_pylist()
    uris = {row["image_id"]: row["uri"] for row in usable(whole).rows.to_pylist()}
    groups = pa.concat_tables(shards(whole, INSTANCE_GROUPS_TABLE).values()).to_pylist()
    assert {(row["uri"], row["member"], row["cluster"]) for row in rows} == {
        (uris[row["image_id"]], str(row["member"]), str(permutations[row["member"]][row["group"]])) for row in groups
    }
    lasted = np.mean([labels(whole)[row["uri"]] == int(row["cluster"]) for row in rows])
    group_of = {(row["member"], row["class"]): row["group"] for row in groups}
    changes = pa.concat_tables(shards(whole, TRANSITIONS_TABLE).values()).to_pylist()
    inside = sum(row["count"] for row in changes if group_of[row["member"], row["class"]] == group_of[row["member"], row["next_class"]])
    [said] = [remark for remark in collect(whole).remarks if "gave a sample themselves" in remark]
    assert f"{inside / sum(row['count'] for row in changes):.0%} are within a label (by chance: " in said
    assert f"{lasted:.0%} of the sample are in the cluster of their label now" in said


class Killed(BaseException):
    """Ends the stage as a signal would."""


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_and_ends_as_if_undisturbed(
    whole: Context, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, real = until_train(asking(source, tmp_path)), pixels.Learner.learn
    steps: list[int] = []

    def learn(self: pixels.Learner) -> float:
        if len(steps) in kills:
            kills.remove(len(steps))
            raise Killed
        steps.append(self.step)
        return real(self)

    monkeypatch.setattr(pixels.Learner, "learn", learn)
    kills = [20, 50]
    for done in (3, 6):
        with pytest.raises(Killed):
            run_stage(context, train.STAGE)
        assert len(shards(context, CHECKPOINTS_TABLE)) == done
    run_stage(context, train.STAGE)
    part = list(range(8)), list(range(8, 12)), list(range(12, 16)), list(range(16, STEPS))
    assert steps == [*part[0], *part[0], *part[1], *part[1], *part[2], *part[2], *part[3], 16, 17, *part[3]]
    for table in TABLES:
        assert shards(context, table) == shards(whole, table), table


def test_a_lost_checkpoint_is_made_again_from_the_previous_one_and_other_settings_use_none(whole: Context, source: Path) -> None:
    before = shards(whole, CHECKPOINTS_TABLE)
    Path(whole.shards(train.STAGE, CHECKPOINTS_TABLE).location("block-0001-step-0000012")).unlink()
    assert run_stage(whole, train.STAGE)["shards"] == 1
    assert shards(whole, CHECKPOINTS_TABLE) == before
    for more in ({"train": {"random_state": 1}}, {"asd": {"width": 2}}, {"asd": {"side": 8}}):
        other = until_train(asking(source, whole.run.files.url, **more))
        begin(other, train.STAGE)
        assert len(missing(other, train.STAGE, train.STAGE.steps[0])) == 6


def assigned(model: Context, source: Path, corpus: str) -> dict[str, int]:
    context = assign_images(model, model.config.model_copy(update={"source": str(source), "corpus": corpus}))
    return labels(context)


def test_new_images_are_assigned_by_the_networks(whole: Context, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _, made = cluster(asking(source, whole.run.files.url, train={"n_members": 1}))
    assert made["train"] == {}, "the member must be taken from the earlier run"
    monkeypatch.setattr("gsec_core.clustering.ensemble.head_posteriors", None)
    assert assigned(one, source, "again") == labels(one), "one member's labels are not smoothed, so equal images must get equal labels"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"asd": {"depth": 12}}, r"^asd\.depth = 12: it must be 10, 16, 22, 28"),
        ({"encode": {"thumbnail_size": 16}, "asd": {"side": 32}}, r"^encode\.thumbnail_size = 16: method asd is to learn from images of 32 pixels a side"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(source: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        pipeline.request(asking(source, tmp_path / "store", **more))
    assert not (tmp_path / "store").exists()


def test_images_without_thumbnails_are_refused(source: Path, tmp_path: Path) -> None:
    context = until_train(asking(source, tmp_path))
    thumbnails = context.shards(encode.STAGE, THUMBNAILS_TABLE)
    thumbnails.replace(context.generation.shard_names[0], THUMBNAILS.empty_table(), {})
    with pytest.raises(Refused, match=r"^8 of 60 images have no thumbnail to learn from\. Make them again: gsec run with --redo encode"):
        load_pixels(context, 8)


@pytest.mark.parametrize(("n", "n_clusters", "max_steps"), [(2, 2, 1), (3, 3, 4), (40, 30, 12)])
def test_small_and_odd_inputs_give_finite_results(n: int, n_clusters: int, max_steps: int) -> None:
    plan = ASD(n_clusters, pixels=True, side=8, max_steps=max_steps, n_members=1, device="cpu").plan()
    X = np.ones((n, 4), np.float32)
    features = plan.features([X], plan.halves([X]), 0.5)
    features.pixels = np.full((n, 8, 8, 3), 90, np.uint8)
    neighbors = plan.neighbors(features)
    state = None
    for step in plan.checkpoints(n, 0):
        [state] = plan.advanced(features, neighbors, [Leg(0, state, step)])
    assert state is not None
    ensemble, _, _ = plan.align(features, neighbors, plan.wanted(plan.trained(features, neighbors, [0], states={0: state})))
    found = joined(list(ensemble.predicted(features, Head(np.zeros((1, 1)), np.zeros(1)), "cpu")))
    assert found.labels.shape == (n,)
    assert np.isfinite(found.confidence).all()


def test_estimators_with_pixels_refuse_embeddings() -> None:
    on_pixels = ASD(3, pixels=True)
    for estimator in (on_pixels, Mixture(3, [("asd", on_pixels), ("gsec", GSEC())])):
        with pytest.raises(ValueError, match=r"^pixels = True: fit gets embeddings, not images"):
            estimator.fit(np.ones((9, 4)))


def test_networks_predict_each_row_once_although_blocks_are_asked_for_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(256, size=(90, 8, 8, 3), dtype=np.uint8)
    plan = ASD(3, pixels=True, side=8, max_steps=2, n_members=2, device="cpu").plan()
    X = np.ones((len(images), 4), np.float32)
    features = plan.features([X], plan.halves([X]), 0.5)
    features.pixels = images
    models = plan.models(plan.wanted(plan.trained(features, plan.neighbors(features), plan.blocks)))
    expected = models.said(features, np.arange(len(images)), "cpu")
    rows: list[int] = []
    said = networks.Networks.said

    def counted(self: networks.Networks, features: Features, numbers: NDArray[np.int64], device: str) -> NDArray[np.float32]:
        rows.extend(numbers.tolist())
        return said(self, features, numbers, device)

    monkeypatch.setattr(networks.Networks, "said", counted)
    with ThreadPoolExecutor(3) as threads:
        blocks = [slice(start, start + 30) for start in (0, 30, 60)]
        found = list(threads.map(lambda rows: models.logits(features, rows, "cpu").numpy(), blocks))
    models.logits(features, slice(None), "cpu")
    assert sorted(rows) == list(range(len(images)))
    assert np.concatenate(found) == pytest.approx(expected, abs=1e-5)


def test_a_training_begun_on_another_kind_of_device_goes_on_here() -> None:
    """The state of a generator on a GPU has 16 bytes, on the CPU thousands."""
    X, _, _ = planted(n=120, classes=3)
    plan = ASD(3, max_steps=20, n_members=1, device="cpu").plan()
    features = plan.features([X], plan.halves([X]), 0.5)
    neighbors = plan.neighbors(features)
    [state] = plan.advanced(features, neighbors, [Leg(0, None, plan.checkpoints(len(X), 0)[0])])
    there = {**state, "generator": np.zeros(16, np.uint8)}
    [member] = plan.wanted(plan.trained(features, neighbors, [0], states={0: there}))
    assert np.isfinite(member.parameters["weights"]).all()


def test_a_run_on_embeddings_that_was_killed_does_not_learn_its_sample_again(
    whole: Context, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"asd": {"pixels": False, "max_steps": 80}}
    undisturbed, context = until_train(asking(source, whole.run.files.url, **asked)), until_train(asking(source, tmp_path, **asked))
    run_stage(undisturbed, train.STAGE)
    with monkeypatch.context() as patch:
        patch.setattr(ASDPlan, "_fixmatch", lambda *given: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run_stage(context, train.STAGE)
    assert len(shards(context, INSTANCE_GROUPS_TABLE)) == 2
    monkeypatch.setattr(ASDPlan, "_labelled", None)
    run_stage(context, train.STAGE)
    for table in TABLES:
        assert shards(context, table) == shards(undisturbed, table), table
    plan = prepare.plan_of(undisturbed.config)
    assert plan.pixel_side == 0
    monkeypatch.undo()
    [expected] = next(plan.trained(prepare.load_features(undisturbed), prepare.load_neighbors(undisturbed), [0]))
    assert np.array_equal(train.load_members(undisturbed)[0][0].parameters["weights"], expected.parameters["weights"])


def test_asd_in_a_mixture_has_its_own_blocks_and_a_remark_says_if_no_image_changed_its_class(whole: Context, source: Path) -> None:
    context, _, _ = cluster(asking(source, whole.run.files.url, method="turtle,asd", turtle={"max_steps": 12}, asd={"max_steps": 2}, train={"n_members": 1}))
    assert list(shards(context, CHECKPOINTS_TABLE)) == ["block-0001-step-0000000"]
    assert list(shards(context, INSTANCE_GROUPS_TABLE)) == ["block-0001"]
    groups = pl.DataFrame(shards(context, INSTANCE_GROUPS_TABLE)["block-0001"])
    assert groups["member"].unique().to_list() == [1]
    assert any(remark.startswith("No image changed its class during the training") for remark in collect(context).remarks)
    assert len(assigned(context, source, "mixture")) == IMAGES
