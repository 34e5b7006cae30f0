"""Time of a step of ASD on pixels, and its accuracy on images with labels.

    python -m benchmarks.asd_pixels
    python -m benchmarks.asd_pixels ../shared/data/cifar10-train.parquet --clusters 10 --steps 20000 --checkpoint build/asd

Without a file it times a few steps of two networks on noise, on one core. With a file, which must have columns `image` (struct with `bytes`) and `label`
and images of one size, it fits, continues an interrupted fit, and prints its scores and those of k-means on the pixels.
"""

import argparse
import io
import time

import numpy as np
import polars as pl
import torch
from PIL import Image
from sklearn.cluster import MiniBatchKMeans

from gsec_core.clustering.metrics import score
from gsec_core.methods.asd.pixels import ASDPixels, Learner


def times(side: int) -> None:
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(256, size=(2000, side, side, 3), dtype=np.uint8)
    for depth, width in ((28, 2), (10, 1)):
        learner, seconds = Learner(images, 10, max_steps=5, depth=depth, width=width), []
        for _ in range(5):
            started = time.process_time()
            learner.learn()
            seconds.append(time.process_time() - started)
        print(f"WRN-{depth}-{width}, {side} x {side}: {seconds[0]:.2f} s a step of the instance classifier, {min(seconds[1:]):.2f} s of FixMatch", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--rows", type=int, help="only so many, the first")
    parser.add_argument("--checkpoint", help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=32, help="of the noise")
    options = parser.parse_args()
    if options.file is None:
        times(options.side)
        return
    table = pl.read_parquet(options.file, n_rows=options.rows)
    images = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["image"]])
    truth = table["label"].to_numpy()
    pixels = images.reshape(len(images), -1).astype(np.float32)
    print(f"{len(images)} images; k-means of pixels {score(truth, MiniBatchKMeans(options.clusters, n_init=10, random_state=0).fit_predict(pixels))}")
    started = time.monotonic()
    estimator = ASDPixels(options.clusters, max_steps=options.steps, depth=options.depth, width=options.width, random_state=options.seed)
    fitted = estimator.fit(images, checkpoint=options.checkpoint)
    print(f"WRN-{options.depth}-{options.width}, {options.steps} steps, {time.monotonic() - started:.0f} s: {score(truth, fitted.labels_)}")


if __name__ == "__main__":
    main()
