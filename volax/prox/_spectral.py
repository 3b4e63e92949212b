"""The proximal map of the nuclear norm: a soft threshold of the singular values."""

import jax
import jax.numpy as jnp

from volax.prox._wide import wide


def nuclear_norm(x: jax.Array) -> jax.Array:
    """The sum of the singular values of the last two axes, over all matrices.

    Args:
      x: weights ``[..., m, n]``.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Raises:
      ValueError: ``x`` has fewer than two dimensions.

    Example:
      >>> import jax.numpy as jnp
      >>> float(nuclear_norm(jnp.diag(jnp.array([3.0, -4.0]))))
      7.0
    """
    y, _ = wide(x, 0)
    _check(y, "nuclear_norm")
    return jnp.sum(jnp.linalg.svd(y, compute_uv=False))


def nuclear(x: jax.Array, strength: jax.typing.ArrayLike) -> jax.Array:
    r"""Shrinks the singular values of a matrix, $U \max(0, S - \lambda) V^\top$.

    Small singular values become exactly zero, so the matrix gets a low rank.

    Args:
      x: weights ``[..., m, n]``, floating; the leading axes number matrices.
      strength: $\lambda \ge 0$, a scalar, or ``[..., 1, 1]`` with one for each matrix.

    Returns:
      The weights, shape and dtype of ``x``. Its derivative is that of the map itself,
      defined for equal and for zero singular values too.

    Raises:
      ValueError: ``x`` has fewer than two dimensions, or the strength differs inside a
        matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> nuclear(jnp.diag(jnp.array([3.0, 0.5])), 1.0).round(4).tolist()
      [[2.0, 0.0], [0.0, 0.0]]

    References:
      Cai, Candès and Shen, `A Singular Value Thresholding Algorithm for Matrix
      Completion <https://arxiv.org/abs/0810.3286>`_, 2010, theorem 2.1.
    """
    y, s = wide(x, strength)
    _check(y, "nuclear")
    if any(n != 1 for n in s.shape[-2:]):
        raise ValueError(
            f"nuclear: strength of shape {s.shape} differs inside a matrix of shape "
            f"{y.shape[-2:]}; it must be a scalar or one number a matrix"
        )
    s = jnp.broadcast_to(s, (*y.shape[:-2], 1, 1) if s.ndim else ())
    shrunk = _threshold(y, s.reshape(s.shape[:-1]) if s.ndim else s)
    return jnp.where(s == 0, y, shrunk).astype(x.dtype)


@jax.custom_jvp
def _threshold(x: jax.Array, s: jax.Array) -> jax.Array:
    """Matrices [..., m, n] with singular values shrunk by s, [..., 1] or a scalar."""
    u, size, vt = jnp.linalg.svd(x, full_matrices=False)
    return (u * jnp.maximum(size - s, 0)[..., None, :]) @ vt


@_threshold.defjvp
def _threshold_jvp(primals, tangents):
    r"""The derivative of a function of singular values, by divided differences.

    With $X = U S V^\top$ and $M = U^\top \dot X V$ the result's tangent is
    $U (A \circ \frac{M + M^\top}{2} + B \circ \frac{M - M^\top}{2}) V^\top$ with
    $A_{ij} = \frac{f_i - f_j}{s_i - s_j}$, $B_{ij} = \frac{f_i + f_j}{s_i + s_j}$, and
    f / s times what $\dot X$ has outside the spans of U and V.
    """
    (x, s), (dx, ds) = primals, tangents
    u, size, vt = jnp.linalg.svd(x, full_matrices=False)
    ut, v = jnp.swapaxes(u, -1, -2), jnp.swapaxes(vt, -1, -2)
    f = jnp.maximum(size - s, 0)
    kept = (size > s).astype(x.dtype)
    out = (u * f[..., None, :]) @ vt
    ratio = jnp.where(size > 0, f / jnp.where(size > 0, size, 1), kept)
    m = ut @ dx @ v
    gap, total = _outer(size, jnp.subtract), _outer(size, jnp.add)
    apart = jnp.abs(gap) > jnp.finfo(x.dtype).eps * total
    a = _outer(f, jnp.subtract) / jnp.where(apart, gap, 1)
    a = jnp.where(apart, a, _outer(kept, lambda i, j: (i + j) / 2))
    b = jnp.where(total > 0, _outer(f, jnp.add) / jnp.where(total > 0, total, 1), 0)
    mt = jnp.swapaxes(m, -1, -2)
    moved = a * (m + mt) / 2 + b * (m - mt) / 2
    right, left = dx @ v, ut @ dx
    out_dot = u @ moved @ vt
    out_dot += ((right - u @ m) * ratio[..., None, :]) @ vt
    out_dot += (u * ratio[..., None, :]) @ (left - m @ vt)
    out_dot -= (u * (kept * ds)[..., None, :]) @ vt
    return out, out_dot


def _outer(x: jax.Array, op) -> jax.Array:
    return op(x[..., :, None], x[..., None, :])


def _check(x: jax.Array, name: str) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name}: x must be a matrix, got shape {x.shape}")
