"""Networks of torch on ONNX Runtime, for CPUs."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn


def compiled(network: "nn.Module", example: "Tensor", *, threads: int) -> Callable[[NDArray[np.generic]], Sequence[NDArray[Any]]]:
    """What a network computes of a batch, of any size, by ONNX Runtime with so many threads. Raises what its export or the runtime raise.

    ``example`` is a batch. The export takes about a second and is made once for each process: a file that is kept would have to be known to be of
    these weights,
    this torch and this runtime.
    """
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that spin for each other starve on a machine that others use
    with tempfile.TemporaryDirectory(prefix="gsec-onnx-") as folder, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter that is not deprecated takes ten times as long, and a package more
        outputs = [f"output{number}" for number in range(len(network(example)))]
        model = Path(folder) / "model.onnx"
        axes = {name: {0: "batch"} for name in ("input", *outputs)}
        torch.onnx.export(network, (example,), model, dynamo=False, input_names=["input"], output_names=outputs, dynamic_axes=axes)
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"input": pixels})
