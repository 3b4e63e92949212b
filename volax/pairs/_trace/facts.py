"""What is known of one occurrence of a unit: its degree, and where it is zero.

A degree is a linear expression in unknowns (:data:`Row`), one for each :class:`Place`
where the unit's leaf occurs in a parameter. What is known of an occurrence in any other
value is a :class:`Fact`.
"""

import dataclasses
import enum
from fractions import Fraction

from volax.pairs._trace.tape import HowZero, Value
from volax.pairs._trace.terms import Piece, Term


class Zero(enum.IntEnum):
    """What a value is at a unit whose weights are all zero."""

    PLAIN = 0  # any number
    ZERO = 1  # zero
    SINGULAR = 2  # perhaps not even finite


PLAIN, ZERO, SINGULAR = Zero


class Unknown:
    """An unknown of the linear systems: a degree that is not yet known."""


Row = dict[Unknown, Fraction]  # a linear expression: the factor of each unknown


@dataclasses.dataclass(eq=False)
class Place(Unknown):
    """Where a leaf occurs in a parameter: an unknown degree, and a role.

    Attributes:
      path: key path of the parameter.
      axis: the number of the axis.
      piece: the piece of the axis that the leaf is a factor of.
      leaf: the leaf.
      value: the parameter on the tape.
      roles: what its entries are where they meet data: ``producer``, ``bias``,
        ``scale``, ``filter``, ``consumer``; several where it is used in several ways.
    """

    path: str
    axis: int
    piece: Piece
    leaf: Term
    value: Value
    roles: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class Fact:
    """What is known of one occurrence.

    Attributes:
      row: its degree; None fits any degree.
      zero: whether it is zero at a unit whose weights are all zero.
      unfed: whether it is zero at a unit whose producers and biases are zero, but not
        what multiplies the unit, as the scale of a norm or a depthwise kernel does.
      places: the parameters that it is made of while it is still a weight.
    """

    row: Row | None
    zero: Zero = PLAIN
    unfed: Zero = PLAIN
    places: frozenset[Place] = frozenset()


UNSCALED = Fact({})  # data: degree 0
FITS_ANY = Fact(None)  # infinity, which stays what it is at any scale
FITS_ANY_ZERO = Fact(None, ZERO, ZERO)  # the number 0, likewise


def plus(a: Row, b: Row, weight: Fraction) -> Row:
    """``a + weight * b``."""
    out = dict(a)
    for key, value in b.items():
        out[key] = out.get(key, Fraction(0)) + weight * value
        if not out[key]:
            del out[key]
    return out


def zero_of(how: HowZero, states: list[Zero | None]) -> Zero:
    """Whether a result is zero at a unit without weights.

    Args:
      how: what the operation says of it, as in ``Op.zero``.
      states: the same of its operands, None of one that has no part in the entry.

    Returns:
      What the result is at the unit.
    """
    given = [state for state in states if state is not None]
    if SINGULAR in given:
        return SINGULAR
    if how == "singular":
        return SINGULAR if ZERO in given else PLAIN
    if how == "lost" or not given:
        return PLAIN
    if how == "div":
        return SINGULAR if ZERO in states[1:] else states[0] or PLAIN
    if isinstance(how, int):
        return states[how] or PLAIN
    return ZERO if (any if how == "any" else all)(s == ZERO for s in given) else PLAIN
