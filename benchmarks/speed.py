"""Seconds of the whole fit of the default preset, beside k-means with ten starts and a step of the published training.

    python -m benchmarks.speed [--rows 10000 50000 250000] [--members 10]

Random blobs of 1280 + 384 dimensions as float16, 10 clusters. The fit includes everything: principal axes, neighbours, starts,
training, alignment, smoothing, the distilled head. k-means is Lloyd's with ten starts on a sample of the same features, which are computed
before. The published step is one outer step with ten inner ones at 10,000 rows, with every BatchEnsemble member computed as in the
published code. Also printed is the exponent with which seconds grow with rows.
"""

import argparse
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.batch_ensemble import MemberByMember, milliseconds_a_step
from gsec_core import GSEC
from gsec_core.clustering.kmeans import lloyd, sample_rows, sample_size
from gsec_core.methods.gsec import bilevel

CLUSTERS = 10


def blobs(n: int, d: int, random: np.random.Generator, truth: NDArray[np.int64]) -> NDArray[np.float16]:
    """Unit vectors around one centre for each cluster, with so much noise that the clusters overlap."""
    centres = random.normal(size=(CLUSTERS, d)).astype(np.float32)
    rows = np.empty((n, d), np.float16)
    for start in range(0, n, 8192):
        block = centres[truth[start : start + 8192]] + 4 * random.standard_normal((len(truth[start : start + 8192]), d), np.float32)
        rows[start : start + 8192] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 250_000])
    parser.add_argument("--members", type=int, default=10)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    GSEC(CLUSTERS, max_steps=2, n_members=2).fit(random.normal(size=(200, 8)))  # libraries load
    print(f"{options.members} members, {CLUSTERS} clusters, 1280 + 384 dimensions, {torch.get_num_threads()} threads")
    print("| rows | default, s | k-means, ten starts, s | ratio |\n| --- | --- | --- | --- |")
    taken = []
    for n in options.rows:
        truth = random.integers(CLUSTERS, size=n)
        X, text = blobs(n, 1280, random, truth), blobs(n, 384, random, truth)
        estimator = GSEC(CLUSTERS, n_members=options.members)
        taken.append(seconds(lambda estimator=estimator, X=X, text=text: estimator.fit(X, text=text)))  # type: ignore[misc]
        z = estimator.plan().features([X, text], estimator.halves_, 0.5).rows(sample_rows(n, sample_size(CLUSTERS), 0)).numpy()
        peer = seconds(lambda z=z: lloyd(z, CLUSTERS, n_init=10, max_iter=50, random_state=0))  # type: ignore[misc]
        print(f"| {n:,} | {taken[-1]:.1f} | {peer:.1f} | {taken[-1] / peer:.1f} |", flush=True)
    if len(taken) > 1:
        exponent = np.polyfit(np.log(options.rows), np.log(taken), 1)[0]
        print(f"\nSeconds grow as rows to the power {exponent:.2f}.")
    truth = random.integers(CLUSTERS, size=10_000)
    X, text = (blobs(10_000, d, random, truth).astype(np.float32) for d in (1280, 384))
    with mock.patch.object(bilevel, "BatchEnsembleHeads", MemberByMember):
        published, _, _ = milliseconds_a_step(X, text, 3)
    started = time.perf_counter()
    GSEC(CLUSTERS, n_members=options.members).fit(X, text=text)
    whole = time.perf_counter() - started
    print(f"A published step, member by member: {published / 1000:.1f} s; the whole fit at 10,000 rows is {whole / published * 1000:.1f} of its 6,000 steps.")


if __name__ == "__main__":
    main()
