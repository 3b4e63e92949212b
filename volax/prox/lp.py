"""The shrinkage of decoupled decay for the penalty (strength / p) * sum |w|^p."""

import jax
import jax.numpy as jnp


def lp_shrink(
    w: jax.Array,
    reference: jax.Array,
    strength: jax.typing.ArrayLike,
    p: jax.typing.ArrayLike,
    *,
    zeros: str = "sticky",
) -> jax.Array:
    r"""Shrinks each weight by a factor that a reference weight sets.

    $t = w \, |r|^{2-p} / (|r|^{2-p} + k)$, which is $w / (1 + k |r|^{p-2})$, with
    reference weight $r$ and strength $k$ (learning rate times $\lambda$).

    Args:
      w: weights to shrink, any shape, float32 or wider.
      reference: weights that set the factor, shape and dtype of ``w``.
      strength: $k \ge 0$; where it is 0 the weights stay as they are.
      p: the norm, $p \ge 0$. A Python number selects a formula without a general power
        where there is one.
      zeros: the factor where the reference is exactly 0 and $p < 2$: ``"sticky"`` 0
        (the limit), ``"free"`` 1.

    Returns:
      The shrunk weights, shape and dtype of ``w``. A factor below the smallest normal
      number is 0; a non-finite weight affects its own entry only.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.array([1.0, 0.1, 0.0])
      >>> lp_shrink(w, w, 0.1, p=1).round(3).tolist()
      [0.9090000..., 0.05000..., 0.0]

    References:
      Outmezguine and Levi, `Decoupled Weight Decay for Any p Norm
      <https://arxiv.org/abs/2404.10824>`_, 2024, the update of pWD.
    """
    k = jnp.asarray(strength, w.dtype)
    size = jnp.abs(reference)
    if isinstance(p, (int, float)) and p == 2:
        return w / (1 + k)
    if isinstance(p, (int, float)) and p < 2:
        power = abs_power(size, 2 - p)
        whole = power + k
        # Not 0/0 without strength, nor inf/inf for p = 0 and a weight of 1e30.
        factor = jnp.where((k > 0) & (whole < jnp.inf), power / whole, 1)
    else:
        # Holds for p above 2 as well, where |r|^(2-p) is infinite at 0.
        power = abs_power(size, p - 2 if isinstance(p, (int, float)) else p - 2.0)
        factor = jnp.where(k == 0, 1, 1 / (1 + k * power))
    if zeros == "free":
        factor = jnp.where(size == 0, 1, factor)
    return w * factor


def abs_power(size: jax.Array, exponent: jax.typing.ArrayLike) -> jax.Array:
    """``size ** exponent`` for ``size >= 0``; roots and products where they do.

    A general power costs three times an Adam step on CPU, ``sqrt`` next to nothing.
    """
    if isinstance(exponent, (int, float)) and (2 * exponent) in range(9):
        whole, half = divmod(2 * exponent, 2)
        power = jax.lax.integer_pow(size, int(whole)) if whole else jnp.ones_like(size)
        return power * jnp.sqrt(size) if half else power
    return jnp.power(size, jnp.asarray(exponent, size.dtype))
