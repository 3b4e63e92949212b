"""How much each unit matters: magnitudes, and first-order changes of the loss."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from volax._numerics import promoted, wide
from volax._sharding import alike, whole
from volax.pairs import _layout
from volax.pairs._path_norm import side_norms
from volax.pairs.records import Group, Member, Written


def trained(group: Written) -> tuple[Member, ...]:
    """The parameters that carry the units, each axis once; no running statistics."""
    members = (*group.members, *group.fixed)
    return tuple({(m.path, m.axes): m for m in members}.values())


def path_norms(group: Group, leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Norm of the incoming times norm of the outgoing weights, shape of ``sizes``.

    Of a pair this is the path norm; of any other group what is fixed (the kernel before
    a norm, the gate) counts with the incoming weights. A side that is empty is left
    out.
    """
    incoming = group.producers + (() if group.homogeneous else group.fixed)
    return _product(group, leaves, incoming, group.consumers)


def outgoing_norms(group: Group, leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Norm of the outgoing weights, shape of ``sizes``."""
    return _product(group, leaves, group.consumers)


def taylor(
    group: Group, leaves: Mapping[str, jax.Array], grads: Mapping[str, jax.Array]
) -> jax.Array:
    """How much the loss changes, to first order, without the unit, shape of ``sizes``.

    |sum of g w| over all weights w of the unit (arXiv 1906.10771, equation 8, with the
    sum inside the absolute value).
    """

    def change(member: Member) -> jax.Array:
        w, g = (wide(jnp.asarray(x[member.path])) for x in (leaves, grads))
        dtype = promoted(w.dtype, g.dtype)
        product = w.astype(dtype) * g.astype(dtype)
        return whole(_layout.sums(member, group.sizes, product)).astype(jnp.float32)

    return jnp.abs(functools.reduce(jnp.add, map(change, trained(group))))


def _product(
    group: Group, leaves: Mapping[str, jax.Array], *sides: tuple[Member, ...]
) -> jax.Array:
    norms = [side_norms(s, group.sizes, dict(leaves), shared=True) for s in sides if s]
    return whole(functools.reduce(jnp.multiply, alike(*norms)))
