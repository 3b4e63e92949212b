"""What the numbers of an array tell, read in pieces of a fixed size.

Sums run in float64. A whole float64 copy of a large leaf, and another of its absolute
values, would take several times its memory, so no step holds more than a piece.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from volax._numerics import wide_dtype
from volax.pairs import _layout
from volax.pairs.records import Member

_PIECE = 2**20  # numbers at a time, 8 MiB in float64
_VECTORS, _ITERATIONS = 8, 12  # of the subspace iteration
_BARS = 121  # of the histogram; an odd number, so that zero lies inside a bar


@dataclasses.dataclass(frozen=True)
class Measures:
    """What one pass over an array tells.

    Attributes:
      zeros: how many of its numbers are exactly zero.
      at_wall: how many have at least the size of the wall, or ``None`` without one.
      norm: Euclidean.
      largest: the largest absolute value.
    """

    zeros: int
    at_wall: int | None
    norm: float
    largest: float


def measures(array: np.ndarray, wall: np.ndarray | None) -> Measures:
    """One pass over an array; ``wall`` is the size from which a weight is at it."""
    zeros, at_wall, square, largest = 0, 0, 0.0, 0.0
    # A view; only a slice of its flat iterator is copied.
    walls = np.broadcast_to(np.inf if wall is None else wall, array.shape).flat
    for start, piece in zip(range(0, array.size, _PIECE), _pieces(array)):
        size = np.abs(piece)
        zeros += size.size - int(np.count_nonzero(size))
        if wall is not None:
            reached = size >= walls[start : start + _PIECE]
            at_wall += int(np.count_nonzero(reached))
        square += float(np.dot(size, size))
        largest = max(largest, float(size.max(initial=0.0)), key=_nan_last)
    norm = float(np.sqrt(square))
    return Measures(zeros, None if wall is None else at_wall, norm, largest)


def unit_norms(
    members: Iterable[Member], sizes: tuple[int, ...], arrays: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The joint Euclidean norm of each unit over several members, shape ``sizes``."""
    total = np.zeros(sizes)
    for member in members:
        array = arrays[member.path]
        axes, carrying = [*range(array.ndim)], sorted(a.axis for a in member.axes)
        # einsum casts through a buffer, so there is no copy of the array in float64.
        squares = np.einsum(
            array, axes, array, axes, carrying, dtype=np.float64, casting="unsafe"
        )
        where, _ = _layout.unit_indices(member, sizes, array.shape)
        total += squares.reshape(-1)[where].sum(axis=-1).reshape(sizes)
    return np.sqrt(total)


def stable_rank(array: np.ndarray, norm: float) -> float:
    """Squared Frobenius norm by squared spectral norm, by subspace iteration."""
    if not norm or not np.isfinite(norm):
        return 0.0
    matrix = array.reshape(-1, array.shape[-1])
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    # The first k vectors converge like the ratio of the singular values k + 1 and 1,
    # so several of them converge where the first singular values lie close together.
    basis = np.random.default_rng(0).normal(size=(matrix.shape[1], _VECTORS))
    basis = basis.astype(wide_dtype(matrix.dtype))
    for _ in range(_ITERATIONS):
        # Dividing the image by the norm keeps the sums in range, and copies no rows.
        product = sum(rows.T @ (rows @ basis / norm) for rows in _rows(matrix))
        basis, _ = np.linalg.qr(product)
    image = np.concatenate([rows @ basis / norm for rows in _rows(matrix)])
    return float(1 / np.linalg.norm(image, 2) ** 2)


def histogram(
    arrays: Iterable[np.ndarray], largest: float
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Of all numbers that are not zero and finite; ``largest`` sets the edges."""
    most = largest if largest and np.isfinite(largest) else 1.0
    counts, edges = np.histogram([], _BARS, (-most, most))
    for array in arrays:
        for piece in _pieces(array):
            counts += np.histogram(piece[piece != 0], _BARS, (-most, most))[0]
    return tuple(edges.tolist()), tuple(counts.tolist())


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of an array, flat, a piece at a time, float64."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE].astype(np.float64)


def _rows(matrix: np.ndarray) -> Iterator[np.ndarray]:
    """A matrix in float32 or wider; some rows at a time, where that takes a copy."""
    wide = wide_dtype(matrix.dtype)
    if matrix.dtype == wide:
        yield matrix
        return
    count = max(8 * _PIECE // max(matrix.shape[1], 1), 1)
    for start in range(0, matrix.shape[0], count):
        yield matrix[start : start + count].astype(wide)


def _nan_last(value: float) -> float:
    return np.inf if np.isnan(value) else value
