"""The GPU benchmark, run on a CPU with small data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu
from gsec_core.methods import BUILT_IN


def test_the_gpu_benchmark_measures_every_part_also_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BUILT_IN", BUILT_IN[:2])
    file = tmp_path / "gpu.json"
    assert gpu.main(["--quick", "--device", "cpu", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["failed"] == []
    assert {name: figures["ari_cpu"] for name, figures in found["methods"].items()} == {method.name: 1.0 for method in BUILT_IN[:2]}
    encoded = found["encode"]["tiny"]
    assert encoded["share"] == pytest.approx(encoded["per_second"]["encode"] / min(encoded["per_second"]["prepare"], encoded["per_second"]["forward"]))
    assert found["neighbours"]["shared"] == 1, "both searches are exact"
    for figures in found["fit"].values():
        seconds = figures["cpu"]["seconds"]
        assert sum(took for part, took in seconds.items() if part != "whole") == pytest.approx(seconds["whole"])
        assert min(seconds["training"], seconds["k-means starts"], seconds["head"]) > 0


def test_a_failing_part_of_the_benchmark_is_reported_and_the_other_parts_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> np.ndarray:
        raise RuntimeError("no such card")

    monkeypatch.setattr(gpu, "neighbours", broken)
    file = tmp_path / "gpu.json"
    small = ["--rows", "200", "--clusters", "3", "--parts", "neighbours", "fit"]
    assert gpu.main(["--quick", "--device", "cpu", "--json", str(file), *small]) == 1
    assert "RuntimeError: no such card" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["failed"] == ["neighbours"]
    assert found["fit"]["200 rows"]["cpu"]["seconds"]["whole"] > 0
