"""What the pipeline needs of an encoder. Implementations import their frameworks when they are built, not before."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor, nn


class Embedded(NamedTuple):
    """Embeddings of one batch, each row of unit length, float32."""

    image: NDArray[np.float32]
    """(batch, dim): the image space, in which images are clustered."""
    joint: NDArray[np.float32] | None
    """(batch, joint_dim): the space shared with text, where it is not the image space itself."""


class Encoder(Protocol):
    """Images, and texts in the joint space, to unit vectors.

    For CLIP the image space is the joint space; then ``joint_dim`` is None and texts have ``dim`` values.
    """

    dim: int
    joint_dim: int | None
    side: int
    """Pixels of an image's shorter side that the model makes use of."""
    preprocessing: Mapping[str, object]
    """How an image becomes pixels, JSON-able: recorded with the embeddings."""

    def preprocess(self, image: Image.Image) -> NDArray[np.generic]:
        """An RGB image to the model's input, (3, height, width). Runs in the decoding pool, so it is thread-safe and uses no device."""
        ...

    def encode_images(self, pixels: NDArray[np.generic]) -> Embedded:
        """(batch, 3, height, width) of preprocessed images to embeddings. Always called with one batch shape."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to (len(texts), joint_dim or dim), unit length."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """An encoder of a model that can be trained, and saved."""

    @property
    def model(self) -> "nn.Module":
        """The model itself, with a module ``visual`` for images and a method ``encode_image``."""
        ...

    def save(self, folder: Path, state: "Mapping[str, Tensor]") -> None:
        """Write an encoder like this one, with other weights, into a folder that is there and empty."""
        ...


class EncoderFamily(Protocol):
    """Encoders of one name, as a class is one. The reference is what comes after the name and a colon, empty where nothing does."""

    def __call__(self, reference: str, *, precision: str, device: str) -> Encoder:
        """The encoder, with its weights, on cpu, cuda or cuda:N. Raises Refused naming ``encode.encoder``."""
        ...

    @property
    def has_texts(self) -> bool:
        """Whether its encoders have a text side."""
        ...

    def check(self, reference: str) -> None:
        """Raises Refused if the reference names nothing. Loads no weights."""
        ...

    def checkpoint(self, reference: str) -> Path | None:
        """The local file or folder of its weights, the digest of which is part of what the encoder is; None if its name says all. Raises as `check`."""
        ...
