"""Runs torch networks on CPUs with ONNX Runtime."""

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
    """Compile a network for ONNX Runtime with ``threads`` threads. Returns a function of batches of any size. Raises what the export or the runtime raises.

    ``example`` is a batch. The export takes about a second and is repeated in every process, since a stored file would have to be checked against
    the weights and the versions of torch and runtime.
    """
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning threads starve on a machine with other load
    with tempfile.TemporaryDirectory(prefix="gsec-onnx-") as folder, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the newer exporter takes ten times as long, and needs another package
        outputs = [f"output{number}" for number in range(len(network(example)))]
        model = Path(folder) / "model.onnx"
        axes = {name: {0: "batch"} for name in ("input", *outputs)}
        torch.onnx.export(network, (example,), model, dynamo=False, input_names=["input"], output_names=outputs, dynamic_axes=axes)
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"input": pixels})
