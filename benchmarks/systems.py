"""Compare methods on the same embeddings: ACC, NMI and ARI over seeds, seconds and memory.

    python -m benchmarks.systems --data FOLDER [--sets clip500 cifar10 stamps digits fashion] [--methods ...] [--seeds 5]

FOLDER holds `clip500/` (images and nouns in CLIP's space), `cifar10-test.parquet` and `stamps.parquet`. The protocol is the same for all: default
settings for all sets, the last state of the training, and a given number of clusters; labels are only used for the scores, after all labellings of a set
are made. `zero-shot` knows the names of the classes and is an upper bound, not a peer. On `clip500` nouns are those of LVIS and Open Images, elsewhere
those of `--vocabulary`; they are selected once for each set, independent of the seed. `gsec, joint` is the default of a run without a language model: the
image in the space of the texts is its own counterpart. `one member` is the method without its outer layer, as in its paper. `--work` keeps the
embeddings of all sets, so that later calls need neither the images nor the encoder. With `--float32`, methods that train in bfloat16 where the processor
multiplies it train in float32.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.memory import peak
from benchmarks.sets import SOURCES
from gsec_core import ASD, GSEC, SEIC, SIC, TAC, TEMI, TURTLE, Mixture, TACKMeans, ZeroShot, devices
from gsec_core.clustering.metrics import score
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.config import NounsConfig
from gsec_core.encoders import load_encoder
from gsec_core.methods.clusterer import Clusterer
from gsec_core.store.arrays import to_matrix
from gsec_core.text.fusion import LEAST_WEIGHT
from gsec_core.text.nouns import noun_counterparts, select_nouns
from gsec_core.text.vocabulary import PROMPT, load_vocabulary, prompted

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Case:
    """A set, with the inputs that methods may use."""

    name: str
    X: NDArray[Any]
    """(n, d) embeddings of the images."""
    joint: NDArray[Any]
    """(n, dt) embeddings of the images in the space of the texts."""
    nouns: NDArray[Any]
    """(words, dt) embeddings of the vocabulary."""
    S: NDArray[np.float32]
    """(n, dt) TAC's counterparts from nouns."""
    names: NDArray[np.float32] | None
    """(classes, dt) embeddings of the classes' names, only for zero-shot."""
    n_clusters: int


WEIGHT = NounsConfig().weight


def mixed(case: Case, seed: int, **estimators: Clusterer) -> Mixture:
    """The consensus of several methods, with text from nouns."""
    return Mixture(case.n_clusters, list(estimators.items()), random_state=seed, text_weight=WEIGHT).fit(case.X, text=case.S)


METHODS: dict[str, Callable[[Case, int], Any]] = {
    "k-means": lambda case, seed: SphericalKMeans(case.n_clusters, n_init=10, random_state=seed).fit(case.X),
    "gsec, no text": lambda case, seed: GSEC(case.n_clusters, random_state=seed).fit(case.X),
    "gsec, joint": lambda case, seed: GSEC(case.n_clusters, random_state=seed, text_weight=LEAST_WEIGHT).fit(case.X, text=case.joint),
    "gsec, nouns": lambda case, seed: GSEC(case.n_clusters, random_state=seed, text_weight=WEIGHT).fit(case.X, text=case.S),
    "tac-kmeans": lambda case, seed: TACKMeans(case.n_clusters, random_state=seed).fit(case.X, text=case.S),
    "tac": lambda case, seed: TAC(case.n_clusters, random_state=seed).fit(case.X, text=case.S),
    "sic": lambda case, seed: SIC(case.n_clusters, random_state=seed).fit(case.X, nouns=case.nouns, joint=case.joint),
    "seic": lambda case, seed: SEIC(case.n_clusters, random_state=seed).fit(case.X, nouns=case.nouns, joint=case.joint),
    "turtle": lambda case, seed: TURTLE(case.n_clusters, random_state=seed).fit(case.X),
    "turtle, 1200 steps": lambda case, seed: TURTLE(case.n_clusters, max_steps=1200, random_state=seed).fit(case.X),
    "temi": lambda case, seed: TEMI(case.n_clusters, random_state=seed).fit(case.X),
    "temi, 1200 steps": lambda case, seed: TEMI(case.n_clusters, max_steps=1200, random_state=seed).fit(case.X),
    "asd": lambda case, seed: ASD(case.n_clusters, random_state=seed).fit(case.X),
    "asd, nouns": lambda case, seed: ASD(case.n_clusters, random_state=seed).fit(case.X, text=case.S),
    "gsec + tac": lambda case, seed: mixed(case, seed, gsec=GSEC(), tac=TAC()),
    "gsec + asd": lambda case, seed: mixed(case, seed, gsec=GSEC(), asd=ASD()),
    "tac + asd": lambda case, seed: mixed(case, seed, tac=TAC(), asd=ASD()),
    "gsec + tac + asd": lambda case, seed: mixed(case, seed, gsec=GSEC(), tac=TAC(), asd=ASD()),
}
"""Name -> function that returns a fitted estimator for a case and a seed."""

ONE_MEMBER = ", one member"
ZERO_SHOT = "zero-shot (knows the names)"


def zero_shot(case: Case) -> Labels:
    assert case.names is not None
    labels: Labels = ZeroShot(case.n_clusters).fit(case.X, nouns=case.names, joint=case.joint).labels_
    return labels


CLIP500_CLASSES = ("airplane", "car_(automobile)", "bird", "cat", "deer", "dog", "frog", "horse", "cargo_ship cruise_ship passenger_ship", "truck")
"""The nouns of clip500 for the ten classes of CIFAR-10. If a class has several nouns, the mean of their embeddings is used."""


def clip500(data: Path) -> tuple[Case, NDArray[Any]]:
    """500 images of CIFAR-10 and 1,703 nouns, by CLIP ViT-B/32."""
    images, nouns = (pq.read_table(data / "clip500" / f"{name}.parquet") for name in ("images", "nouns"))
    X, vectors, truth = to_matrix(images, "embedding"), to_matrix(nouns, "embedding"), images["label"].to_numpy()
    of = dict(zip(reversed(nouns["noun"].to_pylist()), vectors[::-1], strict=True))
    names = np.stack([np.mean([of[noun] for noun in called.split()], axis=0) for called in CLIP500_CLASSES])
    return _case("clip500", X, X, vectors, len(np.unique(truth)), names), truth


def _case(name: str, X: NDArray[Any], joint: NDArray[Any], vectors: NDArray[Any], n_clusters: int, names: NDArray[Any] | None) -> Case:
    chosen = vectors[select_nouns(joint, vectors, n_clusters).noun]
    return Case(name, X, joint, vectors, np.concatenate(list(noun_counterparts(joint, chosen))), names, n_clusters)


def kept(name: str, data: Path, work: Path, encoder: str, vocabulary: str) -> list[tuple[Case, NDArray[Any]]]:
    """The sets of `others`, which a file in the folder ``work`` keeps for later calls, or for a machine without the encoder."""
    file = work / f"{name}, {encoder}, {vocabulary.replace('/', '-')}.npz"
    if not file.exists():
        found = [{**asdict(case), "truth": truth} for case, truth in others(name, data, work, encoder, vocabulary)]
        shared = {"nouns": found[0]["nouns"]}
        parts = {f"{number} {key}": value for number, part in enumerate(found) for key, value in part.items() if key not in ("nouns", "names")}
        np.savez(file, **shared, **parts)
    with np.load(file) as stored:
        count = sum(key.endswith(" truth") for key in stored)
        parts = [{key: stored[f"{number} {key}"] for key in ("name", "X", "joint", "S", "n_clusters", "truth")} for number in range(count)]
        return [(Case(str(part["name"]), part["X"], part["joint"], stored["nouns"], part["S"], None, int(part["n_clusters"])), part["truth"]) for part in parts]


def others(name: str, data: Path, work: Path, encoder: str, vocabulary: str) -> Iterator[tuple[Case, NDArray[Any]]]:
    """The sets of `benchmarks.sets` without descriptions; nouns take their place."""
    loaded = load_encoder(encoder, precision="fp32", device="auto", threads=0)
    vectors = loaded.encode_texts([prompted(word, [PROMPT])[0] for word in load_vocabulary(vocabulary).words])
    for found in SOURCES[name](data, work, encoder):
        if found.described is None:
            yield _case(found.name.replace(", no captions", ""), found.X, found.joint, vectors, found.n_clusters, None), found.truth


def measure(case: Case, truth: NDArray[Any], methods: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    """One row for each method."""
    made: dict[str, list[Labels]] = {}
    costs: dict[str, tuple[float, float]] = {}
    for name in methods:
        with peak() as memory:
            before, started = memory.mib, time.monotonic()
            fitted = [METHODS[name](case, seed) for seed in range(seeds)]
            costs[name] = (time.monotonic() - started) / seeds, memory.mib - before
        if isinstance(fitted[0], Clusterer) and not isinstance(fitted[0], Mixture):
            # the first member is the method without its outer layer: a fit with one member would give the same
            made[name + ONE_MEMBER] = [estimator.member_labels_[0] for estimator in fitted]
        made[name] = [estimator.labels_ for estimator in fitted]
    if case.names is not None:
        made[ZERO_SHOT] = [zero_shot(case)] * seeds
    for name, found in made.items():
        values = 100 * np.array([score(truth, labels) for labels in found])
        sizes = np.bincount(found[0], minlength=case.n_clusters)
        deviations = values.std(0, ddof=1) if seeds > 1 else np.zeros(3)
        scored = {metric: [float(mean), float(deviation)] for metric, mean, deviation in zip(("ACC", "NMI", "ARI"), values.mean(0), deviations, strict=True)}
        sized = f"{sizes.max()} / {sizes.min()}"
        yield {"set": case.name, "method": name, **scored, "sizes": sized, "costs": costs.get(name), "values": values.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["clip500", *SOURCES])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--vocabulary", default="imagenet")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="keeps the embeddings between calls")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--float32", action="store_true", help="never train in bfloat16")
    options = parser.parse_args()
    if options.float32:
        vars(devices)["product_dtype"] = lambda device: torch.float32
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gsec-systems-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.sets:
            known = name == "clip500"
            cases = [clip500(options.data)] if known else kept(name, options.data, work, options.encoder, options.vocabulary)
            for case, truth in cases:
                encoder = "CLIP ViT-B/32, nouns of LVIS and Open Images" if known else f"{options.encoder}, nouns: {options.vocabulary}"
                print(f"\n{case.name}: {len(case.X):,} images, {case.n_clusters} clusters; encoder {encoder}; {options.seeds} seeds\n")
                print("| method | ACC | NMI | ARI | largest / smallest | seconds | MiB |\n| --- | --- | --- | --- | --- | --- | --- |")
                for row in measure(case, truth, options.methods, options.seeds):
                    scored = " | ".join(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in (row["ACC"], row["NMI"], row["ARI"]))
                    cost = "{:.1f} | {:.0f}".format(*row["costs"]) if row["costs"] else " | "
                    print(f"| {row['method']} | {scored} | {row['sizes']} | {cost} |", flush=True)
                    rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
