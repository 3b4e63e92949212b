"""The linear system of one unit: is there a producer that can carry the scale?

A pair is a solution with exactly one producer at +1, every consumer at -1, biases at
+1 or 0 and scales at 0. Contracting producers are asked first, then per-unit scales
(the gamma of a batch norm, behind which no kernel's scale is felt), then filters (a
depthwise kernel). Two candidates of one kind are ambiguous.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from fractions import Fraction

from volax.pairs._trace.facts import Place, Row, Unknown, plus
from volax.pairs._trace.tape import Op

TIERS = ("producer", "scale", "filter")  # the roles of candidates, in this order


@dataclasses.dataclass(frozen=True)
class Solution:
    """The degrees of a pair by place, or why there is none."""

    degrees: dict[Place, int] | None
    why: str = ""
    op: Op | None = None


def solve(places: Sequence[Place], rows: Sequence[tuple[Row, Op]]) -> Solution:
    """Looks for the one producer of a pair.

    Args:
      places: the places of the unit's leaf, each with its one role.
      rows: expressions in the places (and other unknowns) that have to be zero.

    Returns:
      The degrees, or the operation that stands against the first candidate.
    """
    refusal = None
    # The first equation that fails is the reason. That an operation is not homogeneous
    # (``zero``) says more than that two degrees differ, so these stand in front.
    rows = sorted(rows, key=lambda row: row[1].law != "zero")
    for tier in TIERS:
        found = []
        members = [p for p in places if _role(p) == tier]
        alone = [[p] for p in members]
        # A kernel ``[in, 2 * units]`` may make the same units in two places, which then
        # scale together; this is asked only where no single place is enough.
        by_path: dict[str, list[Place]] = {}
        for p in members:
            by_path.setdefault(p.path, []).append(p)
        whole = [group for group in by_path.values() if len(group) > 1]
        for candidates in (alone, whole):
            for group in candidates:
                degrees, op = _try(places, rows, set(group))
                if degrees is not None:
                    found.append((group, degrees))
                elif refusal is None:
                    refusal = op
            if found:
                break
        if len(found) > 1:
            names = ", ".join(sorted({g[0].path for g, _ in found}))
            return Solution(None, f"ambiguous: each of {names} could carry the scale")
        if found:
            return Solution(found[0][1])
    name = getattr(refusal, "name", "")
    if refusal is not None and refusal.law == "zero":
        return Solution(None, f"{name} is not positively homogeneous", refusal)
    makers = {p for p in places if _role(p) == "producer"}
    if len({p.path for p in makers}) > 1 and _try(places, rows, makers)[0] is not None:
        return Solution(None, "its producers can only be rescaled together", refusal)
    why = f"no single producer can be rescaled for free, because of {name}"
    return Solution(None, why, refusal)


def _role(place: Place) -> str:
    """The one role of a place."""
    return next(iter(place.roles))


def _try(
    places: Iterable[Place], rows: Iterable[tuple[Row, Op]], chosen: set[Place]
) -> tuple[dict[Place, int] | None, Op | None]:
    """The degrees with the chosen places at +1, or the operation against them.

    Consumers are at -1, other producers, scales and filters at 0; the equations say
    what biases have, +1 where they are added to the units and 0 behind the scale.
    """
    fixed = {}
    for place in places:
        role = _role(place)
        if role == "consumer":
            fixed[place] = Fraction(-1)
        elif role != "bias":
            fixed[place] = Fraction(1 if place in chosen else 0)
    system = _System(fixed)
    for row, op in rows:
        if not system.add(row):
            return None, op
    degrees = {}
    for place in places:
        degree = system.value(place)
        if _role(place) == "bias" and degree not in (0, 1):
            return None, _bias_op(place, rows)
        degrees[place] = int(degree)
    return degrees, None


def _bias_op(place: Place, rows: Iterable[tuple[Row, Op]]) -> Op | None:
    """The first operation that asks something of a bias."""
    return next((op for row, op in rows if place in row), None)


_ONE = Unknown()  # its factor is the constant term of a row


class _System:
    """Gaussian elimination in exact fractions, one equation at a time.

    Attributes:
      fixed: unknowns whose value is given.
      pivots: unknowns that are solved for, each as a row in those that are free.
    """

    def __init__(self, fixed: dict[Place, Fraction]):
        self.fixed: dict[Unknown, Fraction] = {**fixed}
        self.pivots: dict[Unknown, Row] = {}

    def _reduce(self, row: Row) -> Row:
        """The same expression in free unknowns and the constant term alone."""
        out: Row = {}
        for key, weight in row.items():
            if key in self.fixed:
                out = plus(out, {_ONE: Fraction(1)}, weight * self.fixed[key])
            elif key in self.pivots:
                out = plus(out, self.pivots[key], weight)
            else:
                out = plus(out, {key: Fraction(1)}, weight)
        return out

    def add(self, row: Row) -> bool:
        """Adds ``row = 0``; False if it contradicts the rows before."""
        rest = self._reduce(row)
        pivot = next((key for key in rest if key is not _ONE), None)
        if pivot is None:
            return not rest
        weight = rest.pop(pivot)
        solved = {key: -value / weight for key, value in rest.items()}
        for key, known in self.pivots.items():
            if pivot in known:
                factor = known.pop(pivot)
                self.pivots[key] = plus(known, solved, factor)
        self.pivots[pivot] = solved
        return True

    def value(self, key: Unknown) -> Fraction:
        """The value of an unknown, with what stays free at 0."""
        return self._reduce({key: Fraction(1)}).get(_ONE, Fraction(0))
