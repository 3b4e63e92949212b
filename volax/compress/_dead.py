"""Which of the units that nothing needs can be cut, and what stays in their place."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from volax.pairs import _layout
from volax.pairs.records import Axis, Group, Member

Leaves = Mapping[str, np.ndarray]

UNFED = "nothing feeds it, but zero is not known to stay zero up to its consumers"
CONSTANT = "its incoming weights are zero, but its bias makes it a constant"


@dataclasses.dataclass(frozen=True)
class Kept:
    """Units that could have gone but stay, and why.

    Attributes:
      group: the name of the group.
      units: numbers of the units (flat, where a unit has several indices).
      reason: why.
    """

    group: str
    units: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        count = len(self.units)
        return f"{self.group}: {count} unit{'s' * (count != 1)} kept: {self.reason}"


def positions(member: Member, units: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which entries of a parameter belong to the chosen units.

    Args:
      member: the parameter's record.
      units: the choice, bool of the group's ``sizes``.
      shape: of the parameter.

    Returns:
      A bool array that broadcasts against the parameter.

    Raises:
      ValueError: an entry belongs to chosen and to other units.
    """
    where, _ = _layout.unit_indices(member, units.shape, shape)
    carrying = {a.axis for a in member.axes}
    spread = [n if i in carrying else 1 for i, n in enumerate(shape)]
    inside, outside = np.zeros((2, math.prod(spread)), bool)
    inside[where[units.reshape(-1)]] = True
    outside[where[~units.reshape(-1)]] = True
    if (inside & outside).any():
        raise ValueError(
            f"{member.path!r} is shared by units of which only some are removed"
        )
    return inside.reshape(spread)


def rounded(alive: np.ndarray, round_to: int) -> np.ndarray:
    """The units that stay: the same count for all leading indices, rounded up.

    Args:
      alive: the units that must stay, bool of the group's ``sizes``.
      round_to: the count is a multiple of this, or all units.

    Returns:
      ``alive`` with the first of the other units added.
    """
    total = alive.shape[-1]
    most = max(int(alive.sum(axis=-1).max(initial=0)), 1)
    count = min(math.ceil(most / round_to) * round_to, total)
    rows = alive.reshape(-1, total).copy()
    for row in rows:
        row[np.flatnonzero(~row)[: max(count - int(row.sum()), 0)]] = True
    return rows.reshape(alive.shape)


_PROOF = "; check=(fn, small_fn, inputs) would prove it"


def unsafe(group: Group, leaves: Mapping[str, np.ndarray]) -> str | None:
    """Why cutting a group might change a constant of the program, if it might.

    A traced group knows: its program was traced with fewer units. A hand-written one
    knows no program.

    Args:
      group: a fitted group.
      leaves: the parameters by key path.

    Returns:
      The reason, or ``None``.
    """
    if group.constants:
        return f"{group.constants[0]}{_PROOF}"
    if group.keeps_zero is not None:
        return None
    feeding = [m for m in group.carriers if m not in group.consumers]
    for member in feeding:
        for axis in member.axes:
            if not _alone(axis, leaves[member.path].shape):
                return (
                    f"the units are a part of axis {axis.axis} of {member.path!r}, so "
                    f"the program may hold their number{_PROOF}"
                )
    return None


def _alone(axis: Axis, shape: tuple[int, ...]) -> bool:
    """Whether one index of the units fills the axis."""
    return (
        axis.offset == 0 and axis.sizes == (shape[axis.axis],) and axis.units != (None,)
    )
