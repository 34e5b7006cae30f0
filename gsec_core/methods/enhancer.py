"""What adapts an encoder to the clusters of a run. Imports no framework."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor, nn


class Images(Protocol):
    """Decoded RGB images by number, from any thread."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Image.Image | None:
        """None for one that cannot be had any more."""
        ...


class Enhancer(Protocol):
    """A model and a member, in training together. Equal images, seeds, processors and thread counts give equal states."""

    step: int
    """Steps that are done."""

    def __init__(self, model: "nn.Module", member: Mapping[str, NDArray[np.float32]], *, random_state: int, device: str) -> None:
        """``model`` is an encoder's, and is changed in place; ``member`` has the arrays of a member that was fitted on its embeddings."""
        ...

    @staticmethod
    def fits(model: "nn.Module") -> bool:
        """Whether a model, with weights or without, can be trained."""
        ...

    @staticmethod
    def steps(n: int) -> int:
        """How long it is trained on ``n`` images."""
        ...

    def train(self, images: Images, preprocess: Callable[[Image.Image], NDArray[Any]], side: int, steps: int, n_threads: int) -> Iterator[float]:
        """The loss of each step from `step` on, as it is made, up to ``steps``."""
        ...

    def posteriors(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """What the member says of preprocessed images (rows, 3, height, width): (rows, clusters)."""
        ...

    def merged(self) -> "dict[str, Tensor]":
        """The state of the model as it is now, under the names of the plain one."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """All that training needs to go on as if it had never stopped."""
        ...

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave."""
        ...
