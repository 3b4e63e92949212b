"""Which groups can be cut, and along which axis of a parameter.

A unit may have several indices, such as layer x channel. What becomes shorter is the
axis of the last one, by as many units in every row of the others.
"""

import dataclasses
import math
import types
from collections.abc import Mapping

from volax.pairs.records import Axis, Group, Member, cannot_cut


def uncuttable(
    group: Group, owners: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Why a group can only be cut as a whole, or not at all, if that is so.

    Args:
      group: a fitted group.
      owners: producers whose size a module around them holds, and its name.
      shapes: of the parameters.

    Returns:
      The reason, or ``None``.
    """
    if group.carries:
        return cannot_cut(group.carries)
    last = len(group.sizes) - 1
    for member in group.carriers:
        if len([a for a in member.axes if last in a.units]) != 1:
            return f"{member.path!r} carries the units along several axes"
        if not carries_all(member, group):
            return f"{member.path!r} is shared by several of its layers"
        for axis in member.axes:
            filled = math.prod(axis.sizes) == shapes[member.path][axis.axis]
            if last not in axis.units and not filled:
                return f"{member.path!r} holds more layers than the units have"
        size = len(shapes[member.path]) - 1  # a projection is [..., heads, size]
        if member.path in owners and cut_axis(member, group.sizes).axis == size:
            return f"{owners[member.path]} needs heads of equal size"
    return None


def cuttable(
    what: str,
    groups: Mapping[int, Group],
    shapes: Mapping[str, tuple[int, ...]],
    owners: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[int, Group]:
    """Those of some groups of which single units can be cut.

    Args:
      what: who asks, for errors.
      groups: fitted groups by number.
      shapes: of the parameters, without running statistics.
      owners: as in :func:`uncuttable`.

    Returns:
      The groups, by number.

    Raises:
      ValueError: there are groups, and none can be cut.
    """
    why = {
        k: uncuttable(dataclasses.replace(g, states=()), owners, shapes)
        for k, g in groups.items()
    }
    found = {k: group for k, group in groups.items() if why[k] is None}
    if groups and not found:
        listed = "; ".join(f"{g.name}: {why[k]}" for k, g in groups.items())
        raise ValueError(f"{what}: none of the groups can be cut: {listed}")
    return found


def carries_all(member: Member, group: Group) -> bool:
    """Whether a member has entries of its own for every unit."""
    carried = {u for a in member.axes for u in a.units if u is not None}
    return len(carried) == len(group.sizes)


def cut_axis(member: Member, sizes: tuple[int, ...]) -> Axis:
    """The axis that becomes shorter: that of the unit's last index."""
    last = len(sizes) - 1
    return next(a for a in member.axes if last in a.units)
