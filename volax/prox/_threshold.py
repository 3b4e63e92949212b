"""Thresholds: the proximal maps that make exact zeros."""

import jax
import jax.numpy as jnp


def snap(w: jax.Array, threshold: jax.typing.ArrayLike) -> jax.Array:
    r"""Sets weights below a threshold to zero, $w \cdot 1[|w| \ge \theta]$.

    Args:
      w: weights, any shape, floating.
      threshold: $\theta \ge 0$, broadcastable to ``w``.

    Returns:
      The weights, shape and dtype of ``w``; NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> snap(jnp.array([0.5, -0.01]), 0.1).tolist()
      [0.5, 0.0]

    References:
      Blumensath and Davies, Iterative Thresholding for Sparse Approximations, 2008,
      equation 2.2.
    """
    return jnp.where(jnp.abs(w) < jnp.asarray(threshold, w.dtype), 0, w)


def group_shrinkage(norm: jax.Array, threshold: jax.typing.ArrayLike) -> jax.Array:
    r"""The factor of the group soft threshold, $\max(0, 1 - \theta / \lVert v \rVert)$.

    The proximal map of $\theta \lVert v \rVert_2$ multiplies each group $v$ by it.

    Args:
      norm: Euclidean norm of each group, any shape.
      threshold: $\theta \ge 0$, broadcastable to ``norm``.

    Returns:
      Factors in [0, 1], exactly 0 for ``norm <= threshold`` (also at ``norm = 0``,
      unless the threshold is 0); 1 where the norm is not finite, so that one bad
      weight does not spread over its group.

    Example:
      >>> import jax.numpy as jnp
      >>> group_shrinkage(jnp.array([4.0, 1.0, 0.0]), 1.0).tolist()
      [0.75, 0.0, 0.0]

    References:
      Parikh and Boyd, Proximal Algorithms, 2014, section 6.5.1.
    """
    threshold = jnp.asarray(threshold, norm.dtype)
    shrinks = (norm > threshold) & (threshold >= 0)
    shrunk = 1 - threshold / jnp.where(shrinks, norm, 1)
    kept = ~jnp.isfinite(norm) | (threshold <= 0)
    return jnp.where(shrinks, shrunk, kept.astype(norm.dtype))
