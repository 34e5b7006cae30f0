import numpy as np
import pytest

from gsec_core import ZeroShot

from ..planted import planted


def test_each_image_gets_the_cluster_of_its_nearest_name() -> None:
    X, nouns, y = planted(b=0.6)
    names = nouns[:80].reshape(8, 10, 64).mean(1)
    found = ZeroShot(8, device="cpu").fit(X, nouns=names)
    clusters = found.ensemble_.permutations[0]
    assert np.array_equal(clusters[y], found.labels_), "with the classes' own names every image must be right, where k-means would find styles"
    assert np.array_equal(found.predict(X), found.labels_)
    order = np.random.default_rng(0).permutation(8)
    other = ZeroShot(8, device="cpu").fit(X, nouns=names[order])
    assert np.array_equal(other.ensemble_.permutations[0][np.argsort(order)][y], other.labels_)


def test_new_images_get_the_nearest_of_many_names() -> None:
    random = np.random.default_rng(0)
    gap, names, images = (random.standard_normal(shape) for shape in ((1, 128), (100, 128), (3000, 128)))
    names = gap + 0.4 * names
    X = 0.3 * names[np.arange(3000) % 100] + images
    found = ZeroShot(100, device="cpu").fit(X[:2000], nouns=names)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True), names / np.linalg.norm(names, axis=1, keepdims=True)
    cosines = (unit[0] @ unit[1].T)[:, np.argsort(found.ensemble_.permutations[0])]
    assert np.array_equal(found.predict(X), cosines.argmax(1))
    scaled = np.exp(100 * (cosines - cosines.max(1, keepdims=True)))
    np.testing.assert_allclose(found.predict_proba(X), scaled / scaled.sum(1, keepdims=True), atol=1e-4)


def test_images_in_another_space_are_compared_with_names_in_the_joint_space() -> None:
    X, nouns, y = planted()
    names = nouns[:80].reshape(8, 10, 64).mean(1)
    noise = np.random.default_rng(0).standard_normal((len(X), 20)).astype(np.float32)
    found = ZeroShot(8, device="cpu").fit(noise, nouns=names, joint=X)
    assert np.array_equal(found.ensemble_.permutations[0][y], found.labels_)
    assert np.array_equal(found.predict(noise, joint=X), found.labels_)


def test_names_must_be_given_and_be_one_per_cluster() -> None:
    X, nouns, _ = planted(n=60)
    with pytest.raises(ValueError, match="ZeroShot needs images and nouns"):
        ZeroShot(8).fit(X)
    with pytest.raises(ValueError, match="nouns: 7 of 8 represent the images, fewer than n_clusters = 8"):
        ZeroShot(8).fit(X, nouns=nouns[[0, 1, 2, 3, 4, 5, 6, 0]])
    with pytest.raises(ValueError, match="nouns: 9 are given, and n_clusters = 8"):
        ZeroShot(8).fit(X, nouns=nouns[:9])
