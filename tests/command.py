"""The `gsec` command as a user runs it: another process, its output read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

GSEC = [str(Path(sys.executable).parent / "gsec")]

SMALL = [
    part
    for setting in ("encode.batch_size=8", "ingest.shard_rows=8", "baseline.n_init=2", "train.ensemble_size=4", "train.max_steps=20", "threads=1")
    for part in ("--set", setting)
]
"""Settings that make many small shards."""


def environment(prefect_home: Path) -> dict[str, str]:
    return {**os.environ, "PREFECT_HOME": str(prefect_home), "HF_HUB_OFFLINE": "1"}


def gsec(*arguments: str | Path, home: Path, check: int = 0, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its exit code must be ``check``."""
    done = subprocess.run([*GSEC, *map(str, arguments)], capture_output=True, text=True, env=environment(home), timeout=timeout, check=False)
    assert done.returncode == check, f"exit {done.returncode} instead of {check}\n{done.stdout}\n{done.stderr}"
    return done


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value
