"""Members that are linear maps of the features: labels are softmax(z weights^T + bias)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import MANY_CLUSTERS, Rows
from gsec_core.clustering.members import Member
from gsec_core.devices import product_dtype

WEIGHTS, BIAS = "weights", "bias"


def linear_shapes(n_clusters: int, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the arrays of a linear member, if the halves have ``widths`` dimensions."""
    return {WEIGHTS: (n_clusters, sum(widths)), BIAS: (n_clusters,)}


@dataclass(frozen=True)
class LinearModels:
    """Several linear members as predictors; see `ensemble.Models`."""

    weights: NDArray[np.float32]
    """(members, clusters, dimensions of the features)."""
    bias: NDArray[np.float32]
    """(members, clusters)."""

    of_features = True

    @classmethod
    def of(cls, members: Sequence[Member]) -> "LinearModels":
        """Stack the arrays of ``members``."""
        return cls(*(np.stack([member.parameters[name] for member in members]) for name in (WEIGHTS, BIAS)))

    def __len__(self) -> int:
        return len(self.bias)

    @property
    def n_clusters(self) -> int:
        return int(self.bias.shape[1])

    @property
    def values_a_row(self) -> int:
        return int(max(self.bias.size, self.weights.shape[2]))

    def logits(self, features: Features, rows: Rows, device: str) -> Tensor:
        weights, bias = torch.from_numpy(self.weights).to(device), torch.from_numpy(self.bias).to(device)
        return linear(features.rows(rows, device), weights, bias)

    def head_start(self, permutations: NDArray[np.int32], dimensions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weights, bias = (np.zeros(part.shape[1:], np.float32) for part in (self.weights, self.bias))
        for w, b, permutation in zip(self.weights, self.bias, permutations, strict=True):
            weights[permutation] += w / np.float32(len(self.weights))
            bias[permutation] += b / np.float32(len(self.weights))
        return weights, bias


def random_maps(maps: int, outputs: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights (maps, outputs, d) and biases (maps, outputs), initialised as torch does: uniform within 1 / sqrt(d)."""
    values = torch.empty(maps, outputs, d + 1).uniform_(-(d**-0.5), d**-0.5, generator=generator)
    return values[..., :d].contiguous(), values[..., d].clone()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply several linear maps to one input as one matrix product: x (rows, d), weight (maps, outputs, d), bias (maps, outputs); (rows, maps, outputs).

    The product is computed in the number format of ``x``, see `training_dtype`, and the rest in that of ``weight``.
    """
    if x.dtype == weight.dtype:
        return torch.addmm(bias.flatten(), x, weight.flatten(0, 1).T).view(-1, *bias.shape)
    return (x @ weight.flatten(0, 1).T.to(x.dtype)).to(weight.dtype).add_(bias.flatten()).view(-1, *bias.shape)


def training_dtype(n_clusters: int, device: str) -> torch.dtype:
    """Number format of the inputs of maps to ``n_clusters`` clusters in a training: with few clusters products take little of the time."""
    return product_dtype(device) if n_clusters > MANY_CLUSTERS else torch.float32
