from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gsec_core.checkpoints import Checkpoints

OF = {"n_clusters": 3, "images": "abc"}
STATE: dict[str, NDArray[Any]] = {
    "step": np.array(7),
    "weights": np.array([[1 / 3, -0.0], [np.nan, np.inf]], np.float32),
    "empty": np.empty((0, 3), np.int64),
    "counts": np.arange(10_000, dtype=np.int32).reshape(100, 100).T,
}


def same(found: dict[str, NDArray[Any]] | None, state: dict[str, NDArray[Any]]) -> bool:
    assert found is not None
    assert list(found) == list(state)
    return all(found[name].dtype == a.dtype and found[name].shape == a.shape and found[name].tobytes() == a.tobytes() for name, a in state.items())


def test_a_checkpoint_gives_its_arrays_back_bit_for_bit(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "new" / "folder", OF)
    assert kept.latest() is None
    kept.save(7, STATE)
    assert same(kept.latest(), STATE)


def test_the_newest_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, OF)
    for step in (8, 9, 10, 100):
        kept.save(step, {"step": np.array(step)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010.parquet", "step-00000100.parquet"]
    assert same(kept.latest(), {"step": np.array(100)})


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]])
def test_a_damaged_checkpoint_is_ignored_and_the_previous_one_is_read(tmp_path: Path, damage: Any) -> None:
    kept = Checkpoints(tmp_path, OF)
    kept.save(1, STATE)
    kept.save(2, STATE | {"step": np.array(8)})
    path = tmp_path / "step-00000002.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="step-00000002.parquet: it is damaged and ignored"):
        found = kept.latest()
    assert same(found, STATE)


def test_a_partial_file_of_a_killed_writer_is_not_read_as_a_checkpoint_and_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".part").write_bytes(b"PAR1")
    kept = Checkpoints(tmp_path, OF)
    assert kept.latest() is None
    kept.save(1, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.parquet"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, OF).save(1, STATE)
    with pytest.raises(
        ValueError, match=r"checkpoint: .*step-00000001.parquet belongs to a training with n_clusters = 3, and this one has 4. Give another folder"
    ):
        Checkpoints(tmp_path, OF | {"n_clusters": 4}).latest()
