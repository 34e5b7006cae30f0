import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gsec_core import SEIC
from gsec_core.clustering.metrics import accuracy
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.methods.seic import estimator
from gsec_core.methods.seic.estimator import agreement, balance, centre_agreement, cluster_agreement, followed, loss, schedule
from gsec_core.text.fusion import nearest_counterparts
from gsec_core.text.nouns import nearest_nouns, semantic_centres

from ..planted import planted

SHORT = {"n_members": 1, "max_steps": 200, "device": "cpu"}

SIZES = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.09, 0.01], dtype=torch.float64)


@pytest.mark.parametrize("sizes", [torch.full((10,), 0.1), torch.tensor([0.55] + 9 * [0.05])])
def test_the_balance_term_of_even_labels_has_its_least_value_for_any_earlier_sizes(sizes: Tensor) -> None:
    labels = torch.full((20, 10), 0.1)
    assert float(balance(labels, labels, sizes)) == pytest.approx(-2 * math.log(10), abs=1e-5)


def test_the_agreement_term_of_equal_orthonormal_rows_has_its_least_value() -> None:
    rows = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert float(agreement(rows, rows, 1.0)) == pytest.approx(-math.log(math.e / (math.e + 11)), abs=1e-12)


def contrast(first: list[Tensor], second: list[Tensor], scale: Tensor | float) -> Tensor:
    """The InfoNCE loss, computed row by row in both directions."""
    total = torch.zeros((), dtype=torch.float64)
    for these, others in ((first, second), (second, first)):
        for number, row in enumerate(these):
            found = scale * torch.stack(others) @ row
            total = total + (found.logsumexp(0) - found[number]) / (2 * len(these))
    return total


def columns_by_loops(p: Tensor, q: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return contrast(*([column / column.norm() for column in labels.T] for labels in (p, q)), 2.0)


def centres_by_loops(p: Tensor, q: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    centres: list[list[Tensor]] = [[], []]
    for cluster in range(p.shape[1]):
        own = [[labels[i, cluster] * rows[i] for i in range(len(rows)) if int(labels[i].argmax()) == cluster] for labels, rows in ((p, a), (q, b))]
        if all(own):
            for side, rows in zip(centres, own, strict=True):
                total = torch.stack(rows).sum(0)
                side.append(total / total.norm())
    assert len(centres[0]) == 4, "one of the six clusters must have no image, and another no text"
    return contrast(*centres, 2.0)


def balance_by_loops(p: Tensor, q: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    weights = [min(5.0, (1 / 6) / float(size)) for size in SIZES]
    total = torch.zeros((), dtype=torch.float64)
    for labels in (p, q):
        for cluster, mean in enumerate(labels.mean(0)):
            total = total + 6 * weights[cluster] / sum(weights) * mean * mean.log()
    return total


def instances_by_loops(p: Tensor, q: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return contrast(list(a), list(b), scale)


def all_by_loops(*args: Tensor) -> Tensor:
    return 0.5 * instances_by_loops(*args) + columns_by_loops(*args) + centres_by_loops(*args) + 2 * balance_by_loops(*args)


Term = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

TERMS: dict[str, tuple[Term, Term]] = {
    "instances": (lambda p, q, a, b, scale: agreement(a, b, scale), instances_by_loops),
    "clusters": (lambda p, q, a, b, scale: cluster_agreement(p, q), columns_by_loops),
    "centres": (lambda p, q, a, b, scale: centre_agreement(p, q, a, b), centres_by_loops),
    "balance": (lambda p, q, a, b, scale: balance(p, q, SIZES), balance_by_loops),
    "all": (lambda p, q, a, b, scale: loss(p, q, a, b, scale, SIZES), all_by_loops),
}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_of_the_loss_and_its_gradient_equal_those_of_loops(term: str) -> None:
    random = np.random.default_rng(0)
    logits, vectors = random.standard_normal((2, 200, 6)), random.standard_normal((2, 200, 7))
    logits[0, :, 2] -= 9
    logits[1, :, 5] -= 9

    def found(function: Term) -> tuple[Tensor, list[Tensor | None]]:
        leaves = [torch.tensor(values, requires_grad=True) for values in (*logits, *vectors, np.log(9.0))]
        p, q, u, v, log_scale = leaves
        value = function(p.softmax(1), q.softmax(1), F.normalize(u, dim=1), F.normalize(v, dim=1), log_scale.exp())
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach(), [leaf.grad for leaf in leaves]

    (ours, ours_moved), (theirs, theirs_moved) = (found(function) for function in TERMS[term])
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    for one, other in zip(ours_moved, theirs_moved, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
    assert any(moved is not None and bool(moved.any()) for moved in ours_moved)


def test_the_term_of_centres_is_zero_if_only_one_cluster_is_used() -> None:
    labels = torch.tensor([[0.9, 0.1]]).repeat(5, 1).requires_grad_()
    vectors = F.normalize(torch.ones(5, 3), dim=1)
    assert float(centre_agreement(labels, labels, vectors, vectors)) == 0


def test_running_cluster_sizes_follow_the_labels_and_have_a_floor() -> None:
    labels = torch.eye(4)[[0, 0, 0, 1]]
    sizes = torch.full((4,), 0.25)
    assert followed(sizes, labels).tolist() == pytest.approx([0.3, 0.25, 0.225, 0.225])
    for _ in range(200):
        sizes = followed(sizes, labels)
    assert float(sizes[3]) == pytest.approx(0.01, rel=0.05)
    assert float(sizes.sum()) == pytest.approx(1)
    many = torch.full((500,), 1 / 500)
    assert float(followed(many, torch.eye(500)).std()) < 1e-8, "with 500 clusters a floor of .01 would be above the mean"
    assert float(followed(many, torch.eye(500)[:50]).min()) < 0.95 / 500


SCHEDULES = [(50_000, 10, (9600, 1024)), (5_000, 10, (800, 1024)), (300, 10, (800, 300)), (1_281_167, 1000, (32_000, 8000)), (90_000, 5000, (2000, 8192))]
SCHEDULES += [(10**6, 100, (9600, 1024)), (10**7, 1000, (32_000, 8000))]


@pytest.mark.parametrize(("n", "clusters", "expected"), SCHEDULES)
def test_the_schedule_is_the_published_one_between_the_papers_smallest_and_largest_sets(n: int, clusters: int, expected: tuple[int, int]) -> None:
    assert schedule(n, clusters) == expected
    assert schedule(n, clusters, 7) == (7, expected[1])


def counterparts(X: NDArray[np.float32], nouns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Counterparts as the paper makes them: from the nouns nearest to eight centres, the ten nearest to each image."""
    kept = np.unique(nearest_nouns(nouns, semantic_centres(X, 8, random_state=0), 20))
    return np.concatenate(list(nearest_counterparts(X, nouns[kept], 10, 0.01)))


def test_with_nouns_the_classes_are_found_that_images_alone_hide() -> None:
    X, nouns, y = planted(n=400, b=0.8)
    assert accuracy(y, SphericalKMeans(8, random_state=0).fit(X).labels_) < 0.4
    assert accuracy(y, SEIC(8, **SHORT).fit(X, text=counterparts(X, nouns)).labels_) >= 0.95
    assert accuracy(y, SEIC(8, **SHORT).fit(X, nouns=nouns).labels_) >= 0.95
    assert accuracy(y, SEIC(8, **SHORT).fit(X, text=X).labels_) <= 0.6, "with the image itself as text the classes stay hidden"


def test_without_the_term_of_centres_clusters_die_out(monkeypatch: pytest.MonkeyPatch) -> None:
    X, nouns, _ = planted(n=400)
    S = counterparts(X, nouns)
    assert len(np.unique(SEIC(8, **SHORT).fit(X, text=S).labels_)) == 8
    monkeypatch.setattr(estimator, "CENTRES", 0.0)
    assert len(np.unique(SEIC(8, **SHORT).fit(X, text=S).labels_)) < 8


def test_new_rows_are_predicted_without_texts() -> None:
    X, nouns, y = planted(n=600)
    fitted = SEIC(8, n_members=2, max_steps=120, device="cpu").fit(X[:400], nouns=nouns)
    assert accuracy(y[400:], fitted.predict(X[400:])) >= 0.9


def test_texts_may_have_another_width_and_zero_rows() -> None:
    random = np.random.default_rng(0)
    X, S = random.standard_normal((60, 12)).astype(np.float32), random.standard_normal((60, 5)).astype(np.float32)
    S[7] = 0
    fitted = SEIC(3, n_members=2, max_steps=20, device="cpu").fit(X, text=S)
    assert {name: array.shape for name, array in fitted.members_[0].parameters.items()} == fitted.plan().shapes([12, 5])
    assert np.isfinite(fitted.predict_proba(X, S)).all()


@pytest.mark.parametrize(
    ("seic", "given", "says"),
    [
        (SEIC(8), {}, "SEIC needs images and texts. Give text or nouns"),
        (SEIC(8, max_steps=0), {"nouns": np.ones((5, 64))}, "max_steps = 0: it must be at least 1"),
    ],
)
def test_a_wrong_parameter_is_an_error_that_names_it(seic: SEIC, given: dict[str, NDArray], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        seic.fit(planted(n=60)[0], **given)
