import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gsec_core import SIC
from gsec_core.clustering.features import UnitFeatures
from gsec_core.clustering.metrics import accuracy
from gsec_core.methods.sic import estimator as module
from gsec_core.methods.sic.estimator import losses, mean_directions, semantic_centres, surest_rows
from gsec_core.text import NounSelection

from ..planted import planted


def unit(rows: NDArray) -> NDArray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def by_loops(z: NDArray, near: NDArray, labels: NDArray, balance: float, beta: float) -> float:
    """The loss of one member, image by image."""
    p, q = (np.exp(part) / np.exp(part).sum(1, keepdims=True) for part in (z, near))
    total = 0.0
    for i in range(len(z)):
        total -= np.log(sum(p[i, c] * q[i, c] for c in range(z.shape[1]))) / len(z)
        total -= beta * np.log(p[i, labels[i]]) / len(z)
    for size in p.mean(0):
        total += balance * size * np.log(size)
    return float(total)


def test_the_loss_and_its_gradient_equal_those_of_a_loop_over_images() -> None:
    random = np.random.default_rng(0)
    z, near, labels = random.standard_normal((200, 2, 5)), random.standard_normal((200, 2, 5)), random.integers(5, size=(200, 2))
    found, gradient = losses(torch.tensor(z), torch.tensor(near), torch.tensor(labels), 5.0, 0.1)
    assert found.tolist() == pytest.approx([by_loops(z[:, m], near[:, m], labels[:, m], 5.0, 0.1) for m in range(2)], rel=1e-10)
    both = np.concatenate([z, near])
    for i, m, c in [(0, 0, 1), (57, 1, 4), (199, 0, 0), (200, 0, 2), (399, 1, 3)]:
        values = []
        for moved in (1e-5, -1e-5):
            at = both.copy()
            at[i, m, c] += moved
            values.append(by_loops(at[:200, m], at[200:, m], labels[:, m], 5.0, 0.1))
        assert float(gradient[i, m, c]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_an_image_and_a_neighbour_that_are_certain_of_different_labels_have_a_finite_gradient() -> None:
    z = 1000 * torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0]][:, None]
    found, gradient = losses(z, z.roll(1, 0), torch.tensor([[0], [1], [2], [1]]), 5.0, 1.0)
    assert bool(found.isfinite().all()), "one cluster is empty, and the label of the last image is certain to be wrong"
    assert bool(gradient.isfinite().all())
    assert gradient[3, 0].tolist() == pytest.approx([0.25, -0.25, 0, 0])


def test_the_loss_of_balanced_labels_that_agree_is_minus_five_log_k() -> None:
    labels = torch.arange(200)[:, None] % 10
    z = 1000 * torch.nn.functional.one_hot(labels, 10).double()
    assert float(losses(z, z, labels, 5.0, 0.1)[0]) == pytest.approx(-11.512925, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 8192])
def test_the_mapping_equals_plain_sorting_for_any_size_of_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAPPED_ROWS", rows)
    monkeypatch.setattr(module, "_SEMANTIC_ROWS", rows)
    random = np.random.default_rng(0)
    z, X, nouns = random.standard_normal((200, 6)), random.standard_normal((200, 16)).astype(np.float32), unit(random.standard_normal((500, 16)))
    found = surest_rows(lambda picked: torch.tensor(z[picked]), 200, 30)
    expected = np.argsort(-z, axis=0)[:30].T
    assert [set(row) for row in found.tolist()] == [set(row) for row in expected.tolist()]
    directions = mean_directions(UnitFeatures([X]), 0, found, "cpu")
    assert directions.numpy() == pytest.approx(unit(unit(X)[expected].mean(1)), abs=1e-5)
    near = np.argsort(-(directions.numpy() @ nouns.T), axis=1)[:, :20]
    assert semantic_centres(directions, torch.tensor(nouns, dtype=torch.float32), 20).numpy() == pytest.approx(unit(nouns[near].mean(1)), abs=1e-5)


def test_with_nouns_the_classes_are_found_that_images_alone_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images alone show styles. A class has only ten nouns here, so some published values, meant for more, are changed."""
    published = module.schedule
    monkeypatch.setattr(module, "schedule", lambda n_clusters: published(n_clusters)._replace(learning_rate=1e-3, nearest=10))
    monkeypatch.setattr(module, "nouns", lambda n_clusters: NounSelection(per_centre=50, nearest=True, unlike=0.05))
    X, nouns, y = planted()
    taught, hardly, alone = (SIC(8, n_members=2, max_steps=600, beta=beta, device="cpu").fit(X, nouns=nouns) for beta in (1.0, 0.1, 0.0))
    assert accuracy(y, taught.labels_) >= 0.95
    assert accuracy(y, hardly.labels_) >= accuracy(y, alone.labels_) + 0.05
    assert (taught.predict(X) == taught.labels_).mean() >= 0.98


@pytest.mark.parametrize("mapping", ["centres", "direct"])
def test_the_mappings_centres_and_direct_do_not_repeat_the_lookup_of_nouns(mapping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "surest_rows", None)
    X, nouns, _ = planted(n=300)
    found = SIC(8, n_members=2, max_steps=20, mapping=mapping, device="cpu").fit(X, nouns=nouns)
    assert len(np.unique(found.labels_)) > 1


def test_images_in_another_space_than_nouns_are_clustered_with_heads_that_start_at_centres() -> None:
    X, nouns, y = planted(b=0.4)
    Z = X @ np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0].astype(np.float32)
    found = SIC(8, n_members=2, max_steps=300, start_at_centres=True, device="cpu").fit(Z, nouns=nouns, joint=X)
    assert accuracy(y, found.labels_) >= 0.9
    assert not found.members_[0].parameters["weights"][:, 64:].any(), "labels must depend on the images in their own space only"
    assert (found.predict(Z, joint=X) == found.labels_).mean() >= 0.98


def test_giving_every_noun_twice_changes_no_label() -> None:
    X, nouns, _ = planted(n=300)
    once, twice = (SIC(8, n_members=1, max_steps=30, device="cpu").fit(X, nouns=words).labels_ for words in (nouns, np.vstack([nouns, nouns])))
    assert np.array_equal(once, twice)


def test_more_than_100_clusters_have_another_schedule_and_selection_of_nouns() -> None:
    assert module.schedule(100).batch == 128
    assert module.schedule(101).batch == 4096
    assert module.nouns(101).per_centre == 300
    assert SIC(101).plan().start_at_centres
    assert not SIC(100).plan().start_at_centres
    assert SIC(10).plan().steps(50_000) == 39_000
    assert SIC(10).plan().steps(300) == 3900
    assert SIC(10).plan().steps(10**6) == 39_000
    assert SIC(101).plan().steps(10**7) == SIC(101).plan().steps(1_281_167) == 31_200


def test_wrong_parameters_are_errors_that_name_them() -> None:
    X, nouns, _ = planted(n=60)
    with pytest.raises(ValueError, match="nouns: SIC needs images and nouns"):
        SIC(8).fit(X)
    with pytest.raises(ValueError, match="mapping = 'magic': give one of adjusted, centres, direct"):
        SIC(8, mapping="magic").fit(X, nouns=nouns)
    with pytest.raises(ValueError, match="beta = -1"):
        SIC(8, beta=-1).fit(X, nouns=nouns)
    with pytest.raises(ValueError, match="nouns has 64 features and joint has 3"):
        SIC(8).fit(X, nouns=nouns, joint=X[:, :3])
    with pytest.raises(ValueError, match="nouns: 0 of 4 represent the images, fewer than n_clusters = 8"):
        SIC(8).fit(X, nouns=nouns[:4])
