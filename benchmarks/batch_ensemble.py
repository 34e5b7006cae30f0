"""Speed-up by collapsing the BatchEnsemble mean: GSEC as it is, compared with GSEC with heads that compute every member.

    python -m benchmarks.batch_ensemble

Both fit the same estimator on the same random blobs with the same losses and optimisers; only the heads' forward pass
differs. Printed: milliseconds of an outer step of the training of each, and their ratio.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from gsec_core import GSEC
from gsec_core.methods.gsec import bilevel
from gsec_core.methods.gsec.batch_ensemble import BatchEnsembleHeads


class MemberByMember(BatchEnsembleHeads):
    """The textbook form: computes the logits of every BatchEnsemble member for every row, then their mean."""

    def forward(self, x: Tensor) -> Tensor:
        means = []
        for weight, r, s, bias in zip(self.weight, self.r, self.s, self.bias, strict=True):
            means.append((((x[:, None] * r) @ weight.T) * s + bias).mean(1))
        return torch.stack(means, 1)


@contextmanager
def timed_training() -> Iterator[list[float]]:
    """Context manager with a list of the seconds of each training, without standardising, neighbours and consensus."""
    seconds: list[float] = []
    train = bilevel.train_block

    def timed(*args: object, **kwargs: object) -> list[bilevel.Member]:
        started = time.perf_counter()
        members = train(*args, **kwargs)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - started)
        return members

    with mock.patch("gsec_core.methods.gsec.estimator.train_block", timed):
        yield seconds


def milliseconds_a_step(X: np.ndarray, text: np.ndarray, steps: int) -> tuple[float, float, np.ndarray]:
    """Milliseconds of an outer step of training alone, and of the whole fit; and the weights of the member."""
    started = time.perf_counter()
    with timed_training() as seconds:
        [member] = GSEC(n_clusters=10, preset="published", max_steps=steps, tol=0).fit(X, text=text).members_
    return 1000 * sum(seconds) / steps, 1000 * (time.perf_counter() - started) / steps, member.parameters["weights"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=512, help="of each half")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--peer-steps", type=int, default=3, help="steps of the member-by-member form, which is slow")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    truth = random.integers(10, size=options.rows)
    X, text = (random.normal(size=(10, options.dimensions))[truth] + 2 * random.normal(size=(options.rows, options.dimensions)) for _ in range(2))
    X, text = X.astype(np.float32), text.astype(np.float32)
    print(
        f"{options.rows} x ({options.dimensions} + {options.dimensions}), 10 clusters, 32 BatchEnsemble members, batch 1000, {torch.get_num_threads()} threads"
    )
    milliseconds_a_step(X, text, 3)  # libraries load, memory is claimed
    ratios = []
    for _ in range(options.rounds):
        collapsed, whole, _ = milliseconds_a_step(X, text, options.steps)
        with mock.patch.object(bilevel, "BatchEnsembleHeads", MemberByMember):
            peer, _, _ = milliseconds_a_step(X, text, options.peer_steps)
        ratios.append(peer / collapsed)
        print(f"collapsed {collapsed:8.1f} ms a step (the whole fit: {whole:.1f})   member by member {peer:9.1f} ms a step   ratio {ratios[-1]:6.1f}")
    ours = milliseconds_a_step(X, text, 1)[2]
    with mock.patch.object(bilevel, "BatchEnsembleHeads", MemberByMember):
        theirs = milliseconds_a_step(X, text, 1)[2]
    differing = np.mean(np.abs(ours - theirs) > 1e-5)  # where a gradient is nearly 0, AdamW's first step depends on its last bit
    print(f"median ratio {np.median(ratios):.1f}; after one step {differing:.2%} of the weights differ by more than 1e-5")


if __name__ == "__main__":
    main()
