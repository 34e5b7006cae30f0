"""The losses against torch's own functions, and what the members of a block may share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gsec_core.clustering.bilevel import Member, Neighbors, Training, inner_losses, outer_losses, train_block
from gsec_core.clustering.features import Features, fit_half

ROWS, MEMBERS, CLUSTERS = 40, 3, 6


def logits(seed: int, rows: int = ROWS) -> Tensor:
    return 2 * torch.randn(rows, MEMBERS, CLUSTERS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_inner_loss_is_the_published_sum() -> None:
    training, q = Training(), logits(0).softmax(-1)
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


def test_outer_loss_is_cross_entropy_less_the_entropy_of_the_mean_label() -> None:
    z, prediction = logits(0), logits(1)
    q = z.softmax(-1)
    found = outer_losses(z, prediction, gamma=50)
    for m in range(MEMBERS):
        balance = torch.distributions.Categorical(probs=q[:, m].mean(0)).entropy()
        assert found[m].item() == pytest.approx((F.cross_entropy(prediction[:, m], q[:, m]) - 50 * balance).item(), abs=1e-10)


def test_image_half_alone_has_no_cross_modal_terms() -> None:
    image, q = logits(1), logits(0).softmax(-1)
    found = inner_losses([image], q, Training(entropy=0), (1.0,))
    assert found[0].item() == pytest.approx(F.cross_entropy(image[:, 0], q[:, 0]).item(), abs=1e-12)


def blobs(n: int = 600, text: bool = True) -> tuple[Features, Neighbors, NDArray[np.int64]]:
    random = np.random.default_rng(0)
    truth = random.integers(4, size=n)
    X, S = (3 * random.normal(size=(4, d))[truth] + random.normal(size=(n, d)) for d in (16, 12))
    # Neighbours of the same blob: what an index would find.
    same = np.array([random.choice(np.flatnonzero(truth == label), 3) for label in truth], np.int32)
    features = Features(X, S if text else None, [fit_half(X), fit_half(S)][: 1 + text], 0.5)
    return features, Neighbors(same, same if text else None), truth


def train(features: Features, neighbors: Neighbors, block: int = 0, tol: float = 0, **changes: int) -> list[Member]:
    training = replace(Training(max_steps=12, gamma=10, batch_rows=100), **changes)
    return train_block(
        features, neighbors, training, n_clusters=4, ensemble_size=8, tol=tol, random_state=0, block=block, device="cpu", progress=lambda steps: None
    )


def test_members_of_a_block_share_nothing_but_mini_batches() -> None:
    features, neighbors, _ = blobs()
    alone, *_ = train(features, neighbors, block_size=1)
    first, second, third = train(features, neighbors, block_size=3)
    assert first.weights == pytest.approx(alone.weights, abs=1e-4)
    assert np.abs(second.weights - first.weights).max() > 0.1
    assert np.abs(third.weights - second.weights).max() > 0.1


def test_a_block_is_the_same_again_and_another_block_is_another() -> None:
    features, neighbors, _ = blobs()
    [one], [again], [other] = train(features, neighbors), train(features, neighbors), train(features, neighbors, block=1)
    assert np.array_equal(one.weights, again.weights)
    assert not np.array_equal(one.weights, other.weights)


@pytest.mark.parametrize("text", [True, False])
def test_separated_blobs_are_found(text: bool) -> None:
    from sklearn.metrics import adjusted_rand_score

    features, neighbors, truth = blobs(text=text)
    scores = []
    for member in train(features, neighbors, max_steps=60, block_size=4):
        labels = (features.rows(slice(None)).numpy() @ member.weights.T + member.bias).argmax(1)
        scores.append(adjusted_rand_score(truth, labels))
    assert max(scores) == 1


def test_a_settled_member_stops_and_is_kept_while_others_go_on() -> None:
    features, neighbors, _ = blobs()
    told: list[int] = []
    training = Training(max_steps=200, gamma=10, batch_rows=100, block_size=4)
    members = train_block(features, neighbors, training, n_clusters=4, ensemble_size=8, tol=1e-3, random_state=0, block=0, device="cpu", progress=told.append)
    assert sum(told) == max(member.steps for member in members) < 200
    assert all(member.changed <= 1e-3 for member in members)
    for member, never in zip(members, train(features, neighbors, max_steps=200, block_size=4), strict=True):
        assert never.steps == 200
        assert member.steps % 10 == 0


def test_features_are_not_changed_by_reading_them() -> None:
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    before = X.copy()
    rows = Features(X, None, [fit_half(X)], 0.5).rows(slice(None)).numpy()
    assert np.array_equal(X, before)
    assert rows.mean(0) == pytest.approx([0, 0, 0], abs=1e-6)
    assert rows.std(0) == pytest.approx([1, 1, 1], abs=1e-6)
