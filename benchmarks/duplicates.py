"""Precision and recall of near-duplicates, by kind of copy and threshold.

    python -m benchmarks.duplicates --choose PATH… --report PATH… [--encoder lite]

A PATH is a Parquet file with a column `image`, an image, or a Qt resource file (``.rcc``) that contains images, of at least 200 pixels a side. Copies
of every photograph are made: saved as JPEG of quality 60, halved in size, and with edges cut off. A set is all photographs and their copies of one
kind. Recall is the share of copies that are found as duplicates of their own photograph. Precision is the share of the found pairs of a set that
are of one photograph. The threshold is the highest one for which all these figures are .95 or more on the photographs of --choose, because a larger
collection has more pairs to confuse; the reported figures are those of the photographs of --report. Photographs that occur twice in a set, that is,
whose small pictures correlate by .99, count as one, and are named.
"""

import argparse
import io
import struct
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gsec_core.clustering.duplicates import FARTHER, SAME_PICTURE, SIDE, Likeness, grouped
from gsec_core.clustering.neighbors import neighbors_of
from gsec_core.config import EncodeConfig
from gsec_core.encoders import load_encoder
from gsec_core.encoders.base import Encoder
from gsec_core.images import decode as images
from gsec_core.stages.duplicates import CANDIDATES

THRESHOLDS = (0.8, 0.83, 0.85, 0.86, 0.87, 0.88, 0.89, 0.9, 0.92, 0.95)

THUMBNAIL = EncodeConfig().thumbnail_size
LEAST_SIDE = 200

BATCH = 32

CERTAIN = 0.99

ENOUGH = 0.95
"""Minimum of precision and recall for every kind of copy."""


def saved(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> bytes:
    """A JPEG of the image with these shares of its width and height cut off."""
    width, height = image.size
    return saved(image.crop((round(width * left), round(height * top), round(width * (1 - right)), round(height * (1 - bottom)))))


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG 60": lambda image: saved(image, 60),
    "half size": lambda image: saved(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)),
    "5% cut off around": lambda image: cropped(image, 0.025, 0.025, 0.025, 0.025),
    "5% cut off at left and top": lambda image: cropped(image, 0.05, 0.05, 0, 0),
    "5% cut off at each edge": lambda image: cropped(image, 0.05, 0.05, 0.05, 0.05),
}


class Looks(NamedTuple):
    """Images as the stage sees them."""

    X: NDArray[np.float16]
    """(n, d) embeddings."""
    pixels: NDArray[np.uint8]
    """(n, side, side, 3), of their thumbnails."""


class Pairs(NamedTuple):
    """Pairs of images in a set that may be found at some threshold; a < b."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    cosines: NDArray[np.float32]


def photographs(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the photographs in a file."""
    if path.suffix == ".parquet":
        for row in pq.read_table(path, columns=["image"])["image"].to_pylist():
            yield row["path"], row["bytes"]
    elif path.suffix == ".rcc":
        yield from in_resources(path)
    else:
        yield path.name, path.read_bytes()


def in_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """The JPEGs and WebPs of a resource file. An entry is its length, in four bytes, followed by its bytes."""
    data = path.read_bytes()
    starts = sorted(chain(_all(data, b"\xff\xd8\xff", 0), _all(data, b"WEBP", 8)))
    for start in starts:
        entry = data[start : start + struct.unpack_from(">I", data, start - 4)[0]]
        try:
            with Image.open(io.BytesIO(entry), formats=["JPEG", "WEBP"]) as image:
                image.load()
                if min(image.size) >= LEAST_SIDE:
                    yield f"{path.stem} {start}", entry
        except (OSError, SyntaxError):
            continue  # the mark of an embedded thumbnail, or a coincidence


def _all(data: bytes, mark: bytes, before: int) -> Iterator[int]:
    """Positions of entries that have this mark ``before`` bytes after their beginning."""
    at = data.find(mark, 4 + before)
    while at >= 0:
        yield at - before
        at = data.find(mark, at + 1)


def seen(encoder: Encoder, files: list[bytes]) -> Looks:
    """Embeddings and small pictures of images, as stage `encode` and `canonical.load_thumbnails` make them."""
    vectors, pixels = [], []
    for start in range(0, len(files), BATCH):
        inputs = []
        for data in files[start : start + BATCH]:
            with images.opened(data, 2 * max(encoder.side, THUMBNAIL)) as picture:
                inputs.append(encoder.preprocess(picture.image))
                thumbnail = images.thumbnail(picture.image, THUMBNAIL)
            pixels.append(np.asarray(ImageOps.fit(images.decode(thumbnail), (SIDE, SIDE))))
        vectors.append(encoder.encode_images(np.stack(inputs)).image.astype(np.float16))
    return Looks(np.concatenate(vectors), np.stack(pixels))


def candidates(like: Likeness) -> Pairs:
    """All pairs whose cosine may be above the threshold."""
    numbers = np.arange(len(like.X))
    a, b = np.triu_indices(len(numbers), 1)
    near = like.X.astype(np.float32) @ like.X.astype(np.float32).T
    near_enough = near[a, b] >= like.least - 0.01
    a, b = a[near_enough], b[near_enough]
    return Pairs(a, b, like.cosines(a, b))


def twins(of: Looks) -> NDArray[np.int64]:
    """For each photograph, the number of the first photograph that is the same, (n,)."""
    certain = Likeness(of.X, of.pixels, min(THRESHOLDS))
    a, b, _ = candidates(certain)
    small = of.pixels.reshape(len(of.pixels), -1).astype(np.float64)
    same = np.array([np.corrcoef(small[one], small[other])[0, 1] >= CERTAIN for one, other in zip(a, b, strict=True)], bool)
    first = np.arange(len(of.X))
    np.minimum.at(first, b[same], a[same])
    return first


def measured(originals: Looks, copies: Looks, photograph: NDArray[np.int64]) -> dict[float, tuple[float, float]]:
    """Threshold -> precision and recall of one kind of copy."""
    n = len(originals.X)
    both = Looks(*(np.concatenate(halves) for halves in zip(originals, copies, strict=True)))
    a, b, cosines = candidates(Likeness(*both, min(THRESHOLDS)))
    of = np.tile(photograph, 2)
    found = {}
    for threshold in THRESHOLDS:
        same = Likeness(*both, threshold).same(a, b, cosines)
        found[threshold] = (float((of[a] == of[b])[same].mean()), float((b - a == n)[same].sum() / n))
    return found


def by_the_stage(all_kinds: list[Looks], photograph: NDArray[np.int64], threshold: float) -> tuple[float, float]:
    """Precision and recall of the groups that the stage makes of photographs and all their copies together.

    An image is right if the first image of its group is of the same photograph. Precision is the share of right images among all images that are not
    the first of their group, recall their share among the copies.
    """
    like = Likeness(*(np.concatenate(columns) for columns in zip(*all_kinds, strict=True)), threshold)
    n = len(like.X)

    def search(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        count = min(CANDIDATES, len(rows) - 1)
        return rows[neighbors_of(lambda places: like.X[rows[places]], len(rows), np.arange(len(rows)), count)]

    first, _ = grouped(like, [(np.arange(n), search(np.arange(n)))], search, np.arange(n))  # photographs before copies
    of = np.tile(photograph, len(all_kinds))
    copies = np.arange(n) >= len(photograph)
    right = of[first] == of
    apart = first != np.arange(n)
    return float(right[apart].mean()), float((right & apart)[copies].mean())


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--choose", type=Path, nargs="+", required=True)
    options.add_argument("--report", type=Path, nargs="+", required=True)
    options.add_argument("--encoder", default="lite")
    given = options.parse_args()
    encoder = load_encoder(given.encoder, precision="fp32", device="auto", threads=0)
    chosen = None
    for title, paths in (("to choose by", given.choose), ("to report", given.report)):
        named = [photograph for path in paths for photograph in photographs(path)]
        looks = [seen(encoder, [data for _, data in named])]
        photograph = twins(looks[0])
        table = {}
        for kind, copy in KINDS.items():
            looks.append(seen(encoder, [copy(images.decode(data)) for _, data in named]))
            table[kind] = measured(looks[0], looks[-1], photograph)
        print(f"\n{len(named)} photographs {title}; with small pictures that correlate by {SAME_PICTURE} the cosine may be {FARTHER} times as far from 1\n")
        twice = np.flatnonzero(photograph != np.arange(len(named)))
        print("Twice:", "; ".join(f"{named[place][0]} = {named[photograph[place]][0]}" for place in twice) or "none", "\n")
        print("| threshold |", " | ".join(KINDS), "|")
        print("| --- |", " | ".join("---" for _ in KINDS), "|")
        for threshold in THRESHOLDS:
            print(f"| {threshold:.2f} |", " | ".join("{:.3f} / {:.3f}".format(*table[kind][threshold]) for kind in KINDS), "|")
        lowest = {threshold: min(chain(*(table[kind][threshold] for kind in KINDS))) for threshold in THRESHOLDS}
        if chosen is None:
            chosen = max((threshold for threshold in THRESHOLDS if lowest[threshold] >= ENOUGH), default=max(THRESHOLDS, key=lowest.__getitem__))
        precision, recall = by_the_stage(looks, photograph, chosen)
        print(f"\nAt {chosen:.2f} the lowest is {lowest[chosen]:.3f}. Groups of all kinds together: {precision:.3f} / {recall:.3f}.")


if __name__ == "__main__":
    main()
