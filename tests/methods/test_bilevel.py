"""The losses compared with torch's own functions, and the independence of the members of a block."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gsec_core.clustering.features import Features
from gsec_core.methods.gsec.bilevel import Member, Neighbors, Training, inner_losses, outer_losses, pair_losses, train_block
from gsec_core.methods.gsec.estimator import PRESETS

PUBLISHED, DEFAULT = PRESETS["published"].training, PRESETS["default"].training
ROWS, MEMBERS, CLUSTERS = 40, 3, 6


def logits(seed: int, rows: int = ROWS) -> Tensor:
    return 2 * torch.randn(rows, MEMBERS, CLUSTERS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_inner_loss_is_the_published_sum_of_terms() -> None:
    training, q = PUBLISHED, logits(0).softmax(-1)
    image, text = logits(1, 2 * ROWS), logits(2, 2 * ROWS)
    found = inner_losses([image, text], q, training, (0.5, 0.5))
    for m in range(MEMBERS):
        own = [half[:ROWS, m] for half in (image, text)]
        nbr = [half[ROWS:, m] for half in (image, text)]
        expected = F.cross_entropy((own[0] + own[1]) / 2, q[:, m])
        for student, teacher in ((own[0], nbr[1]), (own[1], nbr[0])):
            expected += 0.1 * 4 * F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean")
        cosine = F.cosine_similarity(*own, dim=1).clamp(1e-6, 1)
        expected += 0.1 * F.binary_cross_entropy(cosine, torch.ones_like(cosine))
        for half in own:
            expected -= 0.01 * torch.distributions.Categorical(logits=half).entropy().mean()
        assert found[m].item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_published_outer_loss_is_cross_entropy_minus_the_entropy_of_the_mean_label() -> None:
    z, prediction = logits(0), logits(1)
    q = z.softmax(-1)
    found = outer_losses(z, prediction, PUBLISHED, torch.empty(0))
    for m in range(MEMBERS):
        balance = torch.distributions.Categorical(probs=q[:, m].mean(0)).entropy()
        assert found[m].item() == pytest.approx((F.cross_entropy(prediction[:, m], q[:, m]) - 50 * balance).item(), abs=1e-10)


def test_the_default_outer_loss_is_half_the_cross_entropy_minus_the_agreement_of_neighbours() -> None:
    both, prediction = logits(0, 2 * ROWS), logits(1)
    q, neighbor = both.softmax(-1)[:ROWS], both.softmax(-1)[ROWS:]
    before = torch.full((MEMBERS, CLUSTERS), 1 / CLUSTERS, dtype=torch.float64)
    marginal = before.clone()
    found = outer_losses(both, prediction, DEFAULT, marginal)
    assert torch.allclose(marginal, 0.9 * before + 0.1 * q.mean(0))
    for m in range(MEMBERS):
        expected = 0.5 * F.cross_entropy(prediction[:, m], q[:, m])
        for i in range(ROWS):
            weight = (q[i, m] * neighbor[i, m]).sum()
            expected -= weight * ((q[i, m] * neighbor[i, m]) ** 0.6 / marginal[m]).sum().log() / ROWS
        assert found[m].item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_weight_of_a_pair_gets_no_gradient() -> None:
    log_q = logits(0).log_softmax(-1).requires_grad_()
    neighbor = logits(1).log_softmax(-1)
    marginal = torch.full((MEMBERS, CLUSTERS), 1 / CLUSTERS, dtype=torch.float64)
    [found] = torch.autograd.grad(pair_losses(log_q, neighbor, marginal, 0.6).sum(), log_q)
    weight = (log_q + neighbor).exp().sum(-1, keepdim=True)
    shares = (0.6 * (log_q + neighbor)).softmax(-1)
    assert torch.allclose(found, -0.6 * weight.detach() * shares / ROWS)


def test_the_inner_loss_of_the_image_half_alone_has_no_cross_modal_terms() -> None:
    image, q = logits(1), logits(0).softmax(-1)
    found = inner_losses([image], q, replace(PUBLISHED, entropy=0.0), (1.0,))
    assert found[0].item() == pytest.approx(F.cross_entropy(image[:, 0], q[:, 0]).item(), abs=1e-12)


def blobs(n: int = 600, text: bool = True) -> tuple[Features, Neighbors, NDArray[np.int64]]:
    random = np.random.default_rng(0)
    truth = random.integers(4, size=n)
    X, S = (3 * random.normal(size=(4, d))[truth] + random.normal(size=(n, d)) for d in (16, 12))
    halves = [((half - half.mean(0)) / half.std(0)).astype(np.float32) for half in (X, S)][: 1 + text]
    # Neighbours are drawn from the same blob, as an index would find them.
    same = np.array([random.choice(np.flatnonzero(truth == label), 3) for label in truth], np.int32)
    return Features(halves, [1 / len(halves)] * len(halves), [1.0] * len(halves)), Neighbors(same, same if text else None), truth


SHORT = replace(PUBLISHED, max_steps=12, tol=0.0, balance=10.0, batch_rows=100)
PAIRED = replace(DEFAULT, max_steps=12, batch_rows=100, block_size=1)


def train(
    features: Features, neighbors: Neighbors, training: Training = SHORT, block: int = 0, progress: Callable[[int], None] = lambda steps: None
) -> list[Member]:
    return train_block(features, neighbors, training, n_clusters=4, ensemble_size=8, random_state=0, block=block, device="cpu", progress=progress)


@pytest.mark.parametrize("training", [SHORT, PAIRED])
def test_members_of_a_block_train_independently_of_each_other(training: Training) -> None:
    features, neighbors, _ = blobs()
    [alone] = train(features, neighbors, training)
    first, second, third = train(features, neighbors, replace(training, block_size=3))
    np.testing.assert_allclose(first.parameters["weights"], alone.parameters["weights"], rtol=0, atol=1e-4)
    assert np.abs(second.parameters["weights"] - first.parameters["weights"]).max() > 0.1
    assert np.abs(third.parameters["weights"] - second.parameters["weights"]).max() > 0.1


@pytest.mark.parametrize("training", [SHORT, PAIRED])
def test_training_a_block_again_gives_equal_weights_and_another_block_other_weights(training: Training) -> None:
    features, neighbors, _ = blobs()
    [one], [again], [other] = (train(features, neighbors, training, block) for block in (0, 0, 1))
    assert np.array_equal(one.parameters["weights"], again.parameters["weights"])
    assert not np.array_equal(one.parameters["weights"], other.parameters["weights"])


@pytest.mark.parametrize("training", [SHORT, PAIRED])
@pytest.mark.parametrize("text", [True, False])
def test_separated_blobs_are_found(text: bool, training: Training) -> None:
    from sklearn.metrics import adjusted_rand_score

    features, neighbors, truth = blobs(text=text)
    scores = []
    for member in train(features, neighbors, replace(training, max_steps=60, block_size=4)):
        labels = (features.rows(slice(None)).numpy() @ member.parameters["weights"].T + member.parameters["bias"]).argmax(1)
        scores.append(adjusted_rand_score(truth, labels))
    assert max(scores) == 1


def test_a_member_whose_labels_settle_stops_before_the_last_step() -> None:
    features, neighbors, _ = blobs()
    told: list[int] = []
    whole = replace(SHORT, max_steps=100, block_size=4)
    members = train(features, neighbors, replace(whole, tol=1e-3), progress=told.append)
    assert sum(told) == max(member.steps for member in members) < 100
    assert all(member.changed <= 1e-3 for member in members)
    for member, never in zip(members, train(features, neighbors, whole), strict=True):
        assert never.steps == 100
        assert member.steps % 10 == 0


def test_mini_batches_grow_with_the_clusters_up_to_a_bound() -> None:
    assert [DEFAULT.batch(10**6, clusters) for clusters in (10, 128, 1000, 50_000)] == [512, 512, 4000, 8192]
    assert DEFAULT.batch(300, 10) == 300
    assert PUBLISHED.batch(10**6, 1000) == 1000
