from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from gsec_core import pipeline
from gsec_core.clustering.neighbors import NeighborIndex
from gsec_core.stages import base, encode, fuse, prepare, prototypes
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.canonical import load_embeddings, part_names, usable
from gsec_core.tables import FEATURES_TABLE, NEIGHBOR_INDEX_TABLE, NEIGHBORS_TABLE

from ..pictures import settings, write_pictures
from .steps import describe_with, run_stages


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), range(20))


def fused(source: Path, tmp_path: Path, **more: object) -> Context:
    context = run_stages(settings(source, tmp_path / "store", fuse={"counterpart": "softmax", "tau": 0.05}, **more), encode.STAGE, prototypes.STAGE)
    describe_with(context)
    run_stage(context, fuse.STAGE)
    return context


def standardised(X: NDArray[np.float16]) -> NDArray[np.float64]:
    """The columns standardised and clipped, in double precision."""
    X = X.astype(np.float64)
    scale = X.std(0)
    return np.clip((X - X.mean(0)) / np.where(scale < 1e-8, 1, scale), -10, 10)


def cosines(X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of each row to every other; to itself, a value below all others."""
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    found: NDArray[np.float64] = X @ X.T
    np.fill_diagonal(found, -2)
    return found


def test_the_published_presets_features_are_standardised_and_neighbors_are_nearest_in_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context = fused(source, tmp_path, gsec={"preset": "published"})
    run_stage(context, prepare.STAGE)
    matrices = [standardised(X) for X in (load_embeddings(context), fuse.load_counterparts(context))]
    for half, expected in zip(prepare.load_features(context).halves, matrices, strict=True):
        np.testing.assert_allclose(half, expected, atol=2e-3)
    assert_nearest(context, matrices, 3)


def test_default_features_are_principal_axes_and_neighbors_are_nearest_in_them(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context = fused(source, tmp_path)
    run_stage(context, prepare.STAGE)
    assert context.read(prepare.STAGE, FEATURES_TABLE)["half"].to_pylist() == ["image", "text"]
    features = prepare.load_features(context)
    assert features.weights == pytest.approx((0.85, 0.15)), "a tagger's descriptions have a small weight"
    for half, X in zip(features.halves, (load_embeddings(context), fuse.load_counterparts(context)), strict=True):
        expected = PCA(half.shape[1]).fit_transform(X.astype(np.float64))
        np.testing.assert_allclose(half @ half.T, expected @ expected.T * (100 / np.square(expected).sum(1).mean()), atol=0.1)
    assert_nearest(context, [half.astype(np.float64) for half in features.halves], 1)


def assert_nearest(context: Context, matrices: list[NDArray[np.float64]], count: int) -> None:
    found = prepare.load_neighbors(context)
    for rows, X in zip(found.halves, matrices, strict=True):
        similar = cosines(X)
        nearest = -np.sort(-similar, axis=1)[:, :count]
        np.testing.assert_allclose(np.take_along_axis(similar, rows, 1), nearest, atol=1e-3)
    table = pa.concat_tables(context.shards(prepare.STAGE, NEIGHBORS_TABLE).read_all(part_names(context)))
    assert table["image_id"].to_pylist() == usable(context).rows["image_id"].to_pylist()


def test_a_lost_part_of_the_neighbors_is_made_again_equally(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context = fused(source, tmp_path)
    run_stage(context, prepare.STAGE)
    neighbors = context.shards(prepare.STAGE, NEIGHBORS_TABLE)
    before = neighbors.read("part-00001")
    Path(neighbors.location("part-00001")).unlink()
    assert run_stage(context, prepare.STAGE)["shards"] == 1
    assert neighbors.read("part-00001").equals(before)


def test_two_images_are_each_others_only_neighbor(tmp_path: Path) -> None:
    context = fused(write_pictures(tmp_path / "in", range(2)), tmp_path)
    run_stage(context, prepare.STAGE)
    for rows in prepare.load_neighbors(context):
        assert rows is not None
        assert rows.tolist() == [[1], [0]]


def test_runs_share_features_and_neighbors_unless_these_depend_on_the_number_of_clusters(tmp_path: Path) -> None:
    """With more than 128 clusters there are more axes, and small clusters have fewer neighbours."""
    source = write_pictures(tmp_path / "in", range(180))

    def prepared(clusters: int) -> tuple[int, int, str]:
        context = run_stages(settings(source, tmp_path / "store", clusters=clusters, text={"source": "none"}), encode.STAGE, prepare.STAGE)
        return prepare.load_features(context).widths[0], prepare.load_neighbors(context).image.shape[1], prepare.STAGE.fingerprint(context)

    two, three, many, more = (prepared(clusters) for clusters in (2, 3, 30, 150))
    assert two == three
    assert (two[0], many[0], more[0]) == (128, 128, 150)
    assert (two[1], many[1], more[1]) == (4, 1, 1)
    assert len({two[2], many[2], more[2]}) == 3


def test_each_part_of_an_approximate_search_records_its_recall_and_the_stage_adds_none_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    monkeypatch.setattr("gsec_core.clustering.neighbors.EXACT_ROWS", 10)
    context = fused(source, tmp_path)
    assert "recall" not in run_stage(context, prepare.STAGE)
    for name in part_names(context):
        recall = context.shards(prepare.STAGE, NEIGHBORS_TABLE).facts(name)["recall"]
        assert set(recall) == {"image", "text"}
        assert all(0.5 < share <= 1 for share in recall.values())


def test_a_kept_index_finds_the_same_neighbors_as_one_built_in_memory(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the run is killed after the index was kept, and in a run begun by an older gsec, which kept none."""
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    monkeypatch.setattr("gsec_core.clustering.neighbors.EXACT_ROWS", 10)
    built = fused(source, tmp_path / "built")
    run_stage(built, prepare.STAGE)
    with pytest.MonkeyPatch.context() as kept_from_now_on:
        kept_from_now_on.setattr("gsec_core.stages.prepare.EXACT_ROWS", 10)
        kept = fused(source, tmp_path / "kept")
        base.begin(kept, prepare.STAGE)
        for step in prepare.STAGE.steps[:2]:
            base.work(kept, prepare.STAGE, step, step.plan(kept))
        with pytest.MonkeyPatch.context() as cut:
            cut.setattr(NeighborIndex, "_approximate", lambda index: pytest.fail("it is built again"))
            run_stage(kept, prepare.STAGE)
        assert kept.shards(prepare.STAGE, NEIGHBOR_INDEX_TABLE).names() == {"image", "text"}
        assert_equal_neighbors(kept, built)
        [removed, *_] = part_names(built)
        neighbors = built.shards(prepare.STAGE, NEIGHBORS_TABLE)
        neighbors.files.remove(neighbors.path(removed))
        assert run_stage(built, prepare.STAGE)["shards"] == 1
        assert_equal_neighbors(kept, built)


def assert_equal_neighbors(one: Context, other: Context) -> None:
    for name in part_names(one):
        tables = [context.shards(prepare.STAGE, NEIGHBORS_TABLE) for context in (one, other)]
        assert tables[0].read(name).equals(tables[1].read(name))
        assert tables[0].facts(name)["recall"] == tables[1].facts(name)["recall"]


def test_images_that_are_their_own_counterparts_need_only_one_index(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is so if the encoder has one space for images and nouns, and the method uses the image vectors as counterparts."""
    monkeypatch.setattr("gsec_core.clustering.neighbors.EXACT_ROWS", 10)
    monkeypatch.setattr("gsec_core.stages.prepare.EXACT_ROWS", 10)
    monkeypatch.setattr("gsec_core.stages.nouns.has_joint", lambda context: False)
    (tmp_path / "names.txt").write_text("a ball\na shoe\n")
    asked = settings(source, tmp_path / "store", method="zero-shot", text={"vocabulary": f"file:{tmp_path / 'names.txt'}"})
    context = run_stages(asked, *(stage for stage in pipeline.stages_of(asked) if stage.name in ("encode", "vocabulary", "nouns")))
    run_stage(context, prepare.STAGE)
    assert context.shards(prepare.STAGE, NEIGHBOR_INDEX_TABLE).names() == {"image"}


def test_an_exact_search_records_no_recall(source: Path, tmp_path: Path) -> None:
    context = fused(source, tmp_path)
    run_stage(context, prepare.STAGE)
    assert "recall" not in context.shards(prepare.STAGE, NEIGHBORS_TABLE).facts("part-00000")
