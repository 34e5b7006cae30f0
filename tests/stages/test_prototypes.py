from pathlib import Path

import numpy as np
import pytest

from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.config import PipelineConfig
from gsec_core.stages import encode, prototypes
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.canonical import load_embeddings, usable
from gsec_core.tables import PROTOTYPES_TABLE, REPRESENTATIVES_TABLE

from ..pictures import settings, write_pictures
from .steps import run_stages


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), range(30))


def run(config: PipelineConfig) -> Context:
    return run_stages(config, encode.STAGE, prototypes.STAGE)


def rows(context: Context, table: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = context.read(prototypes.STAGE, table).to_pylist()
    return found


def test_every_prototype_has_representatives_in_order_of_their_distance_to_its_centre(source: Path, tmp_path: Path) -> None:
    context = run(settings(source, tmp_path / "store", prototypes={"count": 4, "representatives": 3}))
    X, images = load_embeddings(context).astype(np.float32), usable(context).rows
    row_of = {image: row for row, image in enumerate(images["image_id"].to_pylist())}
    centres = {row["prototype"]: np.array(row["centre"]) for row in rows(context, PROTOTYPES_TABLE)}
    sizes = {row["prototype"]: row["size"] for row in rows(context, PROTOTYPES_TABLE)}
    assert list(sizes) == [0, 1, 2, 3]
    assert sum(sizes.values()) == 30  # type: ignore[arg-type]
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)  # type: ignore[type-var]
    chosen = rows(context, REPRESENTATIVES_TABLE)
    assert [(row["prototype"], row["band"]) for row in chosen] == [(number, band) for number in range(4) for band in range(min(3, sizes[number]))]  # type: ignore[call-overload]
    for row in chosen:
        x = X[row_of[row["image_id"]]]
        assert row["distance"] == pytest.approx(1 - x @ centres[row["prototype"]] / np.linalg.norm(x), abs=1e-5)
        assert row["uri"] == images["uri"][row_of[row["image_id"]]].as_py()
    for number in range(4):
        distances = [row["distance"] for row in chosen if row["prototype"] == number]
        assert distances == sorted(distances)  # type: ignore[type-var]


@pytest.mark.parametrize("count", [6, None], ids=["a fixed number", "a number that does not follow from the clusters"])
def test_a_run_with_another_number_of_clusters_reuses_the_prototypes(source: Path, tmp_path: Path, count: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # By default there are 3 prototypes per cluster, but at most 30 for 30 images, so 11 and 12 clusters have equally many.
    before = run(settings(source, tmp_path / "store", clusters=11, prototypes={"count": count}))
    monkeypatch.setattr(SphericalKMeans, "fit", lambda self, X: pytest.fail("the prototypes were there"))
    after = run(settings(source, tmp_path / "store", clusters=12, prototypes={"count": count}))
    assert before.run.id != after.run.id
    assert rows(before, REPRESENTATIVES_TABLE) == rows(after, REPRESENTATIVES_TABLE)


def test_another_number_of_prototypes_is_another_run(source: Path, tmp_path: Path) -> None:
    few = run(settings(source, tmp_path / "store", prototypes={"count": 4}))
    many = run(settings(source, tmp_path / "store", prototypes={"count": 7}))
    assert few.run.id != many.run.id
    assert [len(rows(context, PROTOTYPES_TABLE)) for context in (few, many)] == [4, 7]


def test_lost_representatives_are_chosen_again_from_the_stored_prototypes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = run(settings(source, tmp_path / "store", prototypes={"count": 4}))
    before = rows(context, REPRESENTATIVES_TABLE)
    Path(context.shards(prototypes.STAGE, REPRESENTATIVES_TABLE).location("all")).unlink()
    monkeypatch.setattr(SphericalKMeans, "fit", lambda self, X: pytest.fail("the prototypes were there"))
    run_stage(context, prototypes.STAGE)
    assert rows(context, REPRESENTATIVES_TABLE) == before


def test_a_prototype_without_images_has_no_representative(tmp_path: Path) -> None:
    """There are three different pictures for six prototypes. Two prototypes may be equally near to a picture, so it is open which of them has it."""
    folder = write_pictures(tmp_path / "in", range(3))
    for number in range(7):
        (folder / f"copy{number}.jpg").write_bytes((folder / "001.jpg").read_bytes())
    context = run(settings(folder, tmp_path / "store", prototypes={"count": 6}))
    sizes = [row["size"] for row in rows(context, PROTOTYPES_TABLE)]
    assert sum(sizes) == 10  # type: ignore[arg-type]
    assert 0 in sizes
    chosen = rows(context, REPRESENTATIVES_TABLE)
    assert len({row["prototype"] for row in chosen}) < 6
    assert {row["content_hash"] for row in chosen} == set(usable(context).rows["content_hash"].to_pylist())
    assert len({row["image_id"] for row in chosen}) == len(chosen)
