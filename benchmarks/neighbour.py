"""Seconds of a fit, of every numeric stage and of k-means: alone, with one busy process for each core, and with a quota of one core.

    python -m benchmarks.neighbour [--images 512] [--rounds 3]

The fit is `GSEC` on 500 x (512 + 512) random rows. The stages run without an orchestrator on photographs of 500 to 800 px with the
embedded encoder. k-means is Lloyd's with ten starts on 20,000 x 192 rows. Each figure is the median of several rounds, each in a process
of its own. The last columns are with OpenMP's default waiting, which gsec shortens. The quota is a control group, which only root can make.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.encode import write_photographs
from gsec_core import GSEC, pipeline
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.settings import load_config
from gsec_core.stages.base import Context, run_stage

OPENMPS_OWN = {"GOMP_SPINCOUNT": "300000"}
"""Default of GNU's OpenMP."""

GROUP = "gsec-benchmark"


def measure(images: Path, store: Path) -> dict[str, float]:
    """Seconds of each piece of work in this process."""
    taken = {}
    random = np.random.default_rng(0)
    X, text = (random.standard_normal((500, 512), np.float32) for _ in range(2))
    GSEC(2, n_members=1, max_steps=1).fit(X[:50])  # libraries load
    taken["fit"] = _seconds(lambda: GSEC(10, random_state=0, text_weight=0.15).fit(X, text=text))
    rows = random.standard_normal((20_000, 192), np.float32)
    taken["k-means"] = _seconds(lambda: SphericalKMeans(10, n_init=10).fit(rows))
    config = load_config(overrides={"source": str(images), "store": str(store), "clusters": 10})
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    for name in ("encode", "baseline", "prototypes", "describe", "fuse", "prepare", "train", "align"):
        taken[name] = _seconds(lambda name=name: run_stage(context, pipeline.stage(name)))  # type: ignore[misc]
    return taken


def _seconds(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Context manager with ``count`` other processes, each of which uses a core fully. They also end with this process."""
    work = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(10_000))"
    neighbours = [subprocess.Popen([sys.executable, "-c", work]) for _ in range(count)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


@contextmanager
def quota_of_one_core() -> Iterator[list[str]]:
    """Context manager with a control group of this quota, as files to which a process writes its number to join it. Raises OSError if it cannot be made."""
    version_1 = Path("/sys/fs/cgroup/cpu")
    folder = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / GROUP
    folder.mkdir(exist_ok=True)
    try:
        if version_1.is_dir():
            (folder / "cpu.cfs_quota_us").write_text("100000")
        else:
            (folder / "cpu.max").write_text("100000 100000")
        yield [str(folder / "cgroup.procs")]
    finally:
        folder.rmdir()


def child(images: Path, environment: Mapping[str, str], groups: list[str], rounds: int) -> dict[str, float]:
    """The median seconds of several rounds of `measure`, each in a process of its own."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="gsec-neighbour-") as store:
            command = [sys.executable, "-m", "benchmarks.neighbour", "--child", str(images), store, *groups]
            said = subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True).stdout
        for name, seconds in json.loads(said).items():
            found.setdefault(name, []).append(seconds)
    return {name: median(seconds) for name, seconds in found.items()}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        for group in sys.argv[4:]:
            Path(group).write_text(str(os.getpid()))
        print(json.dumps(measure(Path(sys.argv[2]), Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="gsec-neighbour-") as directory:
        images = write_photographs(Path(directory) / "images", options.images, 0)
        for name, environment in (("", {}), (", OpenMP's own waiting", OPENMPS_OWN)):
            columns["alone" + name] = child(images, environment, [], options.rounds)
            with busy(cores):
                columns["neighbours" + name] = child(images, environment, [], options.rounds)
            try:
                with quota_of_one_core() as groups:
                    columns["quota" + name] = child(images, environment, groups, options.rounds)
            except OSError as error:
                print(f"no control group can be made here: {error}")
    print(f"{cores} cores, {options.images} photographs, encoder lite, median of {options.rounds} rounds, seconds\n")
    print(f"| work | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for work, alone in columns["alone"].items():
        print(f"| {work} | {' | '.join(f'{taken[work]:.1f} ({taken[work] / alone:.1f})' for taken in columns.values())} |")


if __name__ == "__main__":
    main()
