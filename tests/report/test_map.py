"""The places of images on the map, beside landmarks whose places are known."""

import numpy as np

from gsec_core.clustering.kmeans import unit_rows
from gsec_core.report import layout

RANDOM = np.random.default_rng(0)
LANDMARKS = unit_rows(np.repeat(np.eye(4, 16), 25, axis=0) + 0.1 * RANDOM.standard_normal((100, 16)))
POINTS = (np.repeat([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]], 25, axis=0) + 0.01 * RANDOM.standard_normal((100, 2))).astype(np.float32)


def noise(n: int) -> np.ndarray:
    return layout.noise_of([RANDOM.bytes(16) for _ in range(n)])


def test_images_are_placed_near_their_landmark_but_apart_from_each_other() -> None:
    rows = np.repeat(LANDMARKS, 20, axis=0)
    placed = layout.beside(rows, LANDMARKS, POINTS, noise(len(rows)))
    assert np.linalg.norm(placed - np.repeat(POINTS, 20, axis=0), axis=1).max() < 0.1
    assert len(np.unique(placed, axis=0)) == len(placed)


def test_an_image_between_two_groups_is_placed_in_one_of_them() -> None:
    between = unit_rows(np.eye(4, 16)[[0]] + np.eye(4, 16)[[3]])
    placed = layout.beside(between, LANDMARKS, POINTS, np.zeros((1, 2)))
    assert np.linalg.norm(POINTS - placed, axis=1).min() < 0.05


def test_the_place_of_an_image_does_not_depend_on_other_images() -> None:
    rows, values = LANDMARKS[::3] + np.float32(0.05), noise(34)
    whole = layout.beside(rows, LANDMARKS, POINTS, values)
    np.testing.assert_allclose(layout.beside(rows[10:20], LANDMARKS, POINTS, values[10:20]), whole[10:20], atol=1e-5)


def test_a_single_landmark_or_no_images_can_be_placed() -> None:
    placed = layout.beside(np.repeat(LANDMARKS[:1], 50, axis=0), LANDMARKS[:1], np.full((1, 2), 0.5, np.float32), noise(50))
    assert np.isfinite(placed).all()
    assert 0 < np.ptp(placed) < 0.1
    assert layout.beside(LANDMARKS[:0], LANDMARKS[:1], POINTS[:1], np.empty((0, 2))).shape == (0, 2)
