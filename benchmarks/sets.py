"""The sets on which quality is measured: embeddings, descriptions of the images, and labels, which are only used for scores.

Everything about a set is fixed, also its long tail and its simulated captions, so that only the method varies
over seeds. Simulated captions are sentences with a class name, which is right with a given probability, for the
representatives only, which are chosen as in stage `prototypes`.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from gsec_core import pipeline
from gsec_core.clustering.prototypes import prototype_count, representatives
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.settings import load_config
from gsec_core.sources import keyed
from gsec_core.stages import encode
from gsec_core.stages.base import Context, run_stage
from gsec_core.stages.canonical import load_embeddings, load_joint, usable
from gsec_core.text.fusion import LEAST_WEIGHT, MOST_WEIGHT, Ridge, best_predicted, ridge_cosines, softmax_cosines, softmax_counterparts, weight_by

FASHION = Path("/usr/share/datasets/fashion-mnist")

TAU = 0.005
"""Temperature of the softmax counterpart."""

DATA_SEED = 0
"""Seed of long tails, representatives and simulated captions."""


@dataclass(frozen=True)
class Described:
    """Descriptions of some images."""

    rows: NDArray[np.int64]
    """(M,): rows of the described images."""
    T: NDArray[np.float32]
    """(M, dt): embeddings of the descriptions."""


@dataclass(frozen=True)
class Set:
    """Images as vectors, with labels, and with descriptions if there are any."""

    name: str
    X: NDArray[np.float16]
    """(n, d) embeddings."""
    joint: NDArray[np.float16]
    """(n, dt) embeddings in the space of the descriptions."""
    truth: NDArray[Any]
    """(n,) labels. Only the scores and the simulation of captions use them."""
    described: Described | None

    @property
    def n_clusters(self) -> int:
        return len(np.unique(self.truth))

    def counterparts(self) -> tuple[NDArray[np.floating[Any]], float]:
        """The text half of the default preset, and its weight."""
        if self.described is None:
            return self.joint, LEAST_WEIGHT
        if len(self.described.rows) == len(self.X):
            return self.described.T[np.argsort(self.described.rows)], MOST_WEIGHT
        rows, T = self.described.rows, self.described.T
        cosines = {"ridge": ridge_cosines(self.X, rows, T), "softmax": softmax_cosines(self.joint[rows], T, TAU)}
        kind = best_predicted(cosines)
        blocks = Ridge.fit(self.X, rows, T).counterparts(self.X) if kind == "ridge" else softmax_counterparts(self.joint, T, T, TAU)
        return np.concatenate(list(blocks)), weight_by(float(cosines[kind].mean()))

    def long_tail(self, ratio: float = 10) -> NDArray[np.int64]:
        """Rows of a subset whose class sizes fall geometrically, with the largest ``ratio`` times the smallest, in a random order of the classes."""
        random = np.random.default_rng(DATA_SEED)
        classes, counts = np.unique(self.truth, return_counts=True)
        shares = ratio ** -np.linspace(0, 1, len(classes))
        kept = [
            random.choice(np.flatnonzero(self.truth == label), int(counts.min() * share), replace=False)
            for label, share in zip(random.permutation(classes), shares, strict=True)
        ]
        return np.sort(np.concatenate(kept))

    def subset(self, rows: NDArray[np.int64], name: str) -> "Set":
        """Some images, without descriptions."""
        return Set(name, self.X[rows], self.joint[rows], self.truth[rows], None)

    def with_captions(self, name: str, right: float, sentence_of: Callable[[Any], NDArray[np.float32]]) -> "Set":
        """The set with a simulated caption for each representative: with probability ``right`` that of its class, else that of another class."""
        random = np.random.default_rng(DATA_SEED)
        count = prototype_count(len(self.X), self.n_clusters)
        kmeans = SphericalKMeans(count, n_init=1, max_iter=20, random_state=DATA_SEED, sample_per_cluster=64).fit(self.X)
        distances = np.concatenate([1 - block.max(1) for block in kmeans.similarities(self.X)])
        rows = representatives(distances, kmeans.labels_, kmeans.n_clusters, 5).row
        classes, number = np.unique(self.truth, return_inverse=True)
        said = number[rows]
        wrong = random.random(len(rows)) >= right
        said[wrong] = (said[wrong] + random.integers(1, len(classes), wrong.sum())) % len(classes)
        return Set(name, self.X, self.joint, self.truth, Described(rows, np.stack([sentence_of(classes[label]) for label in said])))


def embedded(source: str, work: Path, encoder: str, name: str) -> tuple[Set, Context, list[str]]:
    """Encode the images of ``source``, a Parquet file with a column `label`, into a store in the folder ``work``. Returns the set, the context and the URIs."""
    config = load_config(overrides={"source": source, "store": str(work / "store"), "corpus": name, "clusters": 2, "encode": {"encoder": encoder}})
    context = Context.of(pipeline.request(config)[0], config)
    run_stage(context, encode.STAGE)
    rows = usable(context).rows
    label_of = keyed.read_keyed(source, "label", setting="label").lookup
    uris, hashes = rows["uri"].to_pylist(), rows["content_hash"].to_pylist()
    truth = np.array([label_of(uri, content_hash) for uri, content_hash in zip(uris, hashes, strict=True)])
    return Set(name, np.array(load_embeddings(context)), np.array(load_joint(context)), truth, None), context, uris


def cifar10(data: Path, work: Path, encoder: str) -> Iterator[Set]:
    """The test images: without captions, with simulated ones, and both with a long tail."""
    file = data / "cifar10-test.parquet"
    whole, context, _ = embedded(str(file), work, encoder, "cifar10")
    names = json.loads(pq.read_schema(file).metadata[b"class_names"])
    said = encode.STAGE.load(context.config).encode_texts([f"This image contains a {name}." for name in names])

    def sentence_of(label: Any) -> NDArray[np.float32]:
        return said[int(label)]

    tail = whole.subset(whole.long_tail(), "CIFAR-10 lt, no captions")
    yield Set("CIFAR-10, no captions", whole.X, whole.joint, whole.truth, None)
    yield tail
    for right in (0.5, 0.7, 0.9):
        yield whole.with_captions(f"CIFAR-10, simulated captions {right}", right, sentence_of)
    yield tail.with_captions("CIFAR-10 lt, simulated captions 0.7", 0.7, sentence_of)


def stamps(data: Path, work: Path, encoder: str) -> Iterator[Set]:
    """317 photographs and drawings in 11 unequal classes, each with a sentence that a person wrote."""
    file = data / "stamps.parquet"
    whole, context, uris = embedded(str(file), work, encoder, "stamps")
    sentence_of = keyed.read_keyed(str(file), "description", setting="description").lookup
    hashes = usable(context).rows["content_hash"].to_pylist()
    sentences = [str(sentence_of(uri, content_hash)) for uri, content_hash in zip(uris, hashes, strict=True)]
    T = encode.STAGE.load(context.config).encode_texts(sentences)
    yield Set("stamps, no captions", whole.X, whole.joint, whole.truth, None)
    yield Set("stamps, human descriptions", whole.X, whole.joint, whole.truth, Described(np.arange(len(T)), T))


def all_wrong(images: Set) -> Set:
    """The set with wrong descriptions: its own, in a random order."""
    assert images.described is not None, "there is something to mix up"
    order = np.random.default_rng(DATA_SEED).permutation(len(images.described.T))
    return replace(images, described=Described(images.described.rows, images.described.T[order]))


def digits(data: Path, work: Path, encoder: str) -> Iterator[Set]:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    found = load_digits()
    yield written("digits", [_png(image) for image in (found.images * (255 / 16)).astype(np.uint8)], found.target, work, encoder)


def fashion(data: Path, work: Path, encoder: str) -> Iterator[Set]:
    """The 10,000 test images of Fashion-MNIST, as Debian's package `dataset-fashion-mnist` installs them."""
    if not FASHION.exists():
        raise SystemExit("Fashion-MNIST is not there: apt-get install dataset-fashion-mnist")
    images, labels = (gzip.decompress((FASHION / f"t10k-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1"))
    pictures = [_png(image) for image in np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)]
    yield written("fashion", pictures, np.frombuffer(labels, np.uint8, offset=8), work, encoder)


def written(name: str, images: Sequence[bytes], labels: NDArray[Any], work: Path, encoder: str) -> Set:
    """Make a set of image files, which are first written to a Parquet file."""
    file = work / f"{name}.parquet"
    if not file.exists():
        rows = [{"bytes": image, "path": f"{number:06d}"} for number, image in enumerate(images)]
        pq.write_table(pa.table({"image": rows, "label": labels}), file)
    whole, _, _ = embedded(str(file), work, encoder, name)
    return Set(f"{name}, no captions", whole.X, whole.joint, whole.truth, None)


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


SOURCES: dict[str, Callable[[Path, Path, str], Iterator[Set]]] = {"cifar10": cifar10, "stamps": stamps, "digits": digits, "fashion": fashion}
"""Name -> function that makes the sets; it takes the folder with the shared images, a working folder that keeps their embeddings, and an encoder."""
