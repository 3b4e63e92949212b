"""The shrinkage of decoupled decay for the penalty (strength / p) * sum |w|^p."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from volax.prox._power import retention, retention_slopes


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
      non-finite weight affects its own entry only. Gradients are those of the formula
      in all four arguments; where the reference is 0, which is a kink, those in the
      reference and in p are 0.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.array([0.75, 0.25, 0.0])
      >>> lp_shrink(w, w, 0.25, p=1).tolist()
      [0.5625, 0.125, 0.0]

    References:
      Outmezguine and Levi, `Decoupled Weight Decay for Any p Norm
      <https://arxiv.org/abs/2404.10824>`_, 2024, the update of pWD.
    """
    k = jnp.asarray(strength, w.dtype)
    known = p if isinstance(p, (int, float)) else None
    if known == 2:
        return w / (1 + k)
    return _shrink(known, zeros, w, reference, k, jnp.asarray(p, w.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _shrink(
    known: float | None,
    zeros: str,
    w: jax.Array,
    reference: jax.Array,
    k: jax.Array,
    p: jax.Array,
) -> jax.Array:
    """The shrunk weights; ``known`` is p where it is a Python number."""
    size = jnp.abs(reference)
    factor = retention(size, p if known is None else known, k)
    is_zero = size < jnp.finfo(w.dtype).tiny
    return w * jnp.where(is_zero, _at_zero(zeros, k, p), factor)


@_shrink.defjvp
def _shrink_jvp(
    known: float | None, zeros: str, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    # The factor is computed on bits, which have no derivative. XLA drops what the
    # formula spends on tangents that nobody asks for.
    w, reference, k, p = primals
    dw, d_reference, dk, dp = tangents
    size = jnp.abs(reference)
    is_zero = size < jnp.finfo(w.dtype).tiny
    factor, by_size, by_k, by_p = retention_slopes(jnp.where(is_zero, 1, size), p, k)
    at_zero = _at_zero(zeros, k, p)
    change = jnp.where(is_zero, 0, by_size) * jnp.sign(reference) * d_reference
    change += jnp.where(is_zero, jnp.where(p == 2, -jnp.square(at_zero), 0), by_k) * dk
    if known is None:
        change += jnp.where(is_zero, 0, by_p) * dp
    out = _shrink(known, zeros, w, reference, k, p)
    return out, dw * jnp.where(is_zero, at_zero, factor) + w * change


def _at_zero(zeros: str, k: jax.Array, p: jax.Array) -> jax.Array:
    """The factor where the reference is 0, shape of ``k`` and ``p``."""
    at_zero = jnp.where(p == 2, 1 / (1 + k), 1)
    if zeros == "sticky":
        at_zero = jnp.where((p < 2) & (k > 0), 0, at_zero)
    return at_zero
