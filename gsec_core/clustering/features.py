"""Standardised features: an image half and, where there are counterparts, a text half."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsec_core.clustering.kmeans import BLOCK_ROWS

CLIP = 10.0
"""Deviations from the mean beyond which a value counts no more. The published code cuts there only if some value of the
data is beyond 100, so that one image changes all others."""

Rows = slice | NDArray[np.int64]


class Half(NamedTuple):
    """What standardises one half."""

    mean: NDArray[np.float32]
    """(d,)."""
    scale: NDArray[np.float32]
    """(d,): the standard deviation, 1 where a dimension is constant or beyond single precision."""


def fit_half(X: NDArray[Any]) -> Half:
    """Mean and standard deviation of each column of ``X`` (n, d), block by block in double precision."""
    mean = sum(block.sum(0) for block in _blocks(X)) / len(X)
    variance = sum(np.square(block - mean).sum(0) for block in _blocks(X)) / len(X)
    scale = np.sqrt(variance)
    return Half(mean.astype(np.float32), np.where((scale < 1e-8) | (scale > np.finfo(np.float32).max), 1, scale).astype(np.float32))


class Features:
    """Rows of one or two matrices, standardised when they are read.

    Parameters
    ----------
    X : (n, d) floats of any precision; may be a memory map
    text : (n, dt), or None: then the image half serves alone
    halves : what standardises each
    text_weight : share of the text half; .5 = both count the same
    """

    def __init__(self, X: NDArray[Any], text: NDArray[Any] | None, halves: Sequence[Half], text_weight: float) -> None:
        self._matrices = [X] if text is None else [X, text]
        self._halves = [tuple(torch.from_numpy(part) for part in half) for half in halves]
        self.weights = (1.0,) if text is None else (1 - text_weight, text_weight)
        """Of each half; they sum to 1."""

    def __len__(self) -> int:
        return len(self._matrices[0])

    @property
    def widths(self) -> list[int]:
        """Dimensions of each half."""
        return [matrix.shape[1] for matrix in self._matrices]

    @property
    def dimensions(self) -> int:
        """Of both halves together."""
        return sum(self.widths)

    def half(self, number: int, rows: Rows, device: str = "cpu") -> Tensor:
        """Rows of one half, standardised, float32 (rows, d)."""
        mean, scale = (part.to(device) for part in self._halves[number])
        picked = np.require(self._matrices[number][rows], requirements=["C", "W"])  # torch takes no array that is read-only
        values = torch.from_numpy(picked).to(device).float()
        return values.sub(mean).div_(scale).clip_(-CLIP, CLIP)

    def joined(self, halves: Sequence[Tensor]) -> Tensor:
        """Standardised halves side by side, (rows, dimensions), each scaled by the root of its weight; equal weights scale nothing."""
        return torch.cat([half * math.sqrt(weight * len(halves)) for weight, half in zip(self.weights, halves, strict=True)], 1)

    def rows(self, rows: Rows, device: str = "cpu") -> Tensor:
        """Rows of both halves, joined."""
        return self.joined([self.half(number, rows, device) for number in range(len(self._matrices))])


def _blocks(X: NDArray[Any]) -> Sequence[NDArray[np.float64]]:
    return (X[start : start + BLOCK_ROWS].astype(np.float64) for start in range(0, len(X), BLOCK_ROWS))  # type: ignore[return-value]
