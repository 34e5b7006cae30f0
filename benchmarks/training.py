"""Time of training on many rows, method by method, compared with two k-means of as many clusters: gsec's own, and scikit-learn's.

    python -m benchmarks.training --rows 100000 1000000 --clusters 100
    python -m benchmarks.training --rows 1000000 --clusters 10 --methods asd --whole

The embeddings are made up: 512 dimensions in half precision in a file, and the same for a second half. The neighbours are random, because no measured
figure depends on them. Every method trains its first block of members in a process of its own, for `--steps` steps, of which the first three are left
out. Printed: the steps of its schedule for this number of rows, seconds a step, and the time of the whole schedule, in seconds and as a multiple of
each k-means. This time is steps times seconds, and is measured only with `--whole`. SIC looks nouns up before some steps: the time of that is its first
step minus a common one, and is added as often as it happens. MiB is the peak of RssAnon above that before the features were opened. Both k-means have one
start: gsec's learns from a sample and labels all rows, scikit-learn's `KMeans` has its default settings and learns from all rows, as float32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from benchmarks.memory import peak
from gsec_core import methods
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.methods.sic.estimator import MAPPED_STEPS

DIMENSIONS = 512
RANK = 64
NOUNS = 20_000
BLOCK_ROWS = 65_536
LEFT_OUT = 3


def write(folder: Path, rows: int, clusters: int) -> None:
    """Write two halves with the same clusters, and nouns."""
    random = np.random.default_rng(0)
    labels = random.integers(clusters, size=rows)
    for half in range(2):
        centres = random.standard_normal((clusters, RANK)) @ np.linalg.qr(random.standard_normal((DIMENSIONS, RANK)))[0].T
        found = np.lib.format.open_memmap(folder / f"half-{half}.npy", "w+", np.float16, (rows, DIMENSIONS))
        for start in range(0, rows, BLOCK_ROWS):
            part = centres[labels[start : start + BLOCK_ROWS]] + 0.7 * random.standard_normal((min(BLOCK_ROWS, rows - start), DIMENSIONS))
            found[start : start + BLOCK_ROWS] = part / np.linalg.norm(part, axis=1, keepdims=True)
        found.flush()
        if half:
            nouns = centres[random.integers(clusters, size=NOUNS)] + random.standard_normal((NOUNS, DIMENSIONS))
            np.save(folder / "nouns.npy", nouns.astype(np.float16))


def measured(name: str, folder: Path, clusters: int, steps: int | None, device: str) -> dict[str, Any]:
    """Measure one method, in this process."""
    method = methods.find(name)
    Estimator = method.load()
    plan = Estimator(clusters, device=device).plan()
    halves = [np.load(folder / f"half-{half}.npy", mmap_mode="r") for half in range(2 if Estimator.NEEDS_TEXT else 1)]
    scheduled = plan.steps(len(halves[0]))
    if steps is not None and "max_steps" in Estimator._get_param_names():
        plan = Estimator(clusters, device=device, max_steps=min(steps, scheduled)).plan()
    times: list[float] = []
    with peak() as memory:
        before = memory.mib
        started = time.monotonic()
        features = plan.features(halves, plan.halves(halves), 0.5)
        features.nouns = np.load(folder / "nouns.npy")
        random = np.random.default_rng(1)
        found = [random.integers(len(features), size=(len(features), plan.n_neighbors), dtype=np.int32) for _ in halves]
        prepared = time.monotonic()
        members = plan.train(features, Neighbors(*found), 0, lambda done: times.append(time.monotonic()))
        ended = time.monotonic()
    each = np.diff(times)
    step = float(np.median(each[LEFT_OUT:])) if len(each) > LEFT_OUT else (ended - prepared) / len(times)
    whole = ended - prepared if len(times) >= scheduled else scheduled * step
    if name == "sic" and len(times) < scheduled:
        whole += (times[0] - prepared - step) * -(-scheduled // max(len(features) // plan.batch(len(features)), MAPPED_STEPS))
    return {
        "members": f"{len(members)} of {plan.n_members}",
        "steps": scheduled,
        "step": step,
        "whole": whole,
        "measured": len(times) >= scheduled,
        "prepared": prepared - started,
        "MiB": memory.mib - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=["gsec", "tac", "sic", "seic", "turtle", "temi", "asd"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--whole", action="store_true", help="all steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = None if options.whole else options.steps
    if options.one:
        print(json.dumps(measured(options.methods[0], options.one, options.clusters, steps, options.device)))
        return
    print("| rows | method | members of a block | steps | seconds a step | seconds in all | times k-means | times scikit-learn's | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="gsec-training-") as temporary:
            folder = Path(temporary)
            write(folder, rows, options.clusters)
            started = time.monotonic()
            SphericalKMeans(options.clusters, n_init=1, random_state=0).fit(np.load(folder / "half-0.npy", mmap_mode="r"))
            kmeans = time.monotonic() - started
            every = np.load(folder / "half-0.npy").astype(np.float32)
            started = time.monotonic()
            peer = KMeans(options.clusters, n_init=1, random_state=0).fit(every)
            beside = time.monotonic() - started
            del every
            print(f"| {rows:,} | k-means, one start |  |  |  | {kmeans:.1f} | 1 | {kmeans / beside:.2f} |  |")
            print(f"| {rows:,} | scikit-learn's KMeans, one start |  | {peer.n_iter_} |  | {beside:.1f} | {beside / kmeans:.1f} | 1 |  |", flush=True)
            for name in options.methods:
                command = [sys.executable, "-m", "benchmarks.training", "--one", temporary, "--methods", name, "--clusters", str(options.clusters)]
                command += ["--steps", str(options.steps), "--device", options.device, *(["--whole"] if options.whole else [])]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
                about = "" if found["measured"] else "about "
                times = (f"{found['whole'] / kmeans:.1f}", f"{found['whole'] / beside:.1f}")
                cells = (f"{found['step']:.3f}", f"{about}{found['whole']:,.0f}", *times, f"{found['MiB']:.0f}")
                print(f"| {rows:,} | {name} | {found['members']} | {found['steps']:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
