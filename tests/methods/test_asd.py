from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gsec_core import ASD
from gsec_core.clustering.metrics import accuracy
from gsec_core.methods.asd import estimator
from gsec_core.methods.asd.estimator import SURE, Transitions, chance_of_all, grouped, loss, matched, sample_size

from ..planted import planted


def test_the_chance_that_a_sample_hits_every_cluster_agrees_with_a_simulation() -> None:
    draws = np.random.default_rng(0).permuted(np.tile(np.arange(60), (20_000, 1)), axis=1)[:, :5] % 3
    hit = np.mean([len(set(row)) == 3 for row in draws.tolist()])
    expected = chance_of_all(60, 3, 5)
    assert abs(hit - expected) <= 3 * (expected * (1 - expected) / len(draws)) ** 0.5


@pytest.mark.parametrize(("n", "clusters", "drawn"), [(1200, 8, 96), (60, 3, 5), (1_000_000, 10, 60), (1_000_000, 100, 800)])
def test_the_chance_that_a_sample_hits_every_cluster_equals_the_exact_sum(n: int, clusters: int, drawn: int) -> None:
    terms = ((-1) ** i * comb(clusters, i) * Fraction(comb(n - i * n // clusters, drawn), comb(n, drawn)) for i in range(clusters + 1))
    assert chance_of_all(n, clusters, drawn) == pytest.approx(float(sum(terms)), abs=1e-6)


def test_the_chance_is_one_for_samples_that_cannot_miss_a_cluster_and_zero_for_too_small_ones() -> None:
    assert chance_of_all(6, 3, 5) == pytest.approx(1, abs=1e-12)
    assert chance_of_all(6, 3, 4) == pytest.approx(0.8), "3 of the 15 possible draws miss a cluster"
    assert chance_of_all(60, 3, 2) == pytest.approx(0, abs=1e-9)
    assert chance_of_all(1_000_000, 1000, 1000) == 0


@pytest.mark.parametrize(
    ("n", "clusters", "expected"),
    [(10_000, 10, 120), (1200, 8, 96), (1_000_000, 300, 3771), (1_000_000, 1000, 4096), (50, 3, 12), (900, 300, 300), (3, 3, 3)],
)
def test_the_sample_size_has_the_expected_value_and_respects_its_bounds(n: int, clusters: int, expected: int) -> None:
    assert sample_size(n, clusters) == expected


def test_the_sample_is_no_larger_than_needed_to_hit_every_cluster() -> None:
    assert chance_of_all(1_000_000, 300, 3771) >= SURE > chance_of_all(1_000_000, 300, 3770)


def seen(looks: list[tuple[list[int], list[int]]], names: NDArray[np.int64]) -> NDArray[np.int32]:
    transitions = Transitions(4, len(names))
    for images, classes in looks:
        transitions.see(np.array(images), names[np.array(classes)])
    return transitions.counts


LOOKS = [([0, 1, 2], [0, 1, 2]), ([0, 3], [1, 2]), ([0, 1, 2, 3], [0, 1, 1, 2]), ([0], [1])]


def test_transitions_between_classes_are_counted_as_by_hand() -> None:
    assert seen(LOOKS, np.arange(3)).tolist() == [[0, 2, 0], [1, 0, 0], [0, 1, 0]]
    assert not Transitions(4, 3).counts.any()


def test_other_names_of_classes_permute_the_transitions() -> None:
    names = np.array([2, 0, 1])
    assert np.array_equal(seen(LOOKS, names)[np.ix_(names, names)], seen(LOOKS, np.arange(3)))


def test_each_image_is_matched_to_a_class_of_its_own() -> None:
    logits = np.array([[3.0, 2.9, 0.0], [3.0, 0.0, 0.0], [3.0, 0.0, 1.0]], np.float32)
    assert matched(logits).tolist() == [1, 0, 2], "all images like class 0 best, so the sum of logits decides"
    shuffled = np.random.default_rng(0).permutation(50)
    assert np.array_equal(shuffled[matched(np.eye(50, dtype=np.float32)[shuffled])], np.arange(50)), "the same images in another order must keep their classes"


def test_classes_between_which_images_change_often_become_one_cluster() -> None:
    random = np.random.default_rng(0)
    y = random.integers(5, size=80)
    transitions = random.poisson(np.where(y[:, None] == y, 3.0, 0.2)).astype(float)
    found = grouped(transitions, 5)
    assert accuracy(y, found.astype(np.int32)) == 1
    order = random.permutation(80)
    assert accuracy(found[order], grouped(transitions[np.ix_(order, order)], 5).astype(np.int32)) == 1
    one_way = np.triu(transitions)
    assert accuracy(y, grouped(one_way, 5).astype(np.int32)) >= 0.95, "the direction of a transition must not matter"
    assert grouped(transitions, 80).tolist() == list(range(80))


def test_fixmatchs_loss_and_gradient_equal_those_of_a_loop_over_images() -> None:
    random = np.random.default_rng(0)
    labelled, weak, strong = (3 * random.standard_normal((rows, 5)) for rows in (40, 200, 200))
    y = random.integers(5, size=40)

    def log_softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = row - np.log(np.exp(row).sum())
        return logs

    def by_loops(labelled: NDArray[np.float64], strong: NDArray[np.float64]) -> float:
        total = -sum(log_softmax(row)[label] for row, label in zip(labelled, y, strict=True)) / 40
        for row, sure in zip(strong, weak, strict=True):
            if np.exp(log_softmax(sure)).max() >= 0.95:
                total -= log_softmax(row)[sure.argmax()] / 200
        return float(total)

    tensors = [torch.tensor(rows, requires_grad=True) for rows in (labelled, weak, strong)]
    found = loss(tensors[0], torch.from_numpy(y), *tensors[1:])
    assert float(found.detach()) == pytest.approx(by_loops(labelled, strong), rel=1e-10)
    found.backward()  # type: ignore[no-untyped-call]
    assert tensors[1].grad is None, "predictions of weak views serve as labels and get no gradient"
    for which, place in [(0, (3, 1)), (1, (int(weak.max(1).argmax()), 2)), (1, (int(weak.max(1).argmin()), 0))]:
        slopes = []
        for step in (1e-5, -1e-5):
            moved = [labelled.copy(), strong.copy()]
            moved[which][place] += step
            slopes.append(by_loops(*moved))
        gradient = tensors[2 * which].grad
        assert gradient is not None
        assert float(gradient[place]) == pytest.approx((slopes[0] - slopes[1]) / 2e-5, rel=1e-5, abs=1e-10)


def test_without_sure_predictions_the_loss_is_that_of_the_labelled_sample_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    labelled, weak, strong = (torch.randn(30, 4, generator=generator, dtype=torch.float64).mul_(9).requires_grad_() for _ in range(3))
    y = torch.arange(30) % 4
    found, supervised = loss(labelled, y, weak, strong, threshold=1.01), F.cross_entropy(labelled, y)
    assert float(found.detach()) == float(supervised.detach())
    gradients = torch.autograd.grad(found, [labelled, strong])
    assert torch.equal(gradients[0], torch.autograd.grad(supervised, labelled)[0])
    assert not gradients[1].any()


def test_asd_finds_planted_clusters_by_the_transitions_between_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    X, _, y = planted(b=0.4)
    assert sample_size(len(X), 8) == 96
    fitted = ASD(8, n_members=3, max_steps=500, device="cpu").fit(X)
    assert np.mean([accuracy(y, labels) for labels in fitted.member_labels_]) >= 0.8
    assert accuracy(y, fitted.labels_) >= 0.95, "the consensus is better, as members err on different images"
    assert (fitted.predict(X) == fitted.labels_).mean() >= 0.98

    def shuffled(transitions: NDArray[np.float64], n_clusters: int) -> NDArray[np.int64]:
        return grouped(np.random.default_rng(0).permutation(transitions.ravel()).reshape(transitions.shape), n_clusters)

    monkeypatch.setattr(estimator, "grouped", shuffled)
    without = ASD(8, n_members=2, max_steps=500, device="cpu").fit(X)
    assert np.mean([accuracy(y, labels) for labels in without.member_labels_]) <= 0.5


def test_text_takes_no_part_in_training() -> None:
    X, V, _ = planted(n=300, b=0.4)
    alone, beside = (ASD(8, n_members=1, max_steps=60, device="cpu").fit(X, text=text) for text in (None, V[:300, :20]))
    weights = beside.members_[0].parameters["weights"]
    assert not weights[:, 64:].any()
    np.testing.assert_allclose(weights[:, :64], 2**0.5 * alone.members_[0].parameters["weights"], rtol=1e-6)
    assert np.array_equal(alone.labels_, beside.labels_)


def test_the_norm_of_embeddings_does_not_matter() -> None:
    X, _, _ = planted(n=300)
    small = {"n_members": 1, "max_steps": 60, "device": "cpu"}
    assert np.array_equal(ASD(8, **small).fit(X).labels_, ASD(8, **small).fit(8 * X).labels_)


@pytest.mark.parametrize("max_steps", [1, 2, 40])
def test_the_progress_adds_up_to_the_steps_of_the_training(max_steps: int) -> None:
    X, _, _ = planted(n=200)
    plan = ASD(8, n_members=1, max_steps=max_steps, device="cpu").plan()
    features = plan.features([X], plan.halves([X]), 0.5)
    told: list[int] = []
    members = plan.train(features, plan.neighbors(features), 0, told.append)
    assert sum(told) == plan.steps(200) == members[0].steps == max_steps


def test_a_wrong_number_of_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_steps = 0"):
        ASD(3, max_steps=0).fit(np.ones((9, 4)))
