"""The heads that compute the mean over ensemble members directly, compared with `tabm`'s layer, which computes every member."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tabm import LinearBatchEnsemble
from torch import Tensor

from gsec_core.methods.gsec.batch_ensemble import BatchEnsembleHeads
from gsec_core.methods.gsec.bilevel import Training, inner_losses
from gsec_core.methods.gsec.estimator import PRESETS

PUBLISHED = PRESETS["published"].training
ROWS, D, OUTPUTS, K, MEMBERS = 50, 12, 7, 5, 3


@pytest.fixture(autouse=True)
def _double_precision() -> None:
    torch.manual_seed(0)


def heads() -> BatchEnsembleHeads:
    return BatchEnsembleHeads(D, OUTPUTS, K, [torch.Generator().manual_seed(seed) for seed in range(MEMBERS)]).double()


def member_by_member(head: BatchEnsembleHeads) -> list[LinearBatchEnsemble]:
    """The same heads as layers of tabm, one per outer member."""
    layers = []
    for member in range(MEMBERS):
        layer = LinearBatchEnsemble(D, OUTPUTS, k=K, scaling_init="normal", dtype=torch.float64)
        with torch.no_grad():
            for ours, theirs in (("weight", "weight"), ("r", "r"), ("s", "s"), ("bias", "bias")):
                getattr(layer, theirs).copy_(getattr(head, ours)[member])
        layers.append(layer)
    return layers


def mean_of(layers: list[LinearBatchEnsemble], x: Tensor) -> Tensor:
    """The mean over the K ensemble members, of shape (rows, outer members, outputs)."""
    return torch.stack([layer(x[:, None].expand(-1, K, -1)).mean(1) for layer in layers], 1)


def assert_equal_gradients(head: BatchEnsembleHeads, layers: list[LinearBatchEnsemble]) -> None:
    for name in ("weight", "r", "s", "bias"):
        ours, theirs = getattr(head, name).grad, torch.stack([getattr(layer, name).grad for layer in layers])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        assert theirs.abs().max() > 1e-6, "with zero gradients the comparison would prove nothing"


def test_the_output_is_the_mean_over_ensemble_members() -> None:
    head, x = heads(), torch.randn(ROWS, D, dtype=torch.float64)
    torch.testing.assert_close(head(x), mean_of(member_by_member(head), x), rtol=0, atol=1e-10)


def test_gradients_of_every_parameter_equal_those_of_the_member_by_member_form() -> None:
    head, x = heads(), torch.randn(ROWS, D, dtype=torch.float64)
    layers = member_by_member(head)
    direction = torch.randn(ROWS, MEMBERS, OUTPUTS, dtype=torch.float64)
    (head(x) * direction).sum().backward()
    (mean_of(layers, x) * direction).sum().backward()
    assert_equal_gradients(head, layers)


@pytest.mark.parametrize("training", [PUBLISHED, replace(PUBLISHED, entropy=0.5, cosine=2.0, distillation=3.0)])
def test_gradients_through_the_whole_inner_loss_equal_those_of_the_member_by_member_form(training: Training) -> None:
    image, text = heads(), heads()
    both = [member_by_member(image), member_by_member(text)]
    target = torch.randn(ROWS, MEMBERS, OUTPUTS, dtype=torch.float64).softmax(-1)
    views = [torch.randn(2 * ROWS, D, dtype=torch.float64) for _ in both]

    def loss(forward: Callable[[int, Tensor], Tensor]) -> Tensor:
        return inner_losses([forward(number, view) for number, view in enumerate(views)], target, training, (0.5, 0.5)).sum()

    ours, theirs = loss(lambda number, view: (image, text)[number](view)), loss(lambda number, view: mean_of(both[number], view))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    ours.backward()
    theirs.backward()
    assert_equal_gradients(image, both[0])
    assert_equal_gradients(text, both[1])


def test_a_members_start_does_not_depend_on_the_other_members() -> None:
    alone = BatchEnsembleHeads(D, OUTPUTS, K, [torch.Generator().manual_seed(1)])
    beside = BatchEnsembleHeads(D, OUTPUTS, K, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
    for name, parameter in alone.named_parameters():
        assert torch.equal(parameter[0], beside.get_parameter(name)[1])
