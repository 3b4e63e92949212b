"""Which units nothing needs, as their weights say: on NumPy arrays, or traced.

A unit is dead for one of two reasons: nothing reads it (all its outgoing weights are
zero), or nothing feeds it (all its incoming weights and biases are zero, and zero stays
zero on the way to the consumers). A dead unit takes its weights along, which may leave
its neighbours unread or unfed, so the judgement is repeated.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from volax._sharding import alike, whole
from volax.pairs import _layout
from volax.pairs._cuts import carries_all
from volax.pairs.records import Group, Member, Written


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a group's weights say of its units; bool arrays of the group's ``sizes``.

    Attributes:
      unread: all outgoing weights are zero.
      unfed: all incoming weights and biases are zero.
      constant: all incoming weights are zero, a bias is not.
    """

    unread: Any
    unfed: Any
    constant: Any

    def dead(self, group: Group) -> Any:
        """The units that can go without changing the function."""
        return self.unread | self.unfed if keeps_zero(group) else self.unread


def judge(group: Group, leaves: Mapping[str, Any]) -> Judgement:
    """Judges every unit of a fitted group; of NumPy arrays in NumPy, else in JAX."""
    # Counted, not summed in squares: the square of a small weight underflows to 0.
    sides = (group.consumers, group.producers, group.biases)
    read, fed, biased = (_any(side, group, leaves) for side in sides)
    if not all(isinstance(x, np.ndarray) for x in (read, fed, biased)):
        read, fed, biased = alike(*map(jnp.asarray, (read, fed, biased)))
    return Judgement(~read, ~(fed | biased), ~fed & biased & read)


def keeps_zero(group: Written) -> bool:
    """Whether a unit that nothing feeds is zero where it is read."""
    if group.states and not group.homogeneous:
        return False  # a running mean is subtracted from what is zero
    if group.keeps_zero is not None:
        return group.keeps_zero
    return group.homogeneous and not group.states


def _any(members: tuple[Member, ...], group: Group, leaves: Mapping[str, Any]) -> Any:
    """Whether a unit has a weight other than zero in any of the members."""
    found: Any = np.zeros(group.sizes, bool)
    for member in members:
        leaf = leaves[member.path]
        if not isinstance(leaf, jax.Array):
            leaf = np.asarray(leaf)
        carrying = {a.axis for a in member.axes}
        rest = tuple(i for i in range(leaf.ndim) if i not in carrying)
        where, _ = _layout.unit_indices(member, group.sizes, leaf.shape)
        used = _uses(leaf, rest).reshape(-1)
        found = found | used[where].any(axis=-1).reshape(group.sizes)
    return found


def _uses(leaf: Any, axes: tuple[int, ...]) -> Any:
    """Whether there is an entry other than zero along the axes."""
    if not isinstance(leaf, jax.Array):
        return (leaf != 0).any(axis=axes)
    if leaf.dtype == bool:
        return whole(leaf.any(axis=axes))
    # XLA fuses the maximum; for any() it writes the comparisons to memory first.
    return whole(jnp.max(jnp.abs(leaf), axis=axes, initial=0) != 0)


def dead_units(
    groups: Sequence[Group], leaves: Mapping[str, jax.Array]
) -> tuple[jax.Array, ...]:
    """The units that ``compact`` finds dead, inside ``jit`` as well.

    Args:
      groups: fitted groups.
      leaves: their parameters by key path, running statistics left out.

    Returns:
      For each group bools of its ``sizes``.
    """
    judged = tuple(jnp.asarray(judge(g, leaves).dead(g)) for g in groups)
    shared = Counter(m.path for g in groups for m in g.carriers)
    if all(shared[m.path] == 1 for g in groups for m in g.carriers):
        return judged  # no weights that a unit takes along belong to another
    # Further passes read a byte a weight.
    paths = {m.path for g in groups for m in (*g.consumers, *g.producers, *g.biases)}
    used = {path: leaves[path] != 0 for path in paths}

    def again(carry: Any) -> Any:
        dead, _ = carry
        left = dict(used)
        for group, gone in zip(groups, dead):
            for m in group.carriers:
                if m.path in left and carries_all(m, group):
                    left[m.path] = _layout.scale(m, group.sizes, left[m.path], ~gone)
        new = tuple(
            d | judge(group, left).dead(group) for group, d in zip(groups, dead)
        )
        changed = [(n != d).any() for n, d in zip(new, dead)]
        return new, jnp.stack(changed).any()

    found = jnp.stack([gone.any() for gone in judged]).any()
    return jax.lax.while_loop(lambda carry: carry[1], again, (judged, found))[0]
