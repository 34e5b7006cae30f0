"""Quality of the explorer's search: how many of the nearest images the compressed index finds, and what `lite` finds by words.

    python -m benchmarks.search index [--rows 32768] [--dim 1280]
    python -m benchmarks.search words --store STORE

``index`` compares faiss's scalar quantizers with exact search, on vectors around a thousand centres of very different sizes: the share of the nearest 100
that is found, the largest error of a cosine, bytes for each image, and the time of a query compared with that of a matrix product.

``words`` searches the run of `gsec demo` for what its photographs show, and prints how many of the ten nearest images are crops of the right one; the
folder of an image is its photograph. The second table has words that match no photograph.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from gsec_core.explore import Collection
from gsec_core.explore.queries import LITE_LEAST
from gsec_core.store import Store

Q = faiss.ScalarQuantizer
QUANTIZERS = {"2 bytes": Q.QT_fp16, "8 bits": Q.QT_8bit, "6 bits": Q.QT_6bit, "4 bits": Q.QT_4bit}

QUERIES = 200
NEAREST = 100
CENTRES = 1000
FOUND = 10

SHOWN = {
    "astronaut": ("astronaut", "spacesuit", "a woman in a spacesuit"),
    "brick": ("brick", "stone wall", "a wall of bricks"),
    "chelsea": ("cat", "a cat on a sofa", "tabby"),
    "china": ("china", "temple", "a palace in China"),
    "coffee": ("coffee", "a cup of coffee", "espresso"),
    "coins": ("coins", "money", "ancient coins"),
    "flower": ("flower", "a flower in a garden", "daisy"),
    "grass": ("grass", "lawn", "a meadow"),
    "hubble_deep_field": ("galaxy", "stars", "the night sky"),
    "immunohistochemistry": ("tissue", "cells under a microscope"),
    "retina": ("retina", "an eye from inside"),
    "rocket": ("rocket", "a rocket at its launch", "missile"),
}
"""Photograph -> words for what it shows."""

NOT_SHOWN = ("at night", "red", "text", "a dog", "violin")


def mixture(rows: int, dim: int) -> NDArray[np.float32]:
    """Unit vectors around centres, with very different numbers of vectors for each centre and very different spreads of the features."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, CENTRES + 1)
    centres = random.standard_normal((CENTRES, dim), np.float32)
    X = centres[random.choice(CENTRES, rows, p=share / share.sum())] + random.standard_normal((rows, dim), np.float32)
    X *= random.lognormal(0, 1, dim).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X


def median_time(ask: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> float:
    """Median milliseconds of a query."""
    times = []
    for query in queries:
        began = time.perf_counter()
        ask(query[None])
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def index(rows: int, dim: int) -> None:
    faiss.omp_set_num_threads(1)
    X = mixture(rows + QUERIES, dim)
    X, queries = X[:rows], X[rows:]
    cosines = queries @ X.T
    nearest = np.argsort(-cosines, axis=1)[:, :NEAREST]
    table = []
    for name, kind in QUANTIZERS.items():
        quantized = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
        quantized.train(X)
        quantized.add(X)
        told, found = quantized.search(queries, NEAREST)
        recall = np.mean([len(np.intersect1d(*pair)) / NEAREST for pair in zip(found, nearest, strict=True)])
        off = np.abs(told - np.take_along_axis(cosines, found, axis=1)).max()
        took = median_time(lambda query, quantized=quantized: quantized.search(query, NEAREST), queries)  # type: ignore[misc]
        table.append([name, f"{100 * recall:.1f}", f"{off:.4f}", str(quantized.code_size), f"{took:.1f}"])
    table.append(["float32, a product", "100", "0", str(4 * dim), f"{median_time(lambda query: query @ X.T, queries):.1f}"])
    print(f"{rows:,} images of {dim:,} values, one thread of faiss")
    printed(["index", f"of the nearest {NEAREST}, %", "cosine off by at most", "bytes an image", "ms a query"], table)


def words(store: str) -> None:
    opened = Store.open(store)
    [published] = opened.published()
    collection = Collection(opened.run(published.run_id))

    def asked(text: str) -> tuple[float, list[str]]:
        rows = collection.by_words(text, limit=FOUND).rows
        assert rows[0].cosine is not None
        return rows[0].cosine, [PurePath(row.uri).parts[0] for row in rows]

    table = []
    for photograph, texts in SHOWN.items():
        for text in texts:
            cosine, found = asked(text)
            table.append([text, photograph, str(found.count(photograph)), f"{cosine:.2f}", "" if cosine >= LITE_LEAST else "yes"])
    print(f"{len(collection)} images, encoder {collection.context.config.encode.encoder}")
    printed(["words", "photograph", f"right of {FOUND}", "cosine of the first", "said to be unsure"], table)
    printed(["words", "cosine of the first"], [[text, f"{asked(text)[0]:.2f}"] for text in NOT_SHOWN])


def printed(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    for row in (names, ["---"] * len(names), *rows):
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    part = kinds.add_parser("index")
    part.add_argument("--rows", type=int, default=32_768)
    part.add_argument("--dim", type=int, default=1280)
    part = kinds.add_parser("words")
    part.add_argument("--store", required=True)
    options = parser.parse_args()
    if options.kind == "index":
        index(options.rows, options.dim)
    else:
        words(options.store)


if __name__ == "__main__":
    main()
