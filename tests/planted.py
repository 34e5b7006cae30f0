"""Planted data on which simple methods fail: images alone show styles, nouns show classes, and no noun lies along a style."""

import numpy as np
from numpy.typing import NDArray

Planted = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def planted(n: int = 1200, classes: int = 8, styles: int = 6, b: float = 0.6, nouns: int = 400, per_class: int = 10, seed: int = 0) -> Planted:
    """Images (n, 64), nouns (nouns, 64) in the same space but shifted by a gap, and the classes (n,) of the images."""
    random = np.random.default_rng(seed)
    U = np.linalg.qr(random.standard_normal((64, 64)))[0]
    E, F, gap, R = U[:classes], U[classes : classes + styles], U[classes + styles], U[classes + styles + 1 :]
    y, style = np.arange(n) % classes, random.integers(styles, size=n)
    noise = len(R) ** 0.5
    X = _unit(0.6 * E[y] + b * F[style] + 0.5 * random.standard_normal((n, len(R))) @ R / noise)
    about = E[np.repeat(np.arange(classes), per_class)] + 0.3 * random.standard_normal((classes * per_class, len(R))) @ R / noise
    other = random.standard_normal((nouns - classes * per_class, len(R))) @ R / noise
    V = _unit(_unit(np.vstack([about, other])) + 0.5 * gap)
    return X.astype(np.float32), V.astype(np.float32), y


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
