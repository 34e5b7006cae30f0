"""Encoders by name: ``lite``, ``open_clip:MODEL:PRETRAINED``, or one that another package brings."""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from gsec_core import plugins
from gsec_core.devices import keep_freed_memory, resolve, set_threads
from gsec_core.encoders.base import Embedded, Encoder, EncoderFamily, Trainable
from gsec_core.encoders.lite import LiteEncoder
from gsec_core.encoders.open_clip import OpenClipEncoder
from gsec_core.errors import Refused

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Embedded", "Encoder", "EncoderFamily", "Trainable", "check_encoder", "check_texts", "encoder_identity", "load_encoder", "skeleton"]

GROUP = "gsec.encoders"
"""Entry point group for encoders from other packages; each entry point is an `EncoderFamily`."""

_ENCODERS: dict[str, EncoderFamily] = {"lite": LiteEncoder, "open_clip": OpenClipEncoder}
"""Encoder families by the part of the name before the first colon. The family interprets the rest, the reference."""


def load_encoder(name: str, *, precision: str, device: str, threads: int) -> Encoder:
    """Build an encoder with its weights: ``precision`` fp32 or bf16, ``device`` auto, cpu, cuda or cuda:N.

    Sets the number of threads of this process's torch to ``threads`` (0 = one a core), as torch has no setting for a single model.
    Raises Refused naming ``encode.encoder`` or ``encode.device``.
    """
    encoder, reference = _find(name)
    set_threads(threads)
    device = resolve(device, "encode.device")
    if device == "cpu":
        keep_freed_memory()
    return encoder(reference, precision=precision, device=device)


def check_encoder(name: str) -> None:
    """Raises Refused unless there is an encoder of this name: a model, and a tag or checkpoint of it. Loads no weights."""
    encoder, reference = _find(name)
    encoder.check(reference)


def check_texts(name: str) -> None:
    """Raises Refused unless the encoder has a text side."""
    if not _find(name)[0].has_texts:
        raise Refused(
            f"encode.encoder = {json.dumps(name)}: it does not encode texts, which text.source = nouns needs. Use `lite` or a CLIP, or another text source."
        )


def skeleton(name: str) -> "nn.Module | None":
    """A model with the vision tower of a `Trainable` encoder, without weights; None for other encoders. Raises Refused as `check_encoder` does."""
    encoder, reference = _find(name)
    make: Callable[[str], nn.Module] | None = getattr(encoder, "skeleton", None)
    return None if make is None else make(reference)


def encoder_identity(name: str) -> dict[str, object]:
    """Everything on which this encoder's output depends, for fingerprints: its name, and the digest of a local checkpoint. Imports no framework.

    Raises Refused if there is no such encoder or no such checkpoint folder.
    """
    encoder, reference = _find(name)
    checkpoint = encoder.checkpoint(reference)
    if checkpoint is None:
        return {"name": name}
    *named, _ = name.split(":", 2)  # the path may change, so the digest replaces it
    return {"name": ":".join(named), "checkpoint": _digest(checkpoint)}


def _find(name: str) -> tuple[EncoderFamily, str]:
    family, _, reference = name.partition(":")
    if family in _ENCODERS:
        return _ENCODERS[family], reference
    brought = plugins.brought(GROUP)
    if family in brought:
        return plugins.load(GROUP, family), reference
    there = ["`lite`", "`open_clip:MODEL:PRETRAINED`", *(f"`{other}`" for other in brought)]
    raise Refused(f"encode.encoder = {json.dumps(name)}: there is no such encoder; there are {', '.join(there[:-1])} and {there[-1]}.")


def _digest(checkpoint: Path) -> str:
    """xxh3-128, in hex, of a file's bytes, or of the names and digests of a folder's files."""
    if checkpoint.is_file():
        stat = checkpoint.stat()
        return _file_digest(checkpoint, stat.st_mtime_ns, stat.st_size)
    files = sorted(file for file in checkpoint.iterdir() if file.is_file())
    return xxhash.xxh3_128_hexdigest(json.dumps([(file.name, _digest(file)) for file in files]).encode())


@lru_cache(maxsize=64)
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
