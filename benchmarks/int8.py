"""What 8-bit weights and activations would gain `lite` on a CPU, and what they would cost.

    python -m benchmarks.int8 --data FOLDER [--images 10000] [--seeds 5]

FOLDER holds `cifar10-test.parquet`. The network of `lite` is quantised statically by ONNX Runtime, calibrated on crops of the demo's photographs. Printed are
images/s of both networks, batch by batch in turns, the cosines between their embeddings, and ACC, NMI and ARI of k-means on each. Labels only score.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
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

from flows.demo import photographs
from gsec_core.clustering.kmeans import unit_rows
from gsec_core.clustering.metrics import score
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.devices import usable_cores
from gsec_core.encoders import lite

BATCH = 64
CALIBRATION_BATCHES = 4


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


def sessions(folder: Path) -> dict[str, Any]:
    """ONNX Runtime's sessions of the network, as it is and quantised."""
    full, prepared, quantised = (folder / f"{name}.onnx" for name in ("full", "prepared", "quantised"))
    example = torch.zeros(2, 3, lite.SIZE, lite.SIZE, dtype=torch.uint8)
    names = {"input_names": ["input"], "output_names": ["features", "probabilities", "classes"], "dynamic_axes": {"input": {0: "batch"}}}
    torch.onnx.export(lite.torch_module(torch.float32), (example,), full, dynamo=False, **names)  # type: ignore[arg-type]
    quant_pre_process(full, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, quantised, Crops(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"]
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    return {name: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for name, file in (("fp32", full), ("int8", quantised))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    table = pq.read_table(options.data / "cifar10-test.parquet").slice(0, options.images)
    truth, files = table["label"].to_numpy(), [row["bytes"] for row in table["image"].to_pylist()]
    with tempfile.TemporaryDirectory(prefix="gsec-int8-") as folder:
        networks = sessions(Path(folder))
    seconds = dict.fromkeys(networks, 0.0)
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in networks}
    for start in range(0, len(files), BATCH):
        batch = np.stack([lite.LiteEncoder.preprocess(Image.open(BytesIO(file)).convert("RGB")) for file in files[start : start + BATCH]])
        for name, network in networks.items():
            began = time.perf_counter()
            found[name].append(network.run(["features"], {"input": batch})[0])
            seconds[name] += time.perf_counter() - began
    X = {name: unit_rows(np.concatenate(batches)) for name, batches in found.items()}
    print(f"{len(files):,} images of CIFAR-10, encoder lite, batch {BATCH}, {usable_cores()} cores, {options.seeds} seeds")
    print(f"cosine of fp32 and int8, median: {np.median((X['fp32'] * X['int8']).sum(1)):.3f}\n")
    print("| network | images/s | ACC of k-means | NMI | ARI |\n| --- | --- | --- | --- | --- |")
    for name in networks:
        labellings = [SphericalKMeans(len(np.unique(truth)), random_state=seed).fit(X[name]).labels_ for seed in range(options.seeds)]
        values = 100 * np.array([score(truth, labels) for labels in labellings])
        scored = " | ".join(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in zip(values.mean(0), values.std(0, ddof=1), strict=True))
        print(f"| {name} | {len(files) / seconds[name]:.1f} | {scored} |")


if __name__ == "__main__":
    main()
