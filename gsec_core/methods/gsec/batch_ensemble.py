"""Linear BatchEnsemble heads, with the mean over their members collapsed into one linear map.

BatchEnsemble (Wen et al. 2020, https://arxiv.org/abs/2002.06715): member k computes ((x * r_k) W^T) * s_k + b_k with one
shared W. For a linear head the mean over the K members is again linear,

    mean_k = x (W * (S^T R) / K)^T + mean_k b_k,

so that neither the forward nor the backward pass needs arrays of size (rows, K, ...). Outputs and gradients are the same as
in the member-by-member form.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gsec_core.clustering.linear import linear


class BatchEnsembleHeads(nn.Module):
    """One linear BatchEnsemble head for each of several outer members, which share only their input.

    Initialised as `tabm.LinearBatchEnsemble` is: W and b uniform within 1 / sqrt(d), a head's members with the same b;
    R and S standard normal.

    Parameters
    ----------
    d, n_outputs : int
    ensemble_size : int
        K, BatchEnsemble members of each head.
    generators : one for each outer member
        Random generator of its initial values.
    """

    def __init__(self, d: int, n_outputs: int, ensemble_size: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        heads = [_start(d, n_outputs, ensemble_size, generator) for generator in generators]
        self.weight, self.r, self.s, self.bias = (nn.Parameter(torch.stack(parts)) for parts in zip(*heads, strict=True))
        """(outer members, n_outputs, d), (…, K, d), (…, K, n_outputs), (…, K, n_outputs)."""

    def collapsed(self) -> tuple[Tensor, Tensor]:
        """The mean over BatchEnsemble members as one linear map per head: weights (outer members, n_outputs, d), bias (outer members, n_outputs)."""
        scale = torch.matmul(self.s.transpose(1, 2), self.r) / self.r.shape[1]
        return self.weight * scale, self.bias.mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits (rows, outer members, n_outputs) of ``x`` (rows, d)."""
        return linear(x, *self.collapsed())


def uniform(shape: Sequence[int], d: int, generator: torch.Generator) -> Tensor:
    """Uniform within 1 / sqrt(d), as torch and tabm initialise a linear layer with d inputs."""
    return torch.empty(*shape).uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=generator)


def _start(d: int, n_outputs: int, ensemble_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = uniform((n_outputs, d), d, generator)
    r = torch.randn(ensemble_size, d, generator=generator)
    s = torch.randn(ensemble_size, n_outputs, generator=generator)
    bias = uniform((n_outputs,), d, generator).repeat(ensemble_size, 1)
    return weight, r, s, bias
