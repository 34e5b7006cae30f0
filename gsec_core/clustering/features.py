"""Features: an image half and, where there are counterparts, a text half; both scaled."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsec_core.clustering.kmeans import Rows, row_blocks, sample_rows
from gsec_core.devices import in_threads, threads_of_torch

CLIP = 10.0
"""Standardised values are clipped at this number of standard deviations. The published code clips there only if some
value of the data exceeds 100, so that a single image changes all others."""

RADIUS = 10.0
"""Root-mean-square norm of a half's rows after scaling on its principal axes."""

_SAMPLE_ROWS = 65_536
"""Number of rows that principal axes are fitted on."""


class Half(NamedTuple):
    """Scaling of one half of the features: (x - mean) @ basis / scale."""

    mean: NDArray[np.float32]
    """(d,)."""
    basis: NDArray[np.float32] | None
    """(d, p), orthonormal columns; None: the original dimensions, clipped at +-`CLIP` after scaling."""
    scale: NDArray[np.float32]
    """(p,)."""


def standardising(X: NDArray[Any]) -> Half:
    """Scaling by mean and standard deviation of each column of ``X`` (n, d), computed in double precision; a constant column has scale 1."""
    mean = _mean(X)
    scale = (_total((block.double() - mean).square().sum(0) for block in _blocks(X)) / len(X)).sqrt().numpy()
    return Half(mean.float().numpy(), None, np.where((scale < 1e-8) | (scale > np.finfo(np.float32).max), 1, scale).astype(np.float32))


def unscaled(d: int) -> Half:
    """Scaling of a half that leaves values as they are: mean 0, scale 1."""
    return Half(np.zeros(d, np.float32), None, np.ones(d, np.float32))


def principal(X: NDArray[Any], components: int) -> Half:
    """Projection on the first principal axes of ``X`` (n, d), not whitened, with one scale for all: rows have root-mean-square norm `RADIUS`.

    Above 65,536 rows the axes are those of a random sample. There are min(``components``, d, n) axes.
    """
    sample = X[sample_rows(len(X), _SAMPLE_ROWS, 0)]
    mean = _mean(sample)
    centred = (block - mean.float() for block in _blocks(sample))
    few = 2 * len(sample) <= sample.shape[1]  # then decomposing the rows takes a small part of the time of decomposing the covariance
    decomposed = torch.cat(list(centred)).double() if few else _total((block.T @ block).double() for block in centred) / len(sample)
    with threads_of_torch(1):  # threads would wait for each other in its many small steps
        if few:
            _, deviations, axes = torch.linalg.svd(decomposed, full_matrices=False)
            variances, axes = deviations.square() / len(sample), axes.T
        else:
            variances, axes = (part.flip(-1) for part in torch.linalg.eigh(decomposed))
    axes = axes[:, : min(components, len(X))]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # the sign of an axis is arbitrary: make its largest entry positive
    norm = float(variances[: axes.shape[1]].clamp(min=0).sum().sqrt())
    scale = norm / RADIUS if norm > 1e-8 else 1.0
    return Half(mean.float().numpy(), axes.float().contiguous().numpy(), np.full(axes.shape[1], scale, np.float32))


def project(X: NDArray[Any], half: Half) -> Iterator[NDArray[np.float32]]:
    """The rows of ``X`` (n, d) scaled by ``half``, (rows, p) for each of `row_blocks`."""
    mean, scale = torch.from_numpy(half.mean), torch.from_numpy(half.scale)
    basis = None if half.basis is None else torch.from_numpy(half.basis)

    def scaled(rows: slice) -> NDArray[np.float32]:
        centred = _block(X, rows) - mean
        return (centred.div_(scale).clip_(-CLIP, CLIP) if basis is None else (centred @ basis).div_(scale)).numpy()

    return in_threads(scaled, row_blocks(len(X)))


class Features:
    """Feature matrix of one or two halves (image, and text where there is one).

    Parameters
    ----------
    halves : floats (n, p) each; may be memory maps
    weights : weight of each half, of sum 1
    scales : factor of each half where halves are concatenated
    """

    nouns: NDArray[Any] | None = None
    """(n_kept, d): vectors of the nouns, in the space of the last half, for methods that train on the nouns themselves."""

    pixels: NDArray[np.uint8] | None = None
    """(n, side, side, 3): RGB pixels, for methods whose members use them."""

    def __init__(self, halves: Sequence[NDArray[Any]], weights: Sequence[float], scales: Sequence[float]) -> None:
        self.halves = list(halves)
        self.weights = tuple(weights)
        self._scales = tuple(scales)

    def __len__(self) -> int:
        return len(self.halves[0])

    @property
    def widths(self) -> list[int]:
        """Dimensions of each half."""
        return [half.shape[1] for half in self.halves]

    @property
    def dimensions(self) -> int:
        """Dimensions of all halves together."""
        return sum(self.widths)

    def half(self, number: int, rows: Rows, device: str = "cpu") -> Tensor:
        """Rows of one half, (rows, p)."""
        # Torch accepts neither read-only arrays nor negative strides. A view of one row may have these although numpy calls it contiguous: so copy views.
        picked = np.require(self.halves[number][rows], requirements=["C", "W", "O"])
        return torch.from_numpy(picked).to(device, torch.float32)

    def joined(self, halves: Sequence[Tensor]) -> Tensor:
        """Concatenate the rows of all halves, each times its scale: (rows, dimensions)."""
        return torch.cat([half if scale == 1 else half * scale for half, scale in zip(halves, self._scales, strict=True)], 1)

    def rows(self, rows: Rows, device: str = "cpu") -> Tensor:
        """Rows of all halves, concatenated by `joined`."""
        return self.joined([self.half(number, rows, device) for number in range(len(self.halves))])


class UnitFeatures(Features):
    """Features whose rows are normalised to unit length in each half. Concatenated rows have norm `RADIUS`.

    Parameters
    ----------
    halves : see `Features`; of any precision
    weights : see `Features`; None: equal weights
    """

    def __init__(self, halves: Sequence[NDArray[Any]], weights: Sequence[float] | None = None) -> None:
        weights = weights or [1 / len(halves)] * len(halves)
        super().__init__(halves, weights, [RADIUS * math.sqrt(weight) for weight in weights])

    def half(self, number: int, rows: Rows, device: str = "cpu") -> Tensor:
        found = super().half(number, rows, device)  # a copy: in place, since new memory for large batches takes longer than the arithmetic
        return found.div_(found.norm(dim=1, keepdim=True).clamp_(min=1e-12))


def _mean(X: NDArray[Any]) -> Tensor:
    return _total(block.double().sum(0) for block in _blocks(X)) / len(X)


def _total(parts: Iterator[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _blocks(X: NDArray[Any]) -> Iterator[Tensor]:
    """Rows as new float32 tensors."""
    return (_block(X, rows) for rows in row_blocks(len(X)))


def _block(X: NDArray[Any], rows: slice) -> Tensor:
    return torch.from_numpy(np.array(X[rows], np.float32))
