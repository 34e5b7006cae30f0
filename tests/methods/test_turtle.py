import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gsec_core import TURTLE, devices
from gsec_core.clustering.linear import random_maps
from gsec_core.clustering.metrics import accuracy
from gsec_core.methods.turtle.estimator import LEARNING_RATE, learned, loss

from ..planted import planted

SHORT = {"max_steps": 250, "device": "cpu"}


def softmax(rows: NDArray) -> NDArray:
    raised = np.exp(rows - rows.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def by_loops(theta: list[NDArray], heads: list[NDArray], spaces: list[NDArray], gamma: float) -> float:
    """The outer loss of linear maps without bias, computed image by image."""
    labels = [softmax(z @ weight.T) for z, weight in zip(spaces, theta, strict=True)]
    total = 0.0
    for z, head in zip(spaces, heads, strict=True):
        for i, row in enumerate(z):
            q = np.mean([part[i] for part in labels], 0)
            total -= float(q @ np.log(softmax((head @ row)[None])[0])) / len(z)
    for part in labels:
        sizes = part.mean(0)
        total += gamma * float((sizes * np.log(sizes)).sum())
    return total


def test_the_outer_loss_and_its_gradient_equal_those_of_a_loop_over_images() -> None:
    random = np.random.default_rng(0)
    spaces = [random.standard_normal((200, d)) for d in (4, 3)]
    theta, heads = ([random.standard_normal((5, d)) for d in (4, 3)] for _ in range(2))
    tensors = [torch.tensor(weight, requires_grad=True) for weight in theta]
    labels = [(torch.tensor(z) @ weight.T).softmax(1) for z, weight in zip(spaces, tensors, strict=True)]
    other = [torch.rand(200, 5, dtype=torch.float64).softmax(1) for _ in spaces]
    both = [torch.stack([one.T, two.T]) for one, two in zip(labels, other, strict=True)]
    found = loss(both, [torch.tensor(head @ z.T).expand(2, -1, -1) for z, head in zip(spaces, heads, strict=True)], 10.0)
    found[0].backward()  # type: ignore[no-untyped-call]
    assert float(found[0].detach()) == pytest.approx(by_loops(theta, heads, spaces, 10.0), rel=1e-10), (
        "the loss of a member must not depend on the other member"
    )
    for space, place in [(0, (1, 2)), (0, (4, 0)), (1, (3, 1))]:
        above, below = ([weight.copy() for weight in theta] for _ in range(2))
        above[space][place] += 1e-5
        below[space][place] -= 1e-5
        slope = (by_loops(above, heads, spaces, 10.0) - by_loops(below, heads, spaces, 10.0)) / 2e-5
        gradient = tensors[space].grad
        assert gradient is not None
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-6)


def test_a_classifier_without_any_training_step_gives_labels_no_gradient_that_matters() -> None:
    labels = torch.rand(1, 4, 50, dtype=torch.float64).softmax(1).requires_grad_()
    loss([labels], [torch.zeros(1, 4, 50, dtype=torch.float64)], 0.0).sum().backward()  # type: ignore[no-untyped-call]
    assert labels.grad is not None
    assert torch.allclose(labels.grad, labels.grad[:, :1].expand(1, 4, -1)), "the gradient is equal for all clusters, so a softmax would not change"


def test_a_cluster_that_has_died_out_leaves_the_gradient_finite() -> None:
    logits = torch.tensor([0.0, 1.0, -1000.0]).repeat(6, 1).T[None].clone().requires_grad_()
    loss([logits.softmax(1)], [torch.zeros(1, 3, 6)], 0.0).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_a_classifier_is_trained_as_by_torchs_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    z, q = torch.randn(64, 6, generator=generator), torch.rand(2, 3, 64, generator=generator).softmax(1)
    weights, biases = random_maps(2, 3, 6, generator)
    found = learned(torch.cat([weights, biases[..., None]], 2), torch.nn.functional.pad(z, (0, 1), value=1.0), q, 7)
    for member in range(2):
        weight, bias = (part[member].clone().requires_grad_() for part in (weights, biases))
        optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
        for _ in range(7):
            optimizer.zero_grad()
            (-(q[member].T * torch.nn.functional.linear(z, weight, bias).log_softmax(1)).sum(1).mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.testing.assert_close(found[member, :, :-1], weight.detach())
        torch.testing.assert_close(found[member, :, -1], bias.detach())


def test_two_spaces_together_show_classes_that_one_alone_hides() -> None:
    (X, _, y), (other, _, _) = planted(seed=0), planted(seed=10)
    assert accuracy(y, TURTLE(8, n_members=1, **SHORT).fit(X).labels_) <= 0.7
    both = TURTLE(8, n_members=2, **SHORT).fit([X, other])
    assert accuracy(y, both.labels_) >= 0.95
    assert (both.predict(X, other) == both.labels_).mean() >= 0.98
    assert np.array_equal(both.predict([X, other]), both.predict(X, other))


def test_rounding_to_bfloat16_changes_members_but_not_what_they_find(monkeypatch: pytest.MonkeyPatch) -> None:
    (X, _, y), (other, _, _) = planted(seed=0), planted(seed=10)
    members = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(devices, "product_dtype", lambda device, dtype=dtype: dtype)
        found = TURTLE(8, n_members=1, **SHORT).fit([X, other])
        assert accuracy(y, found.labels_) >= 0.9
        members.append(found.members_[0].parameters["weights"])
    assert members[1].dtype == np.float32
    assert 0 < np.abs(members[1] - members[0]).max() < 0.2 * np.abs(members[0]).max()


def test_gamma_makes_the_sizes_of_clusters_similar() -> None:
    X, _, _ = planted(b=0.4)
    free, even = (np.bincount(TURTLE(8, n_members=1, gamma=gamma, **SHORT).fit(X).labels_, minlength=8) for gamma in (0.0, 10.0))
    assert free.min() == 0, "without gamma clusters die out"
    assert even.max() < 1.5 * even.min()


def test_the_norm_of_embeddings_does_not_matter() -> None:
    X, _, _ = planted(n=300)
    small = {"n_members": 1, "max_steps": 15, "device": "cpu"}
    assert np.array_equal(TURTLE(8, **small).fit(X).labels_, TURTLE(8, **small).fit(8 * X).labels_)


def test_wrong_parameters_are_errors_that_name_them() -> None:
    X, _, _ = planted(n=60)
    with pytest.raises(ValueError, match="X: it has two spaces; do not give text"):
        TURTLE(8).fit([X, X], text=X)
    with pytest.raises(ValueError, match="X: it is a list of 3 matrices"):
        TURTLE(8).fit([X, X, X])
    with pytest.raises(ValueError, match="gamma = -1"):
        TURTLE(8, gamma=-1).fit(X)
