"""Encoders for all CLIP models of open_clip, by published tag, checkpoint file or folder."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsec_core.encoders.base import Embedded
from gsec_core.errors import Refused
from gsec_core.images.decode import limit_ratio

if TYPE_CHECKING:
    import torch
    from torch import nn

FOLDER = "local-dir"
"""open_clip's name for a folder with open_clip_config.json and weights, in the layout of Hugging Face."""
TEXT_BATCH = 256


class OpenClipEncoder:
    """``MODEL:TAG``, ``MODEL:/path/of/checkpoint`` or ``local-dir:/path/of/folder``, with that model's own preprocessing.

    Images and texts share one space. ``precision`` bf16 is open_clip's ``pure_bf16``: weights and activations of both towers.
    Checkpoints are read without unpickling code: safetensors, or torch's weights-only loader.
    """

    has_texts = True

    joint_dim: int | None = None

    @staticmethod
    def checkpoint(reference: str) -> Path | None:
        """The local file or folder that the reference names, None for a published tag. Raises Refused for a malformed reference or a missing folder."""
        model, _, weights = reference.partition(":")
        if not (model and weights):
            raise _refused(reference, "write `open_clip:MODEL:PRETRAINED`, as in `open_clip:ViT-B-32:laion2b_s34b_b79k`")
        path = Path(weights)
        if model == FOLDER and not (path / "open_clip_config.json").is_file():
            raise _refused(reference, f"{path / 'open_clip_config.json'} does not exist")
        return path if model == FOLDER or path.is_file() else None

    @classmethod
    def check(cls, reference: str) -> None:
        """Raises Refused unless open_clip knows the model and its tag, or the checkpoint exists. Does not access a hub."""
        local = cls.checkpoint(reference)
        model, _, weights = reference.partition(":")
        if model != FOLDER:
            _options(reference, model.replace("/", "-"), None if local else weights)

    def __init__(self, reference: str, *, precision: str, device: str) -> None:
        import open_clip
        import torch

        local = self.checkpoint(reference)
        model, _, weights = reference.partition(":")
        if model == FOLDER:
            name, pretrained, options = reference, None, {}
        else:
            name, pretrained = model.replace("/", "-"), str(local.resolve()) if local else weights
            options = _options(reference, name, None if local else weights)
        options["precision"] = "pure_bf16" if precision == "bf16" else "fp32"
        try:
            self._model, self._transform = open_clip.create_model_from_pretrained(name, pretrained, device=device, weights_only=True, **options)
            self._tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # any error of open_clip, torch, safetensors or the hub's client about a download or a file
            remedy = "it does not fit this model, or is damaged" if local else "without a network, give a local file or folder instead of the tag"
            raise _refused(reference, f"could not be loaded ({_first_line(error)}); {remedy}") from error
        self._model.eval().requires_grad_(False)
        self._device = torch.device(device)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._config: dict[str, Any] = open_clip.get_model_config(name) | ({"quick_gelu": True} if options.get("force_quick_gelu") else {})
        self.dim: int = self._config["embed_dim"]
        self.preprocessing: Mapping[str, object] = dict(self._model.visual.preprocess_cfg)
        self.side: int = int(np.max(self._model.visual.preprocess_cfg["size"]))

    @staticmethod
    def skeleton(reference: str) -> "nn.Module":
        """A model with the vision tower of the referenced model, without weights. Raises as `check` does."""
        import open_clip
        import torch

        OpenClipEncoder.check(reference)
        model = reference.partition(":")[0]
        config = open_clip.get_model_config(reference if model == FOLDER else model.replace("/", "-"))
        # The text tower is not needed here, and its configuration may be on a hub.
        text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
        with torch.device("meta"):
            found: nn.Module = open_clip.CLIP(config["embed_dim"], {**config["vision_cfg"], "timm_model_pretrained": False}, text)
        return found

    @property
    def model(self) -> "nn.Module":
        """See `Trainable`."""
        found: nn.Module = self._model
        return found

    def save(self, folder: Path, state: "Mapping[str, torch.Tensor]") -> None:
        """See `Trainable`. Writes a folder in the layout of Hugging Face."""
        from open_clip.push_to_hf_hub import save_config_for_hf
        from safetensors.torch import save_file

        save_file({name: value.cpu().contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
        if hasattr(self._tokenizer, "save_pretrained"):  # a tokenizer of Hugging Face, which open_clip looks for in the folder
            self._tokenizer.save_pretrained(folder)
        save_config_for_hf(self._model, folder / "open_clip_config.json", self._config)

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """Convert an RGB image to float32 (3, height, width) by open_clip's inference transform; only the middle of images beyond 8:1 is used."""
        if self.preprocessing["resize_mode"] != "squash":
            image = limit_ratio(image)
        pixels: NDArray[np.float32] = self._transform(image).numpy()
        return pixels

    def encode_images(self, pixels: NDArray[np.generic]) -> Embedded:
        """Embed float32 pixels (batch, 3, height, width) as (batch, dim)."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self._device).to(self._dtype)
            return Embedded(_unit(self._model.encode_image(batch)), None)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as unit vectors, (len(texts), dim); tokens beyond the model's context length are ignored."""
        import torch

        vectors = [np.empty((0, self.dim), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(texts), TEXT_BATCH):
                tokens = self._tokenizer(list(texts[start : start + TEXT_BATCH])).to(self._device)
                vectors.append(_unit(self._model.encode_text(tokens)))
        return np.concatenate(vectors)


def _unit(features: "torch.Tensor") -> NDArray[np.float32]:
    from torch.nn.functional import normalize

    vectors: NDArray[np.float32] = normalize(features.float(), dim=-1).cpu().numpy()
    return vectors


def _options(reference: str, name: str, tag: str | None) -> dict[str, Any]:
    """Options for open_clip beside the model's name and tag; a tag of None means a local checkpoint. Raises Refused for an unknown model or tag."""
    import open_clip

    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models())
        raise _refused(reference, f"open_clip has no model {name}" + (f"; similar names are {', '.join(near)}" if near else ""))
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is not None:
        if "/" in tag:
            raise _refused(reference, f"there is no file {tag}")
        if not open_clip.is_pretrained_cfg(name, tag):
            raise _refused(reference, f"{tag} is neither a file nor a tag of {name}, whose tags are {', '.join(tags) or 'none'}")
        # Weights trained with QuickGELU run under the plain model's name with a mere warning, and give wrong embeddings.
        return {"force_quick_gelu": bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))}
    # A checkpoint does not contain its preprocessing, and open_clip would assume OpenAI's: use that on which the model's published weights agree.
    keys = ("mean", "std", "interpolation", "resize_mode")
    known = [{f"image_{key}": open_clip.get_pretrained_cfg(name, tag)[key] for key in keys} for tag in tags]
    if any(options != known[0] for options in known):
        remedy = f"use `open_clip:{FOLDER}:FOLDER`, a folder with an open_clip_config.json as Hugging Face serves it"
        raise _refused(reference, f"the published weights of {name} differ in their preprocessing; {remedy}")
    return known[0] if known else {}


def _refused(reference: str, why: str) -> Refused:
    return Refused(f"encode.encoder = {json.dumps('open_clip:' + reference)}: {why}.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
