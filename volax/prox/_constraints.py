"""Projections of single weights: maps of a constraint, whose strength is off or on."""

import jax
import jax.numpy as jnp

from volax.prox._wide import wide


def box_indicator(
    x: jax.Array, low: jax.typing.ArrayLike, high: jax.typing.ArrayLike
) -> jax.Array:
    """0 where every weight lies in [low, high], else infinity.

    Args:
      x: weights, any shape.
      low: lower bounds, broadcastable to ``x``.
      high: upper bounds, broadcastable to ``x``.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> float(box_indicator(jnp.array([0.0, 2.0]), 0.0, 1.0))
      inf
    """
    x, low = wide(x, low)
    inside = (x >= low) & (x <= jnp.asarray(high, x.dtype))
    return jnp.where(jnp.all(inside), 0, jnp.inf).astype(x.dtype)


def box(
    x: jax.Array,
    strength: jax.typing.ArrayLike = 1.0,
    *,
    low: jax.typing.ArrayLike,
    high: jax.typing.ArrayLike,
) -> jax.Array:
    """Clips every weight to [low, high].

    For a box around zero that holds without an ulp of slack, with walls that reflect,
    see :func:`volax.volumize`.

    Args:
      x: weights, any shape, floating.
      strength: >= 0, broadcastable to ``x``; of a constraint it only tells off (0) from
        on.
      low: lower bounds, broadcastable to ``x``.
      high: upper bounds, broadcastable to ``x``.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> box(jnp.array([-3.0, 0.5]), low=-1.0, high=1.0).tolist()
      [-1.0, 0.5]

    References:
      Parikh and Boyd, `Proximal Algorithms
      <https://doi.org/10.1561/2400000003>`_, 2014, section 6.2.4.
    """
    y, s = wide(x, strength)
    inside = jnp.clip(y, jnp.asarray(low, y.dtype), jnp.asarray(high, y.dtype))
    return jnp.where(s > 0, inside, y).astype(x.dtype)


def nonnegative_indicator(x: jax.Array) -> jax.Array:
    """0 where no weight is negative, else infinity.

    Args:
      x: weights, any shape.

    Returns:
      A scalar in the dtype of ``x``, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> float(nonnegative_indicator(jnp.array([0.0, 2.0])))
      0.0
    """
    x, _ = wide(x, 0)
    return jnp.where(jnp.all(x >= 0), 0, jnp.inf).astype(x.dtype)


def nonnegative(x: jax.Array, strength: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """Sets negative weights to zero.

    Args:
      x: weights, any shape, floating.
      strength: >= 0, broadcastable to ``x``; of a constraint it only tells off (0) from
        on.

    Returns:
      The weights, shape and dtype of ``x``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> nonnegative(jnp.array([-3.0, 0.5])).tolist()
      [0.0, 0.5]

    References:
      Parikh and Boyd, `Proximal Algorithms
      <https://doi.org/10.1561/2400000003>`_, 2014, section 6.2.4.
    """
    y, s = wide(x, strength)
    return jnp.where((y < 0) & (s > 0), 0, y).astype(x.dtype)
