"""The shrinkage of decoupled decay for the penalty (strength / p) * sum |w|^p."""

import jax
import jax.numpy as jnp

from volax.prox.power import retention


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
      The shrunk weights, shape and dtype of ``w``. A subnormal reference counts as 0; a
      non-finite weight affects its own entry only.

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
    if isinstance(p, (int, float)) and p == 2:
        return w / (1 + k)
    size = jnp.abs(reference)
    factor = retention(size, p, k)
    p = jnp.asarray(p, w.dtype)
    at_zero = jnp.where(p == 2, 1 / (1 + k), 1)
    if zeros == "sticky":
        at_zero = jnp.where((p < 2) & (k > 0), 0, at_zero)
    return w * jnp.where(size < jnp.finfo(w.dtype).tiny, at_zero, factor)
