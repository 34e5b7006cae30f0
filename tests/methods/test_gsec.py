"""The estimator GSEC: scikit-learn's own checks, and guarantees beyond them."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from gsec_core import GSEC
from gsec_core.clustering import ensemble, linear
from gsec_core.methods.gsec import METHOD
from gsec_core.methods.gsec.estimator import PRESETS

SMALL = {"ensemble_size": 4, "n_members": 10, "max_steps": 20, "device": "cpu"}


@parametrize_with_checks([GSEC(n_clusters=3, **SMALL)])
def test_the_estimator_passes_scikit_learns_checks(estimator: GSEC, check: object) -> None:
    check(estimator)  # type: ignore[operator]


def blobs(sizes: tuple[int, ...] = (120, 80, 60, 40)) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(0)
    truth = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    X, S = (4 * random.normal(size=(len(sizes), d))[truth] + random.normal(size=(len(truth), d)) for d in (16, 12))
    return X.astype(np.float32), S.astype(np.float32), truth


@pytest.fixture(scope="module")
def fitted() -> GSEC:
    X, S, _ = blobs()
    return GSEC(4, **SMALL).fit(X, text=S)


def test_the_consensus_finds_blobs_of_unequal_size_and_numbers_them_by_size(fitted: GSEC) -> None:
    truth = blobs()[2]
    assert adjusted_rand_score(truth, fitted.labels_) > 0.8
    sizes = np.bincount(fitted.labels_, minlength=4)
    assert list(sizes) == sorted(sizes, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_format_of_a_training_with_many_clusters_does_not_matter(dtype: torch.dtype, fitted: GSEC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MANY_CLUSTERS", 3)
    monkeypatch.setattr(linear, "product_dtype", lambda device: dtype)
    X, S, _ = blobs()
    found = GSEC(4, **SMALL).fit(X, text=S)
    assert adjusted_rand_score(fitted.labels_, found.labels_) > 0.95
    rounded = any(
        not np.array_equal(one.parameters["weights"], other.parameters["weights"]) for one, other in zip(found.members_, fitted.members_, strict=True)
    )
    assert rounded == (dtype == torch.bfloat16)
    assert (found.predict(X, S) == found.labels_).mean() > 0.98


def test_the_head_predicts_nearly_the_labels_of_the_fit(fitted: GSEC) -> None:
    X, S, _ = blobs()
    posteriors = fitted.predict_proba(X, S)
    assert posteriors.sum(1) == pytest.approx(np.ones(len(X)), abs=1e-5)
    assert np.array_equal(fitted.predict(X, S), posteriors.argmax(1))
    assert (fitted.predict(X, S) == fitted.labels_).mean() > 0.98, "the head must agree with the consensus"
    assert (fitted.margin_ <= fitted.confidence_).all()


def test_labels_of_new_rows_come_block_by_block_without_the_posteriors_of_all_rows_in_memory(fitted: GSEC, monkeypatch: pytest.MonkeyPatch) -> None:
    X, S, _ = blobs()
    labels = fitted.predict_proba(X, S).argmax(1)
    monkeypatch.setattr(ensemble, "_BLOCK_VALUES", 1000)
    monkeypatch.setattr(GSEC, "predict_proba", Mock(side_effect=MemoryError))
    assert np.array_equal(fitted.predict(X, S), labels)


def test_agreement_is_the_share_of_members_that_have_the_consensus_label(fitted: GSEC) -> None:
    assert fitted.member_labels_.shape == (10, 300)
    same = fitted.member_labels_ == fitted.labels_
    assert fitted.agreement_ == pytest.approx(same.mean(0))
    assert fitted.member_agreement_ == pytest.approx(same.mean(1))


def test_more_members_do_not_change_the_first_ones() -> None:
    X, S, _ = blobs()
    two, twelve = (GSEC(4, **{**SMALL, "n_members": count, "max_steps": 5}).fit(X, text=S) for count in (2, 12))
    assert (len(two.members_), len(twelve.members_)) == (2, 12)
    for few, many in zip(two.members_, twelve.members_, strict=False):
        assert np.array_equal(few.parameters["weights"], many.parameters["weights"])


def test_equal_seeds_give_equal_labels_and_other_seeds_other_members() -> None:
    X, S, _ = blobs()
    one, again, other = (GSEC(4, random_state=seed, **{**SMALL, "max_steps": 5}).fit(X, text=S) for seed in (1, 1, 2))
    assert np.array_equal(one.labels_, again.labels_)
    assert not np.array_equal(one.members_[0].parameters["weights"], other.members_[0].parameters["weights"])


def test_a_float16_memory_map_gives_the_labels_of_the_same_values_in_memory(tmp_path: object) -> None:
    X, S, _ = blobs()
    np.save(f"{tmp_path}/X.npy", X.astype(np.float16))
    mapped = np.load(f"{tmp_path}/X.npy", mmap_mode="r")
    from_disk, whole = (GSEC(4, **{**SMALL, "max_steps": 5}).fit(data, text=S) for data in (mapped, X.astype(np.float16).astype(np.float32)))
    assert np.array_equal(from_disk.labels_, whole.labels_)


def test_text_weight_decides_how_much_the_text_half_counts_except_in_the_published_preset() -> None:
    X, S, truth = blobs()
    noise = np.random.default_rng(1).normal(size=S.shape).astype(np.float32)
    settings = SMALL
    assert adjusted_rand_score(truth, GSEC(4, text_weight=0.02, **settings).fit(X, text=noise).labels_) > 0.8
    assert adjusted_rand_score(truth, GSEC(4, text_weight=0.98, **settings).fit(X, text=noise).labels_) < 0.5
    light, heavy = (GSEC(4, preset="published", text_weight=weight, **{**settings, "max_steps": 5}).fit(X, text=S) for weight in (0.1, 0.9))
    assert np.array_equal(light.members_[0].parameters["weights"], heavy.members_[0].parameters["weights"])


def test_without_text_the_image_half_is_clustered_alone() -> None:
    X, _, truth = blobs()
    estimator = GSEC(4, **SMALL).fit(X)
    assert adjusted_rand_score(truth, estimator.labels_) > 0.8
    with pytest.raises(ValueError, match=r"text: GSEC was fitted without it\. Leave it out\."):
        estimator.predict(X, blobs()[1])


def test_new_samples_without_the_text_that_the_fit_had_are_an_error_that_asks_for_it(fitted: GSEC) -> None:
    with pytest.raises(ValueError, match=r"^text: GSEC was fitted with text of 12 features\. Give it for new samples, too\."):
        fitted.predict(blobs()[0])


def test_presets_set_the_documented_parameters_and_explicit_ones_override_them() -> None:
    published = GSEC(preset="published").plan()
    assert (published.n_members, published.preset.training.max_steps, published.preset.training.balance) == (1, 6000, 50)
    default = GSEC().plan()
    assert (default.n_members, default.preset.training.max_steps, default.preset.training.balance) == (20, 100, 0)
    assert GSEC(preset="published", max_steps=7, n_members=3).plan().preset.training.max_steps == 7
    assert set(PRESETS) == {"default", "published"}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"preset": "fast"}, "preset = 'fast': there are default, published"),
        ({"text_weight": 2}, "text_weight = 2: it must be between 0 and 1"),
        ({"text_weight": "0.5"}, "text_weight = '0.5': it must be between 0 and 1"),
        ({"tol": -1}, "tol = -1"),
        ({"device": None}, 'device = "None": choose `auto`'),
        ({"n_members": 0}, "n_members = 0: it must be at least 1"),
        ({"n_clusters": 301}, "n_clusters = 301: n_samples = 300"),
        ({"n_clusters": 40_000}, r"^n_clusters = 40000: members can be aligned in at most 32768 clusters\. Ask for fewer\."),
    ],
)
def test_a_wrong_parameter_is_an_error_that_names_it(parameters: dict[str, object], says: str) -> None:
    X, S, _ = blobs()
    with pytest.raises(ValueError, match=says):
        clone(GSEC(4)).set_params(**parameters).fit(X, text=S)


def test_text_of_another_length_is_refused() -> None:
    X, S, _ = blobs()
    with pytest.raises(ValueError, match="text has 299 rows and X has 300"):
        GSEC(4).fit(X, text=S[1:])


@pytest.mark.parametrize(("clusters", "members", "block"), [(10, 20, 10), (500, 20, 8), (600, 16, 3), (1000, 10, 2), (10_000, 1, 1)])
def test_with_many_clusters_there_are_fewer_members_in_smaller_blocks(clusters: int, members: int, block: int) -> None:
    plan = GSEC(clusters).plan()
    assert (plan.n_members, plan.block_size) == (members, block)


@pytest.mark.parametrize(
    ("clusters", "steps", "inner", "rows"), [(10, 100, 4, 512), (512, 100, 4, 2048), (513, 99, 2, 2048), (1024, 50, 2, 2048), (4000, 25, 2, 8000)]
)
def test_with_many_clusters_the_training_is_shorter(clusters: int, steps: int, inner: int, rows: int) -> None:
    plan = GSEC(clusters).plan()
    assert (plan.steps(10_000), plan.preset.training.inner_steps, plan.batch(10_000)) == (steps, inner, rows)
    assert GSEC(clusters, max_steps=7).plan().steps(10_000) == 7, "an explicit max_steps must be kept"
    revision = METHOD.revision(METHOD.Settings(), clusters)
    assert revision == (2 if clusters > 512 else 1), "the revision is in the fingerprint, so that members of both trainings are not mixed"
    assert GSEC(clusters, preset="published").plan().preset.training.max_steps == 6000


@pytest.mark.parametrize(
    ("preset", "clusters", "rows", "count"),
    [("default", 10, 10_000, 20), ("default", 10, 300, 7), ("default", 600, 9_000, 3), ("default", 500, 600, 1), ("published", 600, 1_000, 3)],
)
def test_small_clusters_have_few_neighbors(preset: str, clusters: int, rows: int, count: int) -> None:
    assert GSEC(clusters, preset=preset).plan().neighbor_count(rows) == count


def test_a_consensus_does_not_depend_on_the_numbering_of_its_clusters(fitted: GSEC) -> None:
    X, S, _ = blobs()
    plan = fitted.plan()
    features = plan.features([X, S], fitted.halves_, fitted.text_weight)
    neighbors = plan.neighbors(features)
    names = np.array([2, 0, 3, 1], np.int32)
    called = replace(fitted.ensemble_, permutations=names[fitted.ensemble_.permutations])
    one, other = (
        plan.consensus(features, neighbors, ensemble).posteriors for ensemble in (replace(fitted.ensemble_, temperature=1.0), replace(called, temperature=1.0))
    )
    assert np.array_equal(one.block(slice(None)), other.block(slice(None))[:, names]), (
        "equal to the last bit, since an interrupted run finds the clusters already renumbered"
    )


def test_the_published_preset_finds_the_blobs_roughly() -> None:
    X, S, truth = blobs()
    estimator = GSEC(4, preset="published", **{**SMALL, "n_members": 1, "max_steps": 60}).fit(X, text=S)
    assert len(estimator.members_) == 1
    assert adjusted_rand_score(truth, estimator.labels_) > 0.3
