"""Interface of enhancers, which adapt an encoder to the clusters of a run. Imports no framework."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor, nn


class Images(Protocol):
    """Decoded RGB images by number; safe to use from several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Image.Image | None:
        """The image, or None if it is no longer available."""
        ...


class Enhancer(Protocol):
    """Training of a model together with a member. Equal images, seeds, processors and thread counts give equal states."""

    step: int
    """Number of steps done."""

    def __init__(self, model: "nn.Module", member: Mapping[str, NDArray[np.float32]], *, random_state: int, device: str) -> None:
        """``model`` is the encoder's model and is changed in place; ``member`` contains the arrays of a member that was fitted on its embeddings."""
        ...

    @staticmethod
    def fits(model: "nn.Module") -> bool:
        """Whether this enhancer can train the model, which may be without weights."""
        ...

    @staticmethod
    def steps(n: int) -> int:
        """Number of training steps for ``n`` images."""
        ...

    def train(self, images: Images, preprocess: Callable[[Image.Image], NDArray[Any]], side: int, steps: int, n_threads: int) -> Iterator[float]:
        """Train until `step` equals ``steps``; yields the loss after each step."""
        ...

    def posteriors(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """The member's posteriors (rows, clusters) of preprocessed images (rows, 3, height, width)."""
        ...

    def merged(self) -> "dict[str, Tensor]":
        """State dict of the model with the changes merged into its weights, under the names of the original model."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """State with which training can resume with identical results."""
        ...

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Resume from a result of `state`."""
        ...
