from pathlib import Path

import pytest

from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.stages import baseline
from gsec_core.stages.base import run_stage
from gsec_core.tables import BASELINE_CLUSTERS_TABLE, BASELINE_TABLE

from ..pictures import cluster, labels, settings, write_pictures


def test_a_lost_part_is_made_again_from_the_stored_centres_with_the_same_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    whole, _, _ = cluster(settings(source, tmp_path / "whole", clusters=3))
    truth = labels(whole)
    monkeypatch.setattr("gsec_core.stages.canonical.PART_ROWS", 8)
    context, _, _ = cluster(settings(source, tmp_path / "parts", clusters=3))
    assert labels(context) == truth
    parts = context.shards(baseline.STAGE, BASELINE_TABLE)
    assert parts.names() == {"part-00000", "part-00001", "part-00002"}
    Path(parts.location("part-00001")).unlink()
    monkeypatch.setattr(SphericalKMeans, "fit", lambda self, X: pytest.fail("the centres were there"))
    assert run_stage(context, baseline.STAGE)["shards"] == 1
    assert labels(context) == truth


def test_the_cluster_table_agrees_with_the_assignments(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(20))
    (source / "twin.jpg").write_bytes((source / "003.jpg").read_bytes())
    context, _, _ = cluster(settings(source, tmp_path / "store", clusters=3))
    assignments = context.shards(baseline.STAGE, BASELINE_TABLE).read("part-00000").to_pylist()
    for row in context.read(baseline.STAGE, BASELINE_CLUSTERS_TABLE).to_pylist():
        members = [image for image in assignments if image["cluster"] == row["cluster"]]
        assert row["size"] == len(members)
        assert row["cohesion"] == pytest.approx(sum(image["confidence"] for image in members) / len(members), abs=0.02)
        assert 0 <= row["separation"] <= 1
    assert {image["uri"] for image in assignments if image["is_duplicate"]} == {"003.jpg", "twin.jpg"}
    assert all(image["margin"] >= 0 for image in assignments)
