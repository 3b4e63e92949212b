"""The wall of volumization: what happens to a weight that leaves the box [-V, V]."""

import jax
import jax.numpy as jnp


def wall(
    w: jax.Array, volume: jax.typing.ArrayLike, alpha: jax.typing.ArrayLike
) -> jax.Array:
    r"""Lets weights pass inside the box and reflects, stops or slows them outside.

    $t = w$ for $|w| \le V$, else $t = \mathrm{sign}(w) (V + \alpha (|w| - V))$; for
    $\alpha \le 0$ the result is kept within the box also where the overshoot is larger
    than the box.

    Args:
      w: weights, any shape, floating.
      volume: $V \ge 0$, broadcastable to ``w``; infinity means no wall.
      alpha: restitution in $[-1, 1]$, broadcastable to ``w``: 1 no wall, 0 clipping,
        -1 elastic reflection.

    Returns:
      The weights behind the wall, shape and dtype of ``w``. NaN stays NaN; an infinite
      weight lands at the wall for ``alpha = 0``. Gradients are those of the formula in
      all three arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> wall(jnp.array([0.5, 1.5, -1.5]), 1.0, -0.5).tolist()
      [0.5, 0.75, -0.75]

    References:
      Ziyin et al., `Volumization as a Natural Generalization of Weight Decay
      <https://arxiv.org/abs/2003.11243>`_, 2020.
    """
    volume = jnp.asarray(volume, w.dtype)
    if isinstance(alpha, (int, float)) and alpha == 0:
        return jnp.clip(w, -volume, volume)
    if isinstance(alpha, (int, float)) and alpha == 1:
        return w
    alpha = jnp.asarray(alpha, w.dtype)
    size = jnp.abs(w)
    outside = size > volume
    # Around 0 and around 1 alpha is a small number times the overshoot, so that both
    # values are exact and the derivative by alpha is the overshoot there too.
    over = jnp.where(outside, size - volume, 0)
    share = jnp.where(alpha == 1, alpha - 1, alpha)
    # 0 * inf is NaN: an infinite weight must stop at the wall like any other.
    moved = jnp.where((share == 0) & jnp.isinf(over), 0, share * over)
    behind = jnp.where(alpha == 1, size, volume) + moved
    behind = jnp.where(alpha <= 0, jnp.maximum(behind, -volume), behind)
    return jnp.where(outside, jnp.sign(w) * behind, w)
