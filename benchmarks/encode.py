"""How close the encode stage comes to the bound given by its two halves.

    python -m benchmarks.encode --images 5000

Let d be the rate of reading, hashing, decoding, resizing and normalising alone, and f that of the forward pass alone with
the same batch shape, each with all cores. On a processor that does both, the time is at least T_ideal = N (1/d + 1/f).
Printed are d, f, the stage's rate and T_ideal / T_stage. The times do not include imports and loading of the model, but that
of the stage includes what it does besides d and f (thumbnails, Parquet, fsync). The images are processed in rounds, each
measured in all three ways, so that a temporarily slow machine slows all three. With `lite` on a CPU the
forward pass by torch is measured too, and the stage is compared with the best that torch would allow.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from flows.demo import photographs
from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.devices import resolve, usable_cores
from gsec_core.encoders import lite
from gsec_core.encoders.base import Encoder
from gsec_core.images import decode as images
from gsec_core.settings import load_config
from gsec_core.sources import open_source
from gsec_core.sources.base import ImageRef, Source
from gsec_core.stages import encode
from gsec_core.stages.base import Context, run_stage


@dataclass
class Seconds:
    """Seconds of a round, by part."""

    prepare: float = 0.0
    forward: float = 0.0
    stage: float = 0.0
    by_torch: float = 0.0
    """The forward pass by torch, if the encoder does not use torch; else 0."""

    @property
    def share(self) -> float:
        return (self.prepare + self.forward) / self.stage


def write_photographs(folder: Path, count: int, seed: int) -> Path:
    """``count`` variations of the photographs inside scikit-image and scikit-learn, 500 to 800 px on the longest side."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    originals = photographs()
    for number in range(count):
        _, image = originals[number % len(originals)]
        share = random.uniform(0.6, 1.0)
        width, height = (int(length * share) for length in image.size)
        left, top = (int(random.integers(0, whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True))
        scale = random.integers(500, 801) / max(width, height)
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        ImageEnhance.Brightness(image).enhance(random.uniform(0.6, 1.4)).save(folder / f"{number:05d}.jpg", quality=90)
    return folder


def measure(source: Path, store: Path, config: PipelineConfig, encoder: Encoder, workers: int, peer: Callable[[np.ndarray], object] | None) -> Seconds:
    """Measure one round: the halves alone, then the stage."""
    opened = open_source(str(source))
    refs = [ImageRef(**row) for row in opened.list().to_pylist()]

    def prepare(ref: ImageRef) -> np.ndarray:
        return _pixels(opened, encoder, ref)

    with ThreadPoolExecutor(workers) as pool:
        started = time.perf_counter()
        prepared = list(pool.map(prepare, refs))
        preparing = time.perf_counter() - started
    pixels = np.stack(prepared)
    size = config.encode.batch_size
    padded = np.concatenate([pixels, np.zeros((-len(pixels) % size, *pixels.shape[1:]), pixels.dtype)])
    forward = _forward(encoder.encode_images, padded, size)
    by_torch = 0.0 if peer is None else _forward(peer, padded, size)
    config = config.model_copy(update={"source": str(source), "store": str(store)})
    run, _ = pipeline.request(config)
    context = Context.of(run, config)
    started = time.perf_counter()
    run_stage(context, encode.STAGE)
    return Seconds(preparing, forward, time.perf_counter() - started, by_torch)


def _forward(encode_images: Callable[[np.ndarray], object], pixels: np.ndarray, size: int) -> float:
    started = time.perf_counter()
    for start in range(0, len(pixels), size):
        encode_images(pixels[start : start + size])
    return time.perf_counter() - started


def _pixels(source: Source, encoder: Encoder, ref: ImageRef) -> np.ndarray:
    data = source.fetch(ref)
    images.content_hash(data)
    return encoder.preprocess(images.decode(data, 2 * encoder.side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    options = parser.parse_args()
    config = load_config(overrides={"encode": {"encoder": options.encoder, "precision": options.precision}})
    encoder = encode.STAGE.load(config)
    encoder.encode_images(encoder.preprocess(Image.new("RGB", (64, 64)))[None])  # the first call initialises the encoder
    workers = usable_cores()
    directory = Path(tempfile.mkdtemp(prefix="gsec-encode-"))
    each = options.images // options.rounds
    totals = Seconds()
    on_cpu = (options.encoder, options.precision, resolve(config.encode.device, "encode.device")) == ("lite", "fp32", "cpu")
    peer = lite.by_torch(lite.torch_module(torch.float32), "cpu") if on_cpu else None
    try:
        for number in range(options.rounds):
            source = write_photographs(directory / f"in-{number}", each, number)
            took = measure(source, directory / "store", config, encoder, workers, peer)
            print(f"round {number + 1}: d {each / took.prepare:.0f}/s, f {each / took.forward:.1f}/s, stage {each / took.stage:.1f}/s, share {took.share:.1%}")
            totals = Seconds(*(sum(pair) for pair in zip(astuple(totals), astuple(took), strict=True)))
            shutil.rmtree(source)
    finally:
        shutil.rmtree(directory)
    count = each * options.rounds
    ideal = totals.prepare + totals.forward
    print(f"{count} photographs of 500 to 800 px, encoder {options.encoder} {options.precision}, batch {config.encode.batch_size}, {workers} cores")
    print(f"d {count / totals.prepare:.0f} images/s, f {count / totals.forward:.1f} images/s")
    print(f"T_ideal {ideal:.1f} s ({count / ideal:.1f} images/s), stage {totals.stage:.1f} s ({count / totals.stage:.1f} images/s): {totals.share:.1%}")
    if peer is not None:
        best = totals.prepare + totals.by_torch
        print(
            f"f by torch {count / totals.by_torch:.1f} images/s, with which T_ideal would be {best:.1f} s: the stage is {best / totals.stage:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
