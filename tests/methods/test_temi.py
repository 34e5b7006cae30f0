import numpy as np
import pytest
import torch

from gsec_core import TEMI, devices
from gsec_core.clustering.metrics import accuracy
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.methods.temi.estimator import N_HEADS, losses, pair_weights, schedule

SCHEDULES = [(50_000, 10, (19_400, 512)), (5_000, 10, (7_200, 512)), (300, 10, (7_200, 300)), (1_281_167, 1000, (250_200, 1024))]
SCHEDULES += [(10**6, 100, (19_400, 512)), (10**7, 1000, (250_200, 1024))]


@pytest.mark.parametrize(("n", "clusters", "expected"), SCHEDULES)
def test_the_schedule_is_the_published_one_between_the_papers_smallest_and_largest_sets(n: int, clusters: int, expected: tuple[int, int]) -> None:
    assert schedule(n, clusters) == expected


def test_sure_pairs_have_the_least_loss_and_uncertain_ones_a_greater() -> None:
    sizes, sure = torch.full((1, 10), 0.1), torch.eye(10)[None]
    assert float(losses(sure, sure, sizes, torch.ones(10), 0.6)) == pytest.approx(-2.302585, abs=1e-5)
    doubt = torch.full((1, 4, 10), 0.1)
    weights = pair_weights(doubt, doubt)
    assert weights.tolist() == pytest.approx([0.1] * 4)
    assert float(losses(doubt, doubt, sizes, weights, 0.6)) == pytest.approx(-0.184207, abs=1e-5)
    assert float(losses(doubt, doubt, sizes, torch.ones(4), 0.5)) == pytest.approx(-2.302585, abs=1e-5), (
        "at beta = .5 a single uncertain label for all costs no more than sure ones"
    )


def test_the_losses_and_gradients_equal_those_of_loops() -> None:
    random = np.random.default_rng(0)
    beta, logits, t = 0.6, random.standard_normal((3, 200, 5)), random.dirichlet(np.ones(5), (3, 200))
    near, sizes = random.dirichlet(np.ones(5), (3, 200)), random.dirichlet(np.ones(5), 3)

    def by_loops(logits: np.ndarray, head: int) -> float:
        total = 0.0
        for i in range(200):
            w = np.mean([sum(t[h, i, c] * near[h, i, c] for c in range(5)) for h in range(3)])
            p = np.exp(logits[head, i]) / np.exp(logits[head, i]).sum()
            total -= w * np.log(sum((p[c] * t[head, i, c]) ** beta / sizes[head, c] for c in range(5)))
        return total / 200

    tensor = torch.tensor(logits, requires_grad=True)
    found = losses(tensor.softmax(2), torch.tensor(t), torch.tensor(sizes), pair_weights(torch.tensor(t), torch.tensor(near)), beta)
    assert found.tolist() == pytest.approx([by_loops(logits, head) for head in range(3)], rel=1e-10)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert tensor.grad is not None
    for place in [(0, 3, 1), (2, 199, 4)]:
        above, below = logits.copy(), logits.copy()
        above[place] += 1e-5
        below[place] -= 1e-5
        slope = (by_loops(above, place[0]) - by_loops(below, place[0])) / 2e-5
        assert float(tensor.grad[place]) == pytest.approx(slope, rel=1e-5, abs=1e-10)


def planted(wide: float = 0.0, signal: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Three clusters of 280, 80 and 40 images, each around its own direction; the largest is also spread by ``wide`` along another one."""
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(3), [280, 80, 40])
    directions = np.linalg.qr(random.standard_normal((64, 64)))[0]
    X = signal * directions[y] + random.standard_normal((400, 64)) / 16
    X += (y == 0)[:, None] * wide * random.standard_normal((400, 1)) * directions[5]
    return X.astype(np.float32), y


SHORT = {"beta": 1.0, "device": "cpu"}


def test_with_beta_one_clusters_of_different_sizes_are_found() -> None:
    X, y = planted()
    assert accuracy(y, TEMI(3, n_members=1, max_steps=60, **SHORT).fit(X).labels_) >= 0.98


def test_an_elongated_cluster_that_k_means_splits_is_found_by_neighbours_in_either_number_format(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = planted(wide=0.4, signal=0.4)
    assert accuracy(y, SphericalKMeans(3, random_state=0).fit(X).labels_) < 0.7
    members = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(devices, "product_dtype", lambda device, dtype=dtype: dtype)
        found = TEMI(3, max_steps=80, **SHORT).fit(X)
        assert accuracy(y, found.labels_) >= 0.95
        members.append(found.members_[0].parameters["first"])
    assert members[1].dtype == np.float32
    assert np.abs(members[1] - members[0]).max() > 0, "bfloat16 must be used where the processor multiplies it"


def test_members_are_the_heads_in_order_of_their_loss() -> None:
    X, _ = planted()
    fitted = TEMI(3, max_steps=10, device="cpu").fit(X)
    found = [member.loss for member in fitted.members_]
    assert len(found) == N_HEADS
    assert found == sorted(found)
    one = TEMI(3, max_steps=10, n_members=1, device="cpu").fit(X)
    assert np.array_equal(one.members_[0].parameters["first"], fitted.members_[0].parameters["first"])
    starts = TEMI(3, max_steps=1, device="cpu").fit(X)
    last = [member.parameters["last"] for member in starts.members_]
    assert not np.allclose(last[0], last[1]), "each head must have its own start"


def test_wrong_parameters_are_errors_that_name_them() -> None:
    with pytest.raises(ValueError, match=r"beta = 0\.5: it must be above 0\.5"):
        TEMI(3, beta=0.5).fit(np.ones((9, 4)))
    with pytest.raises(ValueError, match="max_steps = 0"):
        TEMI(3, max_steps=0).fit(np.ones((9, 4)))
