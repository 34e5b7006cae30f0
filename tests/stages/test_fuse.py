from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gsec_core.clustering.fusion import softmax_counterparts
from gsec_core.stages import encode, fuse, prototypes
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.canonical import load_joint, usable
from gsec_core.tables import CAPTION_EMBEDDINGS_TABLE, COUNTERPARTS_TABLE, DESCRIBED, FAILED, FREE

from ..pictures import settings, write_pictures
from .steps import WORDS, describe_with, run_stages


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), range(20))


def described(source: Path, tmp_path: Path, **more: object) -> Context:
    """With ten representatives."""
    config = settings(source, tmp_path / "store", prototypes={"count": 2, "representatives": 5}, **more)
    return run_stages(config, encode.STAGE, prototypes.STAGE)


def captions(context: Context) -> pa.Table:
    return context.shards(fuse.STAGE, CAPTION_EMBEDDINGS_TABLE).read("all")


def test_descriptions_count_and_failures_do_not(source: Path, tmp_path: Path) -> None:
    context = described(source, tmp_path)
    describe_with(context, ["a cat", "free text", None, "no answer", "a cat"], [DESCRIBED, FREE, FAILED, "missing", DESCRIBED])
    run_stage(context, fuse.STAGE)
    assert captions(context)["text"].to_pylist() == ["a cat", "free text", "a cat"] * 2
    assert captions(context)["caption"].to_pylist() == list(range(6))
    places = zip(captions(context)["prototype"].to_pylist(), captions(context)["band"].to_pylist(), strict=True)
    assert list(places) == [(prototype, band) for prototype in (0, 1) for band in (0, 1, 4)]


def test_every_description_has_the_embedding_of_its_text_equal_ones_too(source: Path, tmp_path: Path) -> None:
    context = described(source, tmp_path)
    texts = [WORDS[number] for number in (2, 0, 2, 2, 1, 0, 3, 4, 1, 0)]
    describe_with(context, texts)
    run_stage(context, fuse.STAGE)
    np.testing.assert_allclose(fuse.load_captions(context), encode.loaded_encoder(context.config).encode_texts(texts), atol=1e-3)
    np.testing.assert_array_equal(fuse.load_captions(context)[1], fuse.load_captions(context)[5])


def test_the_counterpart_of_every_image_is_the_weighted_mean_of_the_descriptions(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context = described(source, tmp_path, fuse={"tau": 0.05, "max_lost_weight": 0})
    describe_with(context)
    run_stage(context, fuse.STAGE)
    texts = fuse.load_captions(context)
    [expected] = softmax_counterparts(load_joint(context), texts, texts, 0.05)
    np.testing.assert_allclose(fuse.load_counterparts(context), expected.vectors, atol=1e-3)
    table = pa.concat_tables(context.shards(fuse.STAGE, COUNTERPARTS_TABLE).read_all(usable(context).part_names))
    assert table["image_id"].to_pylist() == usable(context).rows["image_id"].to_pylist()
    assert table["caption"].to_pylist() == expected.best.tolist()
    np.testing.assert_allclose(table["weight"].to_numpy(), expected.weight, atol=1e-5)


def test_a_part_that_is_made_later_is_what_it_was(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context = described(source, tmp_path)
    describe_with(context)
    run_stage(context, fuse.STAGE)
    counterparts = context.shards(fuse.STAGE, COUNTERPARTS_TABLE)
    before = counterparts.read("part-00001")
    Path(counterparts.location("part-00001")).unlink()
    assert run_stage(context, fuse.STAGE)["shards"] == 1
    assert counterparts.read("part-00001").equals(before)


def test_other_images_get_the_counterparts_that_the_run_would_give_them(source: Path, tmp_path: Path) -> None:
    context = described(source, tmp_path)
    describe_with(context)
    run_stage(context, fuse.STAGE)
    np.testing.assert_array_equal(fuse.counterparts_of(context, load_joint(context)), fuse.load_counterparts(context))
