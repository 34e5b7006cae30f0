import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.base import clone

from gsec_core import GSEC, TAC, TACKMeans
from gsec_core.clustering.metrics import accuracy
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.tac.estimator import _Head, cluster_agreement, loss, schedule
from gsec_core.text.nouns import noun_counterparts, select_nouns

from ..planted import planted

SHORT = {"n_members": 2, "max_steps": 120, "device": "cpu"}


def one_hot(clusters: int, each: int) -> torch.Tensor:
    return torch.eye(clusters, dtype=torch.float64).repeat(each, 1)


@pytest.mark.parametrize(("clusters", "temperature", "value"), [(10, 0.5, 1.234318), (1000, 5.0, 7.400513)])
def test_the_agreement_term_of_equal_balanced_labels_has_its_least_value(clusters: int, temperature: float, value: float) -> None:
    labels = one_hot(clusters, 2)
    assert float(cluster_agreement(labels, labels, temperature)) == pytest.approx(value, abs=1e-6)


def test_the_least_possible_loss_of_ten_clusters_has_the_known_value() -> None:
    labels = one_hot(10, 2)
    assert float(loss(labels, labels, labels, labels, 0.5)) == pytest.approx(-20.557214, abs=1e-5)


def by_loops(images: NDArray, texts: NDArray, image_neighbors: NDArray, text_neighbors: NDArray, temperature: float) -> float:
    """The loss, computed column by column."""

    def agreement(first: NDArray, second: NDArray) -> float:
        columns = [column / np.linalg.norm(column) for column in [*first.T, *second.T]]
        total, half = 0.0, first.shape[1]
        for number, column in enumerate(columns):
            others = [float(column @ other) / temperature for place, other in enumerate(columns) if place != number]
            total += logsumexp(others) - float(column @ columns[(number + half) % (2 * half)]) / temperature
        return total / len(columns)

    def entropy(labels: NDArray) -> float:
        p = labels.mean(0)
        return float(-(p * np.log(p)).sum())

    both = agreement(images, text_neighbors) + agreement(texts, image_neighbors)
    return both - float(np.mean([np.log(p @ q) for p, q in zip(images, texts, strict=True)])) - 5 * (entropy(images) + entropy(texts))


def test_the_loss_and_its_gradient_equal_those_of_loops() -> None:
    random = np.random.default_rng(0)
    logits = [torch.tensor(random.standard_normal((200, 6)), requires_grad=True) for _ in range(4)]
    found = loss(*(part.softmax(1) for part in logits), 0.5)  # type: ignore[call-arg]
    found.backward()  # type: ignore[no-untyped-call]
    values = [part.detach().numpy() for part in logits]

    def softmax(rows: NDArray) -> NDArray:
        return np.exp(rows) / np.exp(rows).sum(1, keepdims=True)

    assert float(found.detach()) == pytest.approx(by_loops(*(softmax(rows) for rows in values), 0.5), rel=1e-10)
    for part, (row, column) in [(0, (3, 1)), (1, (7, 5)), (2, (0, 0)), (3, (199, 2))]:
        moved = [rows.copy() for rows in values]
        moved[part][row, column] += 1e-5
        above = by_loops(*(softmax(rows) for rows in moved), 0.5)
        moved[part][row, column] -= 2e-5
        slope = (above - by_loops(*(softmax(rows) for rows in moved), 0.5)) / 2e-5
        gradient = logits[part].grad
        assert gradient is not None
        assert float(gradient[row, column]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_the_agreement_term_compares_clusters_column_by_column() -> None:
    random = np.random.default_rng(0)
    first, second = (torch.tensor(random.dirichlet(np.ones(5), 40)) for _ in range(2))
    order = torch.tensor([3, 0, 4, 1, 2])
    whole = float(cluster_agreement(first, second, 0.5))
    assert float(cluster_agreement(first[:, order], second[:, order], 0.5)) == pytest.approx(whole, abs=1e-12)
    assert abs(float(cluster_agreement(first[:, order], second, 0.5)) - whole) > 1e-3


def test_a_head_folded_into_plain_weights_gives_the_outputs_of_the_head_in_evaluation_mode() -> None:
    head = _Head(12, 4, torch.Generator().manual_seed(0))
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(1))
    for start in range(0, 300, 50):
        head(3 * x[start : start + 50] + 1)
    head.eval()
    arrays = {name: torch.from_numpy(array) for name, array in head.folded().items()}
    hidden = (x @ arrays["hidden_weights"].T + arrays["hidden_bias"]).relu()
    torch.testing.assert_close((hidden @ arrays["weights"].T + arrays["bias"]).softmax(1), head(x))


SCHEDULES = [(50_000, 10, (1940, 512, 0.5)), (5_000, 10, (180, 512, 0.5)), (300, 10, (180, 300, 0.5)), (1_281_167, 1000, (15_600, 8192, 5.0))]
SCHEDULES += [(10**6, 100, (1940, 512, 0.5)), (10**7, 1000, (15_600, 8192, 5.0))]


@pytest.mark.parametrize(("n", "clusters", "expected"), SCHEDULES)
def test_the_schedule_is_the_published_one_between_the_papers_smallest_and_largest_sets(n: int, clusters: int, expected: tuple[int, int, float]) -> None:
    assert schedule(n, clusters) == expected


@pytest.mark.parametrize("estimator", [TAC(8, **SHORT), TACKMeans(8, n_members=1), TACKMeans(8, n_members=3)], ids=["tac", "tac-kmeans, one", "tac-kmeans"])
def test_with_nouns_the_classes_are_found_that_images_alone_hide(estimator: Clusterer) -> None:
    X, nouns, y = planted(b=0.8)
    assert accuracy(y, SphericalKMeans(8, random_state=0).fit(X).labels_) < 0.4
    assert accuracy(y, clone(estimator).fit(X, nouns=nouns).labels_) >= 0.95
    assert accuracy(y, clone(estimator).fit(X, text=X).labels_) <= 0.6, "with the image itself as text the classes stay hidden"


def test_gsec_with_nouns_equals_gsec_with_the_counterparts_of_selected_nouns() -> None:
    X, nouns, y = planted()
    S = np.concatenate(list(noun_counterparts(X, nouns[select_nouns(X, nouns, 8).noun])))
    small = {"n_members": 4, "ensemble_size": 4, "device": "cpu", "text_weight": 0.5}
    by_nouns, by_text = GSEC(8, **small).fit(X, nouns=nouns), GSEC(8, **small).fit(X, text=S)
    assert np.array_equal(by_nouns.labels_, by_text.labels_)
    assert accuracy(y, by_nouns.labels_) >= 0.95


def test_new_rows_are_predicted_without_texts() -> None:
    X, nouns, y = planted(n=1600)
    fitted = TAC(8, **SHORT).fit(X[:1200], nouns=nouns)
    assert accuracy(y[1200:], fitted.predict(X[1200:])) >= 0.9
    with pytest.raises(ValueError, match="the estimator was fitted with nouns"):
        fitted.predict(X[1200:], X[1200:])


def test_three_hundred_clusters_can_be_fitted() -> None:
    random = np.random.default_rng(0)
    X = random.standard_normal((900, 16)).astype(np.float32)
    fitted = TAC(300, n_members=1, max_steps=5, device="cpu").fit(X, nouns=random.standard_normal((2000, 16)).astype(np.float32))
    assert fitted.labels_.max() < 300


@pytest.mark.parametrize(
    ("estimator", "given", "says"),
    [
        (TAC(8), {}, "TAC needs images and texts. Give text or nouns"),
        (TACKMeans(8), {}, "TACKMeans needs images and texts"),
        (TAC(8), {"text": np.ones((60, 4)), "nouns": np.ones((5, 64))}, "text and nouns: give only one of them"),
        (TAC(8), {"nouns": np.ones((5, 63))}, "nouns has 63 features and X has 64"),
        (TAC(8, max_steps=0), {"nouns": np.ones((5, 64))}, "max_steps = 0: it must be at least 1"),
        (TACKMeans(8, n_init=0), {"nouns": np.ones((5, 64))}, "n_init = 0"),
    ],
)
def test_a_wrong_parameter_is_an_error_that_names_it(estimator: Clusterer, given: dict[str, NDArray], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        estimator.fit(planted(n=60)[0], **given)
