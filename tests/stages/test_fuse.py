from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gsec_core.config import PipelineConfig
from gsec_core.stages import describe, encode, fuse, prototypes
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.canonical import load_embeddings, load_joint, part_names, usable
from gsec_core.tables import CAPTION_EMBEDDINGS_TABLE, COUNTERPARTS_TABLE, DESCRIBED, FAILED, FREE, REPRESENTATIVES_TABLE
from gsec_core.text.fusion import Ridge, best_predicted, ridge_cosines, softmax_cosines, softmax_counterparts, weight_by

from ..pictures import settings, write_pictures
from .steps import WORDS, describe_with, run_stages


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), range(20))


def described(source: Path, tmp_path: Path, **more: object) -> Context:
    """A run with ten representatives that is ready for descriptions."""
    config = settings(source, tmp_path / "store", prototypes={"count": 2, "representatives": 5}, **more)
    return run_stages(config, encode.STAGE, prototypes.STAGE)


def captions(context: Context) -> pa.Table:
    return context.read(fuse.STAGE, CAPTION_EMBEDDINGS_TABLE)


def test_descriptions_in_either_form_are_embedded_and_failed_or_missing_ones_are_not(source: Path, tmp_path: Path) -> None:
    context = described(source, tmp_path)
    describe_with(context, ["a cat", "free text", None, "no answer", "a cat"], [DESCRIBED, FREE, FAILED, "missing", DESCRIBED])
    run_stage(context, fuse.STAGE)
    assert captions(context)["text"].to_pylist() == ["a cat", "free text", "a cat"] * 2
    assert captions(context)["caption"].to_pylist() == list(range(6))
    places = zip(captions(context)["prototype"].to_pylist(), captions(context)["band"].to_pylist(), strict=True)
    assert list(places) == [(prototype, band) for prototype in (0, 1) for band in (0, 1, 4)]


def test_every_description_gets_the_embedding_of_its_text_and_equal_texts_equal_ones(source: Path, tmp_path: Path) -> None:
    context = described(source, tmp_path)
    texts = [WORDS[number] for number in (2, 0, 2, 2, 1, 0, 3, 4, 1, 0)]
    describe_with(context, texts)
    run_stage(context, fuse.STAGE)
    np.testing.assert_allclose(fuse.load_captions(context), encode.STAGE.load(context.config).encode_texts(texts), atol=1e-3)
    np.testing.assert_array_equal(fuse.load_captions(context)[1], fuse.load_captions(context)[5])


def test_softmax_counterparts_are_weighted_means_of_the_description_embeddings(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context = described(source, tmp_path, fuse={"counterpart": "softmax", "tau": 0.05, "max_lost_weight": 0})
    describe_with(context)
    run_stage(context, fuse.STAGE)
    texts = fuse.load_captions(context)
    [expected] = softmax_counterparts(load_joint(context), texts, texts, 0.05)
    np.testing.assert_allclose(fuse.load_counterparts(context), expected, atol=1e-3)
    table = pa.concat_tables(context.shards(fuse.STAGE, COUNTERPARTS_TABLE).read_all(part_names(context)))
    assert table["image_id"].to_pylist() == usable(context).rows["image_id"].to_pylist()


def test_ridge_counterparts_are_predicted_by_a_fit_to_the_described_images(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context = described(source, tmp_path, fuse={"counterpart": "ridge"})
    describe_with(context)
    run_stage(context, fuse.STAGE)
    representatives = context.read(prototypes.STAGE, REPRESENTATIVES_TABLE)["image_id"].to_pylist()
    rows = [usable(context).rows["image_id"].to_pylist().index(image_id) for image_id in representatives]
    X = load_embeddings(context)
    [expected] = Ridge.fit(X, np.array(rows), fuse.load_captions(context)).counterparts(X)
    np.testing.assert_allclose(fuse.load_counterparts(context), expected, atol=1e-3)


def test_own_counterparts_are_an_images_own_description_and_a_prediction_for_the_others(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    config = settings(source, tmp_path / "store", prototypes={"count": 2, "representatives": 0}, fuse={"counterpart": "own"})
    context = run_stages(config, encode.STAGE, prototypes.STAGE)
    describe_with(context, ["a cat", "a dog", None], [DESCRIBED, DESCRIBED, FAILED])
    run_stage(context, fuse.STAGE)
    rows = describe.described_rows(context)
    assert len(rows) == 14, "all twenty are asked about, and every third description fails"
    found = fuse.load_counterparts(context)
    np.testing.assert_array_equal(found[rows], fuse.load_captions(context))
    others = np.setdiff1d(np.arange(20), rows)
    np.testing.assert_allclose(found[others], fuse.counterparts_of(context, context, slice(None))[others], atol=1e-3)


@pytest.mark.parametrize("kind", ["ridge", "own"])
def test_equal_descriptions_tell_nothing_so_that_counterparts_are_joint_vectors_of_little_weight(kind: str, source: Path, tmp_path: Path) -> None:
    representatives = {"representatives": 0} if kind == "own" else {}
    config = settings(source, tmp_path / "store", prototypes={"count": 2, **representatives}, fuse={"counterpart": kind})
    context = run_stages(config, encode.STAGE, prototypes.STAGE)
    describe_with(context, ["This image contains an object."])
    run_stage(context, fuse.STAGE)
    assert (fuse.load_model(context).kind, fuse.load_model(context).text_weight) == ("joint", 0.15)
    np.testing.assert_array_equal(fuse.load_counterparts(context), load_joint(context))


def test_joint_counterparts_are_the_joint_vectors_of_the_images(source: Path, tmp_path: Path) -> None:
    context = described(source, tmp_path)
    describe_with(context)
    run_stage(context, fuse.STAGE)
    assert fuse.load_model(context).kind == "joint", "a tagger's descriptions add nothing to the embeddings, so joint is chosen"
    np.testing.assert_array_equal(fuse.load_counterparts(context), load_joint(context))


@pytest.mark.parametrize(
    ("changes", "kinds", "weight"),
    [
        ({}, ["joint"], 0.15),
        ({"describe": {"captioner": "openai:m"}}, ["ridge", "softmax"], None),
        ({"describe": {"captioner": "openai:m"}, "prototypes": {"representatives": 0}}, ["own"], 0.5),
        ({"describe": {"captioner": "openai:m"}, "gsec": {"preset": "published"}}, ["softmax"], 0.5),
        ({"fuse": {"counterpart": "ridge"}}, ["ridge"], 0.15),
        ({"describe": {"captioner": "openai:m"}, "fuse": {"counterpart": "softmax"}}, ["softmax"], None),
        ({"describe": {"captioner": "openai:m"}, "fuse": {"counterpart": "joint"}}, ["joint"], 0.15),
        ({"fuse": {"text_weight": 0.3}}, ["joint"], 0.3),
    ],
)
def test_the_default_counterpart_and_text_weight_follow_from_captioner_and_preset(changes: dict[str, Any], kinds: list[str], weight: float | None) -> None:
    assert fuse.open_choices(PipelineConfig.model_validate(changes)) == (tuple(kinds), weight)


@pytest.mark.parametrize("given", [None, 0.3])
def test_held_out_descriptions_decide_the_counterpart_and_weight_that_settings_leave_open(source: Path, tmp_path: Path, given: float | None) -> None:
    context = described(source, tmp_path, describe={"captioner": "openai:m"}, fuse={"text_weight": given})
    describe_with(context)
    run_stage(context, fuse.STAGE)
    X, rows, T = load_embeddings(context), describe.described_rows(context), fuse.load_captions(context)
    cosines = {"ridge": ridge_cosines(X, rows, T), "softmax": softmax_cosines(load_joint(context)[rows], T, 0.005, 1e-4)}
    model, kind = fuse.load_model(context), best_predicted(cosines)
    assert (model.kind, model.text_weight) == (kind, given or pytest.approx(weight_by(float(cosines[kind].mean()))))
    assert model.held_out_cosine == pytest.approx(cosines[kind].mean())


def test_a_lost_part_of_the_counterparts_is_made_again_equally(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context = described(source, tmp_path)
    describe_with(context)
    run_stage(context, fuse.STAGE)
    counterparts = context.shards(fuse.STAGE, COUNTERPARTS_TABLE)
    before = counterparts.read("part-00001")
    Path(counterparts.location("part-00001")).unlink()
    assert run_stage(context, fuse.STAGE)["shards"] == 1
    assert counterparts.read("part-00001").equals(before)


@pytest.mark.parametrize("counterpart", ["ridge", "softmax", "joint"])
def test_counterparts_computed_for_assigning_equal_those_of_the_run(source: Path, tmp_path: Path, counterpart: str) -> None:
    context = described(source, tmp_path, fuse={"counterpart": counterpart})
    describe_with(context)
    run_stage(context, fuse.STAGE)
    found = fuse.counterparts_of(context, context, slice(None))
    np.testing.assert_array_equal(found, fuse.load_counterparts(context))
