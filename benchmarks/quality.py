"""How good the labelling is against labels that take no part: image k-means, fused k-means, one member, the consensus.

    python -m benchmarks.quality SOURCE --labels FILE -k K [--captioner table:FILE:COLUMN] [--encoder NAME] [--seeds 5]

Runs the pipeline once a seed, the seed being that of k-means, prototypes and training, and prints mean and standard
deviation. `fused k-means` is spherical k-means on image embedding and text counterpart side by side, both of unit length.
"""

import argparse
import tempfile
from collections.abc import Callable
from statistics import mean, stdev

import numpy as np

from gsec_core import keyed, pipeline
from gsec_core.clustering.kmeans import SphericalKMeans, unit_rows
from gsec_core.clustering.metrics import Scores, score
from gsec_core.config import PipelineConfig
from gsec_core.quality import labellings, truth_of
from gsec_core.settings import load_config
from gsec_core.stages import align, fuse, train
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.canonical import load_embeddings


def run(config: PipelineConfig) -> Context:
    """The pipeline in this process."""
    context = Context.of(pipeline.request(config)[0], config)
    for stage in pipeline.STAGES:
        run_stage(context, stage)
    return context


def scores_of(context: Context, label_of: Callable[[str, bytes], object]) -> dict[str, Scores]:
    """Labelling -> scores."""
    (_, consensus, _), (_, kmeans, _) = labellings(context)
    truth, known = truth_of(consensus, label_of)
    both = np.concatenate([unit_rows(load_embeddings(context)), unit_rows(fuse.load_counterparts(context))], 1)
    config = context.config.baseline
    fused = SphericalKMeans(context.config.clusters, n_init=config.n_init, max_iter=config.max_iter, random_state=config.random_state).fit(both)
    ensemble, features = align.load_ensemble(context), train.load_features(context)
    single = [block.member_labels[:, 0] for block in ensemble.assign_all(features, "cpu")]
    found = {
        "k-means, image": kmeans["cluster"].to_numpy(),
        "k-means, image and text": fused.labels_,
        "GSEC, one member": np.concatenate(single),
        "GSEC, consensus": consensus["cluster"].to_numpy(),
    }
    return {name: score(truth, labels[known]) for name, labels in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--labels", required=True)
    parser.add_argument("--column", default="label")
    parser.add_argument("-k", "--clusters", type=int, required=True)
    parser.add_argument("--captioner", default="tagger")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--prototypes", type=int)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    label_of = keyed.read_keyed(options.labels, options.column, setting="--labels").lookup
    found: dict[str, list[Scores]] = {}
    with tempfile.TemporaryDirectory() as store:
        for seed in range(options.seeds):
            config = load_config(
                overrides={
                    "source": options.source,
                    "store": store,
                    "clusters": options.clusters,
                    "encode": {"encoder": options.encoder},
                    "baseline": {"random_state": seed},
                    "prototypes": {"random_state": seed, "count": options.prototypes},
                    "describe": {"captioner": options.captioner},
                    "train": {"random_state": seed, "preset": options.preset, "tol": options.tol},
                }
            )
            for name, scores in scores_of(run(config), label_of).items():
                found.setdefault(name, []).append(scores)
    print(f"{options.source}, {options.clusters} clusters, encoder {options.encoder}, preset {options.preset}, {options.seeds} seeds,")
    print(f"captions {options.captioner}")
    print("| labelling | ACC % | NMI % | ARI % |\n| --- | --- | --- | --- |")
    for name, rows in found.items():
        cells = [f"{100 * mean(column):.1f} ± {100 * stdev(column) if len(column) > 1 else 0:.1f}" for column in zip(*rows, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
