"""What other number formats of weights and activations gain on a CPU, and what they cost.

    python -m benchmarks.precision --data FOLDER [--images 10000] [--seeds 5]

FOLDER holds `cifar10-test.parquet`. Compared are `encode.precision` fp32 and bf16 of `lite`, and its network quantised to 8 bits: statically by ONNX Runtime,
calibrated on crops of the demo's photographs. Printed are images/s, batch by batch in turns, the cosines between their embeddings and those of fp32, and
ACC, NMI and ARI of k-means on each. Labels only score. ONNX Runtime computes fp32 and 8 bits; it has no kernels for bf16, which torch computes. Then the same
without scores for a CLIP with random weights, on the first images, by torch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static
from PIL import Image

from benchmarks.gpu import write_checkpoint
from flows.demo import photographs
from gsec_core.clustering.kmeans import unit_rows
from gsec_core.clustering.metrics import score
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.devices import keep_freed_memory, product_dtype, usable_cores
from gsec_core.encoders import lite, load_encoder
from gsec_core.encoders.base import Encoder

Network = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps pixels (batch, 3, height, width) to unit vectors."""

BATCH = 64
CALIBRATION_BATCHES = 4
CLIP, CLIP_IMAGES = "ViT-B-32", 512


class Crops(CalibrationDataReader):  # type: ignore[misc]
    """Batches of random squares of the demo's photographs."""

    def __init__(self) -> None:
        self._batches = self._made()

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)

    def _made(self) -> Iterator[dict[str, NDArray[np.uint8]]]:
        random, originals = np.random.default_rng(0), [image for _, image in photographs()]
        for _ in range(CALIBRATION_BATCHES):
            yield {"input": np.stack([_square(originals[number % len(originals)], random) for number in range(BATCH)])}


def _square(image: Image.Image, random: np.random.Generator) -> NDArray[np.uint8]:
    side = int(min(image.size) * random.uniform(0.3, 1))
    left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
    return lite.LiteEncoder.preprocess(image.crop((left, top, left + side, top + side)))


def quantised(folder: Path) -> Network:
    """The network of `lite` in 8 bits."""
    full, prepared, made = (folder / f"{name}.onnx" for name in ("full", "prepared", "quantised"))
    example = torch.zeros(2, 3, lite.SIZE, lite.SIZE, dtype=torch.uint8)
    names = {"input_names": ["input"], "output_names": ["features", "probabilities", "classes"], "dynamic_axes": {"input": {0: "batch"}}}
    torch.onnx.export(lite.torch_module(torch.float32), (example,), full, dynamo=False, **names)  # type: ignore[arg-type]
    quant_pre_process(full, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, made, Crops(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(str(made), options, providers=["CPUExecutionProvider"])
    return lambda pixels: unit_rows(session.run(["features"], {"input": pixels})[0])


def embedded(precision: str) -> Network:
    """The network of `lite`."""
    network = lite.image_network(precision, "cpu", usable_cores())
    return lambda pixels: unit_rows(network(pixels)[0])


def encoded(encoder: str, precision: str) -> tuple[Encoder, Network]:
    """An encoder on the CPU, and its function from pixels to embeddings."""
    loaded = load_encoder(encoder, precision=precision, device="cpu", threads=0)
    return loaded, lambda pixels: loaded.encode_images(pixels).image


def run(networks: Mapping[str, Network], prepare: Callable[[Image.Image], NDArray[Any]], files: Sequence[bytes]) -> dict[str, tuple[float, NDArray[Any]]]:
    """Images/s and embeddings of all files, by network."""
    seconds = dict.fromkeys(networks, 0.0)
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in networks}
    for start in range(0, len(files), BATCH):
        batch = np.stack([prepare(Image.open(BytesIO(file)).convert("RGB")) for file in files[start : start + BATCH]])
        if not start:
            for network in networks.values():
                network(batch)  # the first call of a network also prepares its weights
        for name, network in networks.items():
            began = time.perf_counter()
            found[name].append(network(batch))
            seconds[name] += time.perf_counter() - began
    return {name: (len(files) / seconds[name], np.concatenate(found[name])) for name in networks}


def cosine(first: NDArray[Any], second: NDArray[Any]) -> str:
    """Median cosine of unit vectors, as a cell of a table."""
    return f"{np.median((first * second).sum(1)):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()  # as the stage does
    table = pq.read_table(options.data / "cifar10-test.parquet").slice(0, options.images)
    truth, files = table["label"].to_numpy(), [row["bytes"] for row in table["image"].to_pylist()]
    print(f"{len(files):,} images of CIFAR-10, batch {BATCH}, {usable_cores()} cores, bf16 in hardware: {product_dtype('cpu') == torch.bfloat16}\n")
    print(f"| `lite`, {options.seeds} seeds | images/s | cosine with fp32 | ACC of k-means | NMI | ARI |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="gsec-precision-") as folder:
        networks = {precision: embedded(precision) for precision in ("fp32", "bf16")} | {"int8": quantised(Path(folder))}
    results = run(networks, lite.LiteEncoder.preprocess, files)
    for name, (rate, X) in results.items():
        labellings = [SphericalKMeans(len(np.unique(truth)), random_state=seed).fit(X).labels_ for seed in range(options.seeds)]
        values = 100 * np.array([score(truth, labels) for labels in labellings])
        scored = " | ".join(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in zip(values.mean(0), values.std(0, ddof=1), strict=True))
        print(f"| {name} | {rate:.1f} | {cosine(X, results['fp32'][1])} | {scored} |", flush=True)
    print(f"\n| `{CLIP}`, random weights | images/s | cosine with fp32 |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="gsec-precision-") as folder:
        checkpoint = write_checkpoint(Path(folder) / "clip", CLIP, "cpu")
        clips = {precision: encoded(f"open_clip:local-dir:{checkpoint}", precision) for precision in ("fp32", "bf16")}
        results = run({name: network for name, (_, network) in clips.items()}, clips["fp32"][0].preprocess, files[:CLIP_IMAGES])
    for name, (rate, X) in results.items():
        print(f"| {name} | {rate:.1f} | {cosine(X, results['fp32'][1])} |")


if __name__ == "__main__":
    main()
