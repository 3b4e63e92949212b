r"""Proximal maps of norms over groups: whole rows, columns or filters at once.

A strength that differs inside a group stands for a metric: with strengths $s_i$ the map
minimises $R(z) + \sum_i (z_i - x_i)^2 / (2 s_i)$, which is the plain map where all
$s_i$ are equal. That is the step that an optimizer with a learning rate for each
weight, such as Adam, has to take.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from volax.prox._lp_norms import l1_norm, soft_threshold
from volax.prox._threshold import group_shrinkage
from volax.prox._wide import wide

Axes = int | Sequence[int]


def group_norm(x: jax.Array, axis: Axes) -> jax.Array:
    r"""The sum of the Euclidean norms of all groups, $\sum_g \lVert x_g \rVert$.

    Args:
      x: weights, any shape.
      axis: the axis, or axes, that run inside a group: 0 for the columns of a matrix.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Raises:
      ValueError: an axis that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> float(group_norm(jnp.array([[3.0, 0.0], [4.0, 2.0]]), axis=0))
      7.0
    """
    x, _ = wide(x, 0)
    return jnp.sum(_norm(x, _axes(x, axis, "group_norm")))


def group_soft_threshold(
    x: jax.Array, strength: jax.typing.ArrayLike, axis: Axes
) -> jax.Array:
    r"""Shrinks each group by the same length, the map of the group lasso.

    $x_g \max(0, 1 - \lambda / \lVert x_g \rVert)$: a group whose norm is at most the
    strength becomes exactly zero as a whole.

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``; if it differs inside a group,
        it is a metric and the step length is found by Newton's method.
      axis: the axis, or axes, that run inside a group: 0 for the columns of a matrix,
        (0, 1, 2) for the filters of a convolution.

    Returns:
      The weights, shape and dtype of ``x``. A group with a weight that is not finite
      stays as it is.

    Raises:
      ValueError: an axis that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[6.0, 0.0], [8.0, 1.0]])
      >>> group_soft_threshold(x, 5.0, axis=0).tolist()
      [[3.0, 0.0], [4.0, 0.0]]

    References:
      Yuan and Lin, `Model Selection and Estimation in Regression with Grouped Variables
      <https://doi.org/10.1111/j.1467-9868.2005.00532.x>`_, 2006; Parikh and Boyd,
      `Proximal Algorithms <https://doi.org/10.1561/2400000003>`_, 2014, section 6.5.1.
    """
    y, s = wide(x, strength)
    axes = _axes(y, axis, "group_soft_threshold")
    norm = _norm(y, axes)
    if not _varies(s, y.ndim, axes):
        return (y * group_shrinkage(norm, s)).astype(x.dtype)
    # z_i = x_i n / (n + s_i), where n is the norm of z: sum (x_i / (n + s_i))^2 = 1.
    none = (s == 0) & (y != 0)
    reach = jnp.where(jnp.isinf(s) | (s == 0), 0, y / jnp.where(s > 0, s, 1))
    finite = jnp.isfinite(norm)
    alive = ((_norm(reach, axes) > 1) | jnp.any(none, axes, keepdims=True)) & finite
    most = jnp.max(s, axes, keepdims=True)
    # The norm shrinks by at most the largest strength, and not at all where s_i = 0.
    start = jnp.maximum(norm - most, _norm(jnp.where(none, y, 0), axes))
    start = jnp.where(alive, start, 1)
    n = _secular(jnp.where(alive, y, 1), s, 1.0, start, 1.0, axes, alive)
    kept = jnp.where(alive, n, 0) / jnp.where(
        alive | (s > 0), jnp.where(alive, n, 0) + s, 1
    )
    factor = jnp.where(s == jnp.inf, 0, jnp.where(s == 0, 1, kept))
    return (y * jnp.where(finite, factor, 1)).astype(x.dtype)


def sparse_group_norm(
    x: jax.Array, axis: Axes, ratio: jax.typing.ArrayLike
) -> jax.Array:
    r"""The penalty of the sparse group lasso, between l1 and the norms of groups.

    $\rho \lVert x \rVert_1 + (1 - \rho) \sum_g \lVert x_g \rVert$.

    Args:
      x: weights, any shape.
      axis: the axis, or axes, that run inside a group.
      ratio: $\rho$ in [0, 1].

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Raises:
      ValueError: an axis that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> float(sparse_group_norm(jnp.array([[3.0], [-4.0]]), axis=0, ratio=0.5))
      6.0
    """
    ratio = jnp.asarray(ratio, wide(x, 0)[0].dtype)
    return ratio * l1_norm(x) + (1 - ratio) * group_norm(x, axis)


def sparse_group(
    x: jax.Array,
    strength: jax.typing.ArrayLike,
    axis: Axes,
    ratio: jax.typing.ArrayLike = 0.5,
) -> jax.Array:
    r"""The map of the sparse group lasso: a soft threshold, then that of the groups.

    Removes whole groups, and single weights in those that stay.

    Args:
      x: weights, any shape, floating.
      strength: $\lambda \ge 0$, broadcastable to ``x``; a metric if it differs inside a
        group, as for :func:`group_soft_threshold`.
      axis: the axis, or axes, that run inside a group.
      ratio: $\rho$ in [0, 1]: 1 is l1 alone, 0 the groups alone.

    Returns:
      The weights, shape and dtype of ``x``.

    Raises:
      ValueError: an axis that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[5.5, 1.0], [-6.5, 3.0], [2.0, -1.0]])
      >>> sparse_group(x, 5.0, axis=0).tolist()
      [[1.5, 0.0], [-2.0, 0.0], [0.0, 0.0]]

    References:
      Simon, Friedman, Hastie and Tibshirani, `A Sparse-Group Lasso
      <https://doi.org/10.1080/10618600.2012.681250>`_, 2013, equation 12.
    """
    y, s = wide(x, strength)
    ratio = jnp.asarray(ratio, y.dtype)
    # 0 * inf is NaN: an infinite strength stays one on both halves that have a share.
    first = jnp.where(ratio > 0, s, 0) * jnp.where(ratio > 0, ratio, 1)
    second = jnp.where(ratio < 1, s, 0) * jnp.where(ratio < 1, 1 - ratio, 1)
    thinned = soft_threshold(y, first)
    return group_soft_threshold(thinned, second, axis).astype(x.dtype)


def max_norm_indicator(
    x: jax.Array, axis: Axes, limit: jax.typing.ArrayLike
) -> jax.Array:
    """0 where every group's Euclidean norm is at most the limit, else infinity.

    Args:
      x: weights, any shape.
      axis: the axis, or axes, that run inside a group.
      limit: the largest norm, >= 0.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Raises:
      ValueError: an axis that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> float(max_norm_indicator(jnp.array([[3.0], [4.0]]), axis=0, limit=5.0))
      0.0
    """
    x, limit = wide(x, limit)
    norm = _norm(x, _axes(x, axis, "max_norm_indicator"))
    return jnp.where(jnp.all(norm <= limit), 0, jnp.inf).astype(x.dtype)


def max_norm(
    x: jax.Array,
    strength: jax.typing.ArrayLike = 1.0,
    *,
    axis: Axes,
    limit: jax.typing.ArrayLike,
) -> jax.Array:
    r"""Projects each group onto a ball, $x_g \min(1, c / \lVert x_g \rVert)$.

    Bounds the weights of a unit together, as is done beside dropout.

    Args:
      x: weights, any shape, floating.
      strength: of a constraint it only tells off (0) from on, and the metric if it
        differs inside a group, as for :func:`group_soft_threshold`.
      axis: the axis, or axes, that run inside a group: 0 for the incoming weights of
        each unit of a dense kernel.
      limit: c >= 0.

    Returns:
      The weights, shape and dtype of ``x``; a norm may end an ulp above the limit. A
      group with a weight that is not finite stays as it is.

    Raises:
      ValueError: an axis that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> max_norm(jnp.array([[3.0, 0.5], [4.0, 0.5]]), axis=0, limit=2.5).tolist()
      [[1.5, 0.5], [2.0, 0.5]]

    References:
      Srebro, Rennie and Jaakkola, Maximum-Margin Matrix Factorization, 2004; Srivastava
      et al., `Dropout <https://jmlr.org/papers/v15/srivastava14a.html>`_, 2014, section
      5.1.
    """
    y, s = wide(x, strength)
    limit = jnp.asarray(limit, y.dtype)
    axes = _axes(y, axis, "max_norm")
    norm = _norm(y, axes)
    far = (norm > limit) & jnp.isfinite(norm)
    if not _varies(s, y.ndim, axes):
        factor = jnp.where(far & (s > 0), limit / jnp.where(far, norm, 1), 1)
        return (y * factor).astype(x.dtype)
    # z_i = x_i / (1 + m s_i) with a multiplier m >= 0: sum (x_i / (1 + m s_i))^2 = c^2.
    some = jnp.where(jnp.isinf(s), jnp.finfo(y.dtype).max ** 0.5, s)
    free = _norm(jnp.where(s == 0, y, 0), axes)
    reachable = far & (free < limit)
    m = _secular(
        jnp.where(reachable, y, 1),
        1.0,
        some,
        jnp.zeros_like(norm),
        limit,
        axes,
        reachable,
    )
    factor = jnp.where(reachable, 1 / (1 + jnp.where(reachable, m, 0) * some), 1)
    # Weights without a strength cannot move; the others make as much room as they can.
    factor = jnp.where(far & ~reachable & (s > 0), 0, factor)
    return (y * factor).astype(x.dtype)


_NEWTON = 12  # steps; the tests hold to 1e-12 of the objective


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _secular(x, c, d, start, target, axes, wanted):
    r"""The t >= 0 with $\sum_i (x_i / (c_i + t d_i))^2 = \mathrm{target}^2$ a group.

    The inverse root of the sum is concave and increasing in t, and straight where all
    c and d are equal, so Newton's method from the left never overshoots (Moré and
    Sorensen, Computing a Trust Region Step, 1983). Shapes: x, c, d broadcast together;
    start and the result have the groups' axes at size 1.
    """

    def step(t: jax.Array) -> jax.Array:
        below = c + t * d
        part = jnp.where(below > 0, x / jnp.where(below > 0, below, 1), 0)
        square = jnp.sum(jnp.square(part), axes, keepdims=True)
        slope = jnp.where(below > 0, d / jnp.where(below > 0, below, 1), 0)
        fall = jnp.sum(jnp.square(part) * slope, axes, keepdims=True)
        usable = wanted & (fall > 0)
        square, fall = jnp.where(usable, square, 1), jnp.where(usable, fall, 1)
        root = jnp.sqrt(square)
        held = jax.lax.stop_gradient(square / fall)
        gain = held * (root / jnp.where(usable, target, 1) - 1)
        return jnp.where(usable, jnp.maximum(t + gain, 0), t)

    t = jax.lax.fori_loop(
        0,
        _NEWTON,
        lambda _, t: jax.lax.stop_gradient(step(t)),
        jax.lax.stop_gradient(start),
    )
    return step(
        jax.lax.stop_gradient(t)
    )  # carries the derivative of the implicit function


def _norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Euclidean norm over the axes, which stay with size 1; derivative 0 at 0."""
    square = jnp.sum(jnp.square(x), axes, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), square)


def _axes(x: jax.Array, axis: Axes, name: str) -> tuple[int, ...]:
    """The axes counted from the front."""
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    for k in given:
        if not isinstance(k, int) or not -x.ndim <= k < x.ndim:
            raise ValueError(f"{name}: axis {axis!r} is not there in shape {x.shape}")
    found = tuple(k % x.ndim for k in given)
    if len(set(found)) < len(found) or not found:
        raise ValueError(f"{name}: axis must name different axes, got {axis!r}")
    return found


def _varies(s: jax.Array, ndim: int, axes: tuple[int, ...]) -> bool:
    """Whether a strength has entries of its own inside the groups."""
    shape = (1,) * (ndim - s.ndim) + s.shape
    return any(shape[k] != 1 for k in axes)
