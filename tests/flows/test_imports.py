"""What a process imports that has nothing to compute. Each night without new images is such a process, and so are most of a deployment's."""

import subprocess
import sys
from pathlib import Path

import pytest

from gsec_core.results import finishing

from ..command import environment
from ..pictures import cluster, settings, write_pictures

COMPUTE = ("torch", "sklearn", "scipy.stats", "faiss", "onnxruntime")
"""Packages that are imported when a stage has work; torch and scikit-learn take longer than all the rest."""


def imported(code: str, home: Path, **more: str) -> list[str]:
    """Those of `COMPUTE` that a new process has imported after this code."""
    told = f"{code}\nimport sys\nprint('imported:', *(name for name in {COMPUTE} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, env={**environment(home), **more}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("module", ["flows.pipeline", "flows.commands", "flows.serve.app", "deployments.commands"])
def test_importing_flows_commands_and_the_server_imports_no_package_that_computes(module: str, tmp_path: Path) -> None:
    assert imported(f"import {module}", tmp_path) == []


def test_a_flow_run_with_nothing_to_do_imports_no_package_that_computes(server: str, tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(20)), tmp_path / "store", train={"refit": "auto"})
    context, *_ = cluster(config)
    finishing.finish(context)
    code = f"""
from flows.pipeline import run_pipeline
from gsec_core.config import PipelineConfig
summary = run_pipeline(PipelineConfig.model_validate_json({config.model_dump_json()!r}))
assert not any(sums["shards"] for sums in summary["made"].values()), summary
"""
    assert imported(code, tmp_path / "home", PREFECT_API_URL=server) == []
