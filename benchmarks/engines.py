"""Compare the cost of the engines: threads of one process, and a Ray cluster on this machine.

    python -m benchmarks.engines [--images 2000] [--slices 1000]

Each encodes the same images, with the same number of slices at once and of threads; the encoder is loaded and the cluster is started before. Then each
gets empty slices, which measures the overhead of Prefect, and of Ray, for a slice.
"""

import argparse
import tempfile
import time
from pathlib import Path

from prefect import flow

from flows.orchestrator import orchestrator
from flows.stages import run_flow
from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.devices import usable_cores
from gsec_core.stages import encode
from tasks import engine
from tests.pictures import write_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--slices", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, orchestrator():
        few, many = (write_pictures(Path(work) / name, range(count)) for name, count in (("few", 64), ("many", args.images)))
        measured = {kind: _measured(kind, Path(work), few, many, args.slices) for kind in ("threads", "ray")}
    print("| engine | seconds to encode | ms a slice of nothing |\n| --- | --- | --- |")
    for kind, (seconds, each) in measured.items():
        print(f"| {kind} | {seconds:.1f} | {1000 * each:.1f} |")
    print(f"ray / threads: {measured['ray'][0] / measured['threads'][0]:.2f}")


def _measured(kind: str, work: Path, few: Path, many: Path, slices: int) -> tuple[float, float]:
    """Seconds that encoding takes, and seconds that an empty slice takes."""

    def settings(source: Path) -> PipelineConfig:
        values = {"engine": kind, "threads": usable_cores(), "ingest": {"shard_rows": 128}, "train": {"refit": "always"}}
        return PipelineConfig.model_validate({"source": str(source), "store": str(work / f"{kind}-{source.name}"), **values})

    config = settings(many)
    with engine.opened(config) as where:
        for source in (few, many):
            run, _ = pipeline.request(settings(source), [])
            began = time.monotonic()
            run_flow(settings(source), run.id, "encode")
            seconds = time.monotonic() - began

        @flow
        def nothing() -> None:
            where.run(config, run.id, encode.STAGE, 0, [[]] * slices, 3600)

        began = time.monotonic()
        nothing.with_options(task_runner=where.runner(config))()
        return seconds, (time.monotonic() - began) / slices


if __name__ == "__main__":
    main()
