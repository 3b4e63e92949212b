"""The path norm of each unit, ||a|| ||v|| (arXiv 2210.03069)."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax

from volax import _paths
from volax._sharding import alike, pinned
from volax.pairs import _layout
from volax.pairs.records import Group, Member, Written, as_groups


def side_norms(
    members: Iterable[Member],
    sizes: tuple[int, ...],
    leaves: dict[str, jax.Array],
    *,
    shared: bool = False,
) -> jax.Array:
    """The joint Euclidean norm of each unit over several members, shape ``sizes``.

    ``shared`` is a norm that further parameters use, so that none of them hands its
    sharding on to another through it.
    """
    squares = [_layout.squared_norms(m, sizes, leaves[m.path]) for m in members]
    shared = shared or len(squares) > 1
    # Each sum may be laid out as its parameter is, so pin it before they are added.
    squares = [pinned(square) for square in squares] if shared else squares
    total = functools.reduce(jnp.add, alike(*squares))
    # The root has no derivative at 0; of a dead unit's norm 0 is one.
    is_zero = total == 0
    norms = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, total)))
    return pinned(norms) if shared else norms


def path_norm(
    params: optax.Params, pairs: Written | Iterable[Written]
) -> tuple[jax.Array, ...]:
    r"""The path norm of every unit of every pair.

    Per unit $\lVert a \rVert \cdot \lVert v \rVert$ with $a$ its incoming weights
    (without the bias) and $v$ its outgoing weights; the sum over the units is the
    penalty that :func:`volax.path_prox` minimises. A dead unit has path norm 0 (and so
    has, in float32, one whose weights are all below about 1e-22: squares underflow).
    Inside a ``shard_map`` the norms are local, those of the parts that a device holds.

    Args:
      params: the parameters, or a tree that holds them.
      pairs: one pair or several, from :func:`volax.pair` or ``find_pairs``.

    Returns:
      For each pair an array of its ``sizes`` (one entry a unit), float32 or wider.

    Raises:
      ValueError: a pair does not fit the tree.

    Example:
      >>> import jax.numpy as jnp, volax
      >>> params = {"a": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "v": jnp.ones((2, 1))}
      >>> path_norm(params, volax.pair("a", "v"))[0].tolist()
      [5.0, 1.0]

    References:
      Yang et al., `A Better Way to Decay <https://arxiv.org/abs/2210.03069>`_, 2022.
    """
    leaves = _paths.named_leaves(params)
    given = as_groups(pairs, "path_norm")
    # What stays as it is when the units are rescaled may lie in other trees.
    bare = [dataclasses.replace(group, fixed=(), states=()) for group in given]
    groups = [group.fit(leaves, "path_norm") for group in bare]
    return tuple(path_norms(g, leaves) for g in groups)


def path_norms(group: Group, leaves: dict[str, jax.Array]) -> jax.Array:
    """The path norm of each unit of a fitted pair, shape of its ``sizes``."""
    incoming = side_norms(group.producers, group.sizes, leaves, shared=True)
    outgoing = side_norms(group.consumers, group.sizes, leaves)
    return functools.reduce(jnp.multiply, alike(incoming, outgoing))
