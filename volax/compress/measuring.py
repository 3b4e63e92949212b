"""What one pass over an array tells: its stable rank, and the histogram of all."""

from collections.abc import Mapping

import numpy as np


def stable_rank(array: np.ndarray, norm: float) -> float:
    """Squared Frobenius norm by squared spectral norm, by subspace iteration."""
    if not norm or not np.isfinite(norm):
        return 0.0
    matrix = (array.reshape(-1, array.shape[-1]) / norm).astype(np.float32)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    # Eight vectors converge where the first singular values lie close together.
    basis = np.random.default_rng(0).normal(size=(matrix.shape[1], 8))
    basis = basis.astype(np.float32)
    for _ in range(12):
        basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    return float(1 / np.linalg.norm(matrix @ basis, 2) ** 2)


def histogram(
    arrays: Mapping[str, np.ndarray],
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Of the weights of all matrices that are not zero."""
    matrices = [a for a in arrays.values() if a.ndim > 1] or list(arrays.values())
    most = max((float(np.abs(a).max(initial=0)) for a in matrices), default=0.0)
    edges = np.linspace(-most or -1.0, most or 1.0, 122)
    counts = np.zeros(121, np.int64)
    for a in matrices:
        counts += np.histogram(a[a != 0].astype(np.float64), edges)[0]
    return tuple(edges.tolist()), tuple(counts.tolist())
