"""Whether `suggest_n_clusters` finds the number of clusters in sets where it is known, and the curve from which it does.

    python -m benchmarks.clusters --data FOLDER [--svg FILE]

FOLDER as in `benchmarks.quality`. Made-up sets are Gaussian clusters of 3,000 images in 20 dimensions, of equal size or not, whose
centres are 3 or 2 deviations apart in each dimension. `copies` are 40 photographs of CIFAR-10's test set, each 30 times with another
JPEG quality and crop, so that the images have a clear number of clusters. Prints the result of `suggest_n_clusters` for
each set, and draws the purity that all but a tenth of the clusters reach.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks.sets import SOURCES, written
from gsec_core.clustering.n_clusters import MOSTLY_PURE, NumberOfClusters, suggest_n_clusters

COPIED, COPIES = 40, 30


def gaussian(count: int, apart: float, even: bool) -> tuple[str, NDArray[np.float32], int]:
    random = np.random.default_rng(0)
    shares = np.full(count, 1 / count) if even else 0.7 * random.dirichlet(np.ones(count)) + 0.3 / count
    labels = random.choice(count, 3000, p=shares)
    centres = apart / np.sqrt(2) * random.standard_normal((count, 20))
    name = f"made up, {count} {'equal' if even else 'unequal'} clusters {apart:g} apart"
    return name, (centres[labels] + random.standard_normal((3000, 20))).astype(np.float32), count


def copies(data: Path, work: Path, encoder: str) -> tuple[str, NDArray[Any], int]:
    """Photographs with many copies of each, as a set with a known number of clusters."""
    random = np.random.default_rng(0)
    rows = pq.read_table(data / "cifar10-test.parquet", columns=["image"]).slice(0, COPIED)["image"].to_pylist()
    pictures = []
    for row in rows:
        picture = Image.open(io.BytesIO(row["bytes"] if isinstance(row, dict) else row)).convert("RGB")
        for _ in range(COPIES):
            left, top, right, bottom = random.integers(0, 3, 4)
            cut = picture.crop((left, top, picture.width - right, picture.height - bottom))
            buffer = io.BytesIO()
            cut.save(buffer, "JPEG", quality=int(random.integers(60, 96)))
            pictures.append(buffer.getvalue())
    found = written("copies", pictures, np.repeat(np.arange(COPIED), COPIES), work, encoder)
    return f"copies of {COPIED} photographs", found.X, COPIED


def sets(data: Path, work: Path, encoder: str) -> Iterator[tuple[str, NDArray[Any], int]]:
    seen: set[bytes] = set()
    for source in SOURCES.values():
        for images in source(data, work, encoder):
            if images.X[:100].tobytes() not in seen:  # captions are not used
                seen.add(images.X[:100].tobytes())
                yield images.name.removesuffix(", no captions"), images.X, images.n_clusters
    yield copies(data, work, encoder)
    for count in (3, 8, 25, 60):
        for apart, even in ((3.0, True), (3.0, False), (2.0, True)):
            yield gaussian(count, apart, even)
    yield "made up, no clusters", gaussian(10, 0.0, True)[1], 1


def svg(curves: list[tuple[str, NumberOfClusters, int]]) -> str:
    """Plot of purity by number of clusters, on a logarithmic axis. A ring marks the true number, a dot the number that was found."""
    width, height, left, bottom, right = 790, 420, 50, 40, 250

    def place(count: float, purity: float) -> tuple[float, float]:
        return left + (width - left - right) * float(np.log(count / 2) / np.log(100)), (height - bottom) * (1 - max(0.0, purity)) + 10

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{words}</text>'

    def line(x: float, y: float, to_x: float, to_y: float) -> str:
        return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#eee"/>'

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 20}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{width}" height="{height + 20}" fill="#fff"/>')
    for count in (2, 5, 10, 20, 50, 100, 200):
        x, y = place(count, 0)
        parts += [line(x, 10, x, y), text(x, y + 16, str(count), 'text-anchor="middle"')]
    for purity in (0, 0.25, 0.5, 0.75, MOSTLY_PURE, 1):
        x, y = place(2, purity)
        parts += [line(x, y, width - right, y), text(x - 6, y + 4, f"{purity:g}", 'text-anchor="end"')]
    parts.append(text(left, height + 14, "clusters asked for; up: purity that all but a tenth of them reach"))
    for number, (name, found, truth) in enumerate(curves):
        colour = f"hsl({360 * number / len(curves):.0f} 65% 40%)"
        points = [place(count, purity) for count, purity in zip(found.counts, found.low, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if found.counts[0] <= truth <= found.counts[-1]:
            x, y = place(truth, float(np.interp(truth, found.counts, found.low)))
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if found.n_clusters is not None:
            x, y = place(found.n_clusters, float(np.interp(found.n_clusters, found.counts, found.low)))
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        parts.append(text(width - right + 10, 24 + 18 * number, name, f'fill="{colour}"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="a folder that keeps the embeddings for a next time")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--svg", type=Path, help="draws the curves of the sets of images")
    options = parser.parse_args()
    curves = []
    print(f"encoder {options.encoder}\n\n| set | clusters | found | purity that all but a tenth of the clusters reach |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        for name, X, truth in sets(options.data, options.work or Path(directory), options.encoder):
            found = suggest_n_clusters(X)
            near = [(count, low) for count, low in zip(found.counts, found.low, strict=True) if count in (2, 3, 5, 10, 20, 42, 62, 90)]
            print(f"| {name} | {truth} | {found.n_clusters or 'cannot tell'} | {', '.join(f'{count}: {low:.2f}' for count, low in near)} |", flush=True)
            if not name.startswith("made up") or "25 equal clusters 3" in name:
                curves.append((name, found, truth))
    if options.svg:
        options.svg.write_text(svg(curves))


if __name__ == "__main__":
    main()
