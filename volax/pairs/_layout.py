"""Per-unit arithmetic on parameters whose units lie as an ``Axis`` says.

The heavy pass over a parameter reduces (or multiplies) along whole axes, which XLA
fuses with its neighbours; what remains is a vector with one entry per index of the
carrying axes, and only that small vector is gathered into units by static indices.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from volax._numerics import wide
from volax._sharding import spread, whole
from volax.pairs.records import Member


def squared_norms(member: Member, sizes: tuple[int, ...], x: jax.Array) -> jax.Array:
    """The sum of squares of each unit's weights, shape ``sizes``, float32 or wider."""
    # Squares of 16-bit numbers overflow.
    return sums(member, sizes, jnp.square(wide(jnp.asarray(x))))


def sums(member: Member, sizes: tuple[int, ...], x: jax.Array) -> jax.Array:
    """The sum of each unit's entries, shape ``sizes``."""
    where, plain = unit_indices(member, sizes, x.shape)
    carrying = {a.axis for a in member.axes}
    rest = tuple(i for i in range(x.ndim) if i not in carrying)
    sums = jnp.sum(x, axis=rest)
    if plain and sums.shape == sizes:
        return sums
    sums = whole(sums).reshape(-1)
    return (sums if plain else sums[where].sum(axis=-1)).reshape(sizes)


def scale(
    member: Member,
    sizes: tuple[int, ...],
    x: jax.Array,
    factors: jax.Array,
    others: float = 1,
) -> jax.Array:
    """Multiplies each unit's weights by its factor, other weights by ``others``."""
    return x * _beside(member, sizes, x, factors, others)


def zero(
    member: Member, sizes: tuple[int, ...], x: jax.Array, alive: jax.Array
) -> jax.Array:
    """Puts exact zeros, even for NaN, where the weights of dead units are."""
    return jnp.where(_beside(member, sizes, x, alive), x, jnp.zeros((), x.dtype))


def _beside(
    member: Member,
    sizes: tuple[int, ...],
    x: jax.Array,
    values: jax.Array,
    others: float = 1,
) -> jax.Array:
    """Each unit's value, or that of others, in a shape that broadcasts against x."""
    where, plain = unit_indices(member, sizes, x.shape)
    carrying = sorted(a.axis for a in member.axes)
    if not plain or values.shape != tuple(x.shape[i] for i in carrying):
        values = whole(values).reshape(-1)
    if not plain:
        units = where.shape[0]
        unit_of = np.full(math.prod(x.shape[i] for i in carrying), units, np.int32)
        unit_of[where] = np.arange(units, dtype=np.int32)[:, None]
        values = jnp.append(values, jnp.asarray(others, values.dtype))[unit_of]
    shape = [n if i in carrying else 1 for i, n in enumerate(x.shape)]
    return spread(values.reshape(shape), x)


def weights_of_unit(member: Member, shape: tuple[int, ...]) -> int:
    """How many entries of a parameter belong to each unit."""
    carrying = {a.axis for a in member.axes}
    rest = [n for i, n in enumerate(shape) if i not in carrying]
    free = [s for a in member.axes for s, u in zip(a.sizes, a.units) if u is None]
    return math.prod(rest) * math.prod(free)


@functools.lru_cache(maxsize=1024)
def unit_indices(
    member: Member, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[np.ndarray, bool]:
    """Flat indices over the carrying axes, ``[units, positions]``; whether trivial."""
    axes = sorted(member.axes, key=lambda a: a.axis)
    free = [s for a in axes for s, u in zip(a.sizes, a.units) if u is None]
    grid, index, seen = len(sizes) + len(free), 0, len(sizes)
    for axis in axes:
        dims = []
        for unit in axis.units:
            dims.append(seen if unit is None else unit)
            seen += unit is None
        spread = np.expand_dims(
            axis.indices().transpose(np.argsort(dims)),
            [k for k in range(grid) if k not in dims],
        )
        index = index * shape[axis.axis] + spread
    index = np.broadcast_to(index, (*sizes, *free)).reshape(math.prod(sizes), -1)
    total = math.prod(shape[a.axis] for a in axes)
    plain = index.shape == (total, 1) and bool((index[:, 0] == np.arange(total)).all())
    return index, plain
