"""The quality of a run measured without labels, and the remarks about it."""

import numpy as np
import pyarrow as pa
import pytest

from gsec_core.results import quality
from gsec_core.stages import align
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_embeddings
from gsec_core.store import Shards
from gsec_core.tables import ALIGNMENT_TABLE, ASSIGNMENTS_TABLE, CLUSTERS_TABLE

from ..pictures import cluster, settings, write_pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Context:
    source = write_pictures(tmp_path_factory.mktemp("pictures"), range(40))
    return cluster(settings(source, tmp_path_factory.mktemp("store"), clusters=6))[0]


def test_stability_is_the_mean_overlap_with_the_members_clusters(run: Context) -> None:
    table = run.read(align.STAGE, CLUSTERS_TABLE)
    members = run.read(align.STAGE, ALIGNMENT_TABLE)
    overlaps = np.array(members["overlap"].to_pylist())
    np.testing.assert_allclose(table["stability"].to_numpy(), overlaps.mean(0), atol=1e-6)
    assert ((overlaps >= 0) & (overlaps <= 1)).all()
    assert (overlaps[members["agreement"].to_numpy() == 1] == 1).all()


def test_the_outlier_score_grows_with_the_distance_to_the_centre(run: Context) -> None:
    rows = run.shards(align.STAGE, ASSIGNMENTS_TABLE).read("part-00000")
    labels, outlier = rows["cluster"].to_numpy(), rows["outlier"].to_numpy()
    X = load_embeddings(run).astype(np.float32)
    largest = labels == 0
    centre = X[largest].mean(0)
    far = 1 - X[largest] @ centre / np.linalg.norm(centre)
    assert np.corrcoef(far, outlier[largest])[0, 1] > 0.999
    assert outlier[largest].mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("purity", "ari", "says"),
    [(0.4, 0.3, ["adds nothing over plain k-means", "(purity 0.400 against 0.500)"]), (0.6, 0.97, ["nearly the same as plain k-means"]), (0.6, 0.3, [])],
)
def test_a_remark_says_if_the_consensus_adds_nothing_over_k_means(run: Context, purity: float, ari: float, says: list[str]) -> None:
    said = " ".join(quality.remarks(run, [{"purity": purity}, {"purity": 0.5, "ARI to consensus": ari}]))
    assert all(text in said for text in says)
    assert ("k-means" in said) == bool(says)


def test_a_remark_names_the_clusters_on_which_the_members_do_not_agree(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    stability = run.read(align.STAGE, CLUSTERS_TABLE)["stability"].to_numpy()
    monkeypatch.setattr(quality, "STABLE", float(np.median(stability)))
    [said] = quality.remarks(run, [{"purity": 0.6}, {"purity": 0.5, "ARI to consensus": 0.1}])
    unsure = np.flatnonzero(stability < np.median(stability))
    assert f"The members do not agree on {len(unsure)} of the 6 clusters" in said
    assert said.endswith(f": {', '.join(map(str, unsure))}.")


def test_a_remark_names_the_clusters_without_images(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pa.table({"cluster": [0, 1, 2], "size": [40, 0, 0], "stability": [0.9, None, None]})
    monkeypatch.setattr(Shards, "read", lambda shards, name, columns: found.select(columns))
    said = quality.remarks(run, [{"purity": 0.6}, {"purity": 0.5, "ARI to consensus": 0.1}])
    assert said == ["2 of the 3 clusters have no images: 1, 2."]


def test_the_consensus_and_k_means_have_the_same_measures(run: Context) -> None:
    consensus, kmeans = quality.without_labels(run)
    assert list(consensus) == list(kmeans)
    assert -0.2 < kmeans["purity"] < 1
    assert consensus["purity"] != kmeans["purity"]
