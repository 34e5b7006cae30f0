"""Interface of encoders. Implementations import their frameworks only when they are constructed."""

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
    """(batch, joint_dim): the space shared with text; None if that is the image space itself."""


class Encoder(Protocol):
    """Maps images to unit vectors in the image space and the joint space, and texts to unit vectors in the joint space.

    For CLIP the image space is the joint space; then ``joint_dim`` is None and texts have ``dim`` values.
    """

    dim: int
    joint_dim: int | None
    side: int
    """Pixels of an image's shorter side that the model uses."""
    preprocessing: Mapping[str, object]
    """Description of the preprocessing, JSON-serialisable; it is recorded with the embeddings."""

    def preprocess(self, image: Image.Image) -> NDArray[np.generic]:
        """Convert an RGB image to the model's input, (3, height, width). Runs in the decoding threads, so it must be thread-safe and use no device."""
        ...

    def encode_images(self, pixels: NDArray[np.generic]) -> Embedded:
        """Embed preprocessed images (batch, 3, height, width). Always called with the same batch shape."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as unit vectors, (len(texts), joint_dim or dim)."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """An encoder whose model can be trained and saved."""

    @property
    def model(self) -> "nn.Module":
        """The model itself, with a module ``visual`` for images and a method ``encode_image``."""
        ...

    def save(self, folder: Path, state: "Mapping[str, Tensor]") -> None:
        """Write this encoder with the weights ``state`` into an existing empty folder."""
        ...


class EncoderFamily(Protocol):
    """A family of encoders with a common name; it may be a class. The reference is the part after the name and a colon, empty if there is none."""

    def __call__(self, reference: str, *, precision: str, device: str) -> Encoder:
        """Build the encoder with its weights on cpu, cuda or cuda:N. Raises Refused naming ``encode.encoder``."""
        ...

    @property
    def has_texts(self) -> bool:
        """Whether its encoders have a text side."""
        ...

    def check(self, reference: str) -> None:
        """Raises Refused unless there is an encoder with this reference. Loads no weights."""
        ...

    def checkpoint(self, reference: str) -> Path | None:
        """The local file or folder of the weights, whose digest becomes part of the encoder's identity; None if the name suffices. Raises as `check` does."""
        ...
