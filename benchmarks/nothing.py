"""A night with nothing to do beside an empty Prefect flow, on the same server.

    python -m benchmarks.nothing [--images 2000] [--rounds 5]

A worker starts a process for each flow run, so that a night also takes what importing the flow takes. Both parts are printed, each beside that of the empty
flow: the flow run itself in this process, and the import in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prefect import flow

from flows.orchestrator import orchestrator
from flows.pipeline import run_pipeline
from gsec_core.config import PipelineConfig
from tests.pictures import write_pictures


@flow(name="empty")
def empty() -> None:
    """Does nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, orchestrator():
        source = write_pictures(Path(work) / "images", range(options.images))
        values = {"source": str(source), "store": str(Path(work) / "store"), "corpus": "discs", "clusters": 8}
        config = PipelineConfig.model_validate(values)
        run_pipeline(config)
        empty()
        runs = [(_seconds(empty), _seconds(lambda: run_pipeline(config))) for _ in range(options.rounds)]
        imports = [(_importing("prefect.flow_engine"), _importing("flows.pipeline")) for _ in range(options.rounds)]
    print(f"{options.images:,} images, median of {options.rounds} rounds\n\n| seconds | empty flow | nothing to do | difference |\n| --- | --- | --- | --- |")
    for name, rounds in (("the flow run", runs), ("importing it", imports)):
        nothing, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {name} | {nothing:.2f} | {ours:.2f} | {ours - nothing:.2f} |")


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _importing(module: str) -> float:
    return _seconds(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True))


if __name__ == "__main__":
    main()
