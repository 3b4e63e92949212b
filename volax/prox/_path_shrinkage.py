"""What the penalty of path norms multiplies a unit's outgoing weights by.

Of p-th powers of norms: the proximal map of the norm, and the map of path norms whose
fixed points are those of the penalty where both sides of a unit move.
"""

import functools

import jax
import jax.numpy as jnp

from volax.prox._lp_norms import lp
from volax.prox._threshold import group_shrinkage

Number = float | jax.Array


def is_usable(norms: jax.Array) -> jax.Array:
    """Whether a norm can be divided by."""
    return (norms > 0) & jnp.isfinite(norms)


def power(x: jax.Array, p: Number) -> jax.Array:
    """``x ** p``, without the power where p is the number 1 or -1."""
    if isinstance(p, int | float) and p in (1, -1):
        return x if p == 1 else 1 / x
    return x**p


def shrinkage(norms: jax.Array, step: Number, p: Number) -> jax.Array:
    """The factors of the proximal map of ``step * norm ** p``."""
    if isinstance(p, int | float) and p == 1:
        return group_shrinkage(norms, step)
    return _factor(lp(norms, step, p), norms, step)


def path_shrinkage(
    norms: jax.Array, step: Number, p: Number, incoming: Number | None = None
) -> jax.Array:
    r"""The factors of path norms t whose optimum is that of ``step * t ** p``.

    At ||a|| = 1 a gradient step of length h multiplies ||a|| by (1 + h r) and ||v|| = t
    by (1 + h r / t^2), where r is what the loss loses by either's growth, so that t
    becomes (t + h r / t) (1 + h r). At the optimum of the loss plus s t^p it is
    r = s p t^p. With k = h s, what undoes that step there, and so stands still at the
    optimum and nowhere else, takes t to the z with

        t = (z + k p z^(p-1)) (1 + k p z^p).

    The first factor is the proximal map; for p = 1 the equation is quadratic. With the
    proximal map alone the second factor would be left over: t would grow by h r t in
    each step, against a penalty whose slope falls as 1 / (1 + t^2), and diverge.

    An optimizer may take steps of another length on the incoming weights; ``incoming``
    is then the k of the second factor.
    """
    k = jnp.asarray(step, norms.dtype)
    m = k if incoming is None else jnp.asarray(incoming, norms.dtype)
    if isinstance(p, int | float) and p == 1:
        above = jnp.maximum(norms - k, 0)
        linear = 1 + k * m
        shrunk = 2 * above / (linear + jnp.sqrt(linear * linear + 4 * m * above))
    else:
        shrunk = _solved(norms, k, m, jnp.asarray(p, norms.dtype))
    return _factor(shrunk, norms, k)


@functools.partial(jax.jit, inline=True)  # eager calls would compile the loop each time
def _solved(norms: jax.Array, k: jax.Array, m: jax.Array, p: jax.Array) -> jax.Array:
    """The same for any p, by Newton's method on z = lp(t / (1 + m p z^p), k, p).

    The right side falls as z grows: what is known on which side of z the solution lies
    halves the interval where a step would leave it.
    """

    def image(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        inside = norms / (1 + m * p * z**p)
        return inside, lp(inside, k, p)

    def closer(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, z, high = state
        inside, x = image(z)
        low, high = jnp.where(x > z, z, low), jnp.where(x > z, high, z)
        size = jnp.where(x > 0, x, 1)
        slope = jnp.where(x > 0, 1 / (1 - k * p * (1 - p) * size ** (p - 2)), 0)
        fall = inside * m * p * p * z ** (p - 1) / (1 + m * p * z**p)
        new = z + (x - z) / (1 + slope * fall)
        within = ((new > low) & (new < high)) | (new == z)
        return low, jnp.where(within, new, (low + high) / 2), high

    start = jnp.where(is_usable(norms), norms, 1)
    ends = jnp.zeros_like(start), start, start
    return image(jax.lax.fori_loop(0, _ROUNDS, closer, ends)[1])[1]


_ROUNDS = 12  # each doubles the digits, after a few from far away


def _factor(shrunk: jax.Array, norms: jax.Array, step: Number) -> jax.Array:
    """What takes norms to shrunk ones; 1 where a norm is not finite or step is 0."""
    alive = (norms > 0) & (shrunk > 0)
    factor = jnp.where(alive, shrunk / jnp.where(alive, norms, 1), 0)
    kept = ~jnp.isfinite(norms) | (jnp.asarray(step) <= 0)
    return jnp.where(kept, 1, factor)
