"""One unit of a program: what is found out about it, and the record that it becomes."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from volax.pairs._trace.compat import source_line
from volax.pairs._trace.degrees import Degrees
from volax.pairs._trace.facts import ZERO, Place
from volax.pairs._trace.members import members
from volax.pairs._trace.solve import Solution
from volax.pairs._trace.tape import WEIGHT, Op, Value
from volax.pairs._trace.terms import Poison, Term
from volax.pairs.records import Group, Member

# Operations that change no number, and are not listed in ``Group.through``.
_LAYOUT = {
    "broadcast_in_dim",
    "convert_element_type",
    "squeeze",
    "copy",
    "transpose",
    "scan",
    "device_put",
    "name",
    "optimization_barrier",
    "sharding_constraint",
    "iota",
}


@dataclasses.dataclass
class Unit:
    """One unit in the making.

    Attributes:
      leaf: the leaf that numbers its units.
      places: where the leaf occurs in parameters.
      joined: further leaves that number the units, as heads x channels do.
      solution: the degrees of a pair, or why it is none.
      refused: why it is no group, or ``None``.
    """

    leaf: Term
    places: list[Place]
    joined: frozenset[Term] = frozenset()
    solution: Solution = dataclasses.field(default_factory=lambda: Solution(None))
    refused: Poison | None = None

    def having(self, role: str) -> list[Place]:
        """The places of a role."""
        return [p for p in self.places if role in p.roles]


def record(
    unit: Unit,
    units: tuple[Term, ...],
    degrees: Degrees,
    states: Sequence[tuple[str, Value]],
    carries: tuple[str, ...],
) -> Group:
    """The group of a unit, a pair if its solution says so.

    Args:
      unit: the unit, solved and not refused.
      units: the leaves that number it, in the order of ``Group.sizes``.
      degrees: how every value scales.
      states: the inputs that may be cut, with their paths.
      carries: names of arrays along the units that cannot be cut.

    Returns:
      The record.
    """
    solved = unit.solution.degrees
    sizes = tuple(leaf.size for leaf in units)
    made: dict[str, list[Member]] = defaultdict(list)
    by_role: dict[tuple[str, str, int, int, str], list[Place]] = {}
    for place in unit.places:
        for role in sorted(place.roles):
            degree = 0 if solved is None else solved[place]
            field, role = _field(role, degree, solved is not None)
            key = (field, role, degree, place.axis, place.path)
            by_role.setdefault(key, []).append(place)
    for (field, role, degree, *_), places in by_role.items():
        made[field] += members(places, role, degree, units, degrees)
    made["states"] = _states(unit, units, degrees, states)
    sides = {k: tuple(v) for k, v in made.items()}
    uses = degrees.uses[unit.leaf]
    note, source = "", None
    if solved is None:
        note, source = unit.solution.why, _line(unit.solution.op)
    else:
        note = f"carries {', '.join(carries)}" if carries else ""
    # Units whose producers and biases are zero have to be zero where they are read.
    # Those of a pair scale by c with all members of degree 1, so ``zero`` tells what
    # they are at c = 0. In other groups what multiplies the units keeps its numbers,
    # which ``unfed`` takes into account. Behind statistics a zero kernel ``w`` gives
    # ``(x @ w - mean) * gamma = -mean * gamma``, so zero is only kept in a pair,
    # whose producer is gamma.
    found = (u.units.unfed if solved is None else u.units.zero for u in uses)
    kept = all(state == ZERO for state in found)
    kept = kept and (solved is not None or not made["states"])
    kept = kept and unit.leaf not in degrees.revived
    if solved is None:
        note += f"; f(0) {'=' if kept else 'is not'} 0"
    return Group(
        sizes=sizes,
        homogeneous=solved is not None,
        through=_through(unit, degrees),
        keeps_zero=kept,
        carries=carries,
        note=note,
        source=source,
        **{"producers": (), "consumers": (), **sides},
    )


def _states(
    unit: Unit,
    units: tuple[Term, ...],
    degrees: Degrees,
    states: Sequence[tuple[str, Value]],
) -> list[Member]:
    """The statistics that carry the units; ``units`` are their leaves in order."""
    found = []
    for path, value in states:
        places = [
            Place(path, axis, piece, unit.leaf, value)
            for axis, _, piece in degrees.occurrences(value)
            if unit.leaf in piece.leaves
        ]
        if places:
            found += members(places, "state", 0, units, degrees)
    return found


def _through(unit: Unit, degrees: Degrees) -> tuple[str, ...]:
    """The operations on activations between producers and consumers, each once."""
    names = []
    for op in degrees.ops[unit.leaf]:
        if op.out.kind > WEIGHT and not op.contracted and op.name not in _LAYOUT:
            names.append(op.name)
    return tuple(dict.fromkeys(names))


def _field(role: str, degree: int, pair: bool) -> tuple[str, str]:
    """The field of the record that a member stands in, and its role there.

    In a pair what has degree 1 makes the units, also a scale (the gamma of a batch
    norm); kernels and biases before it, of degree 0, are fixed. A depthwise kernel
    ``[height, width, 1, units]`` is a filter to the tracer, a scale in a record.
    """
    if role == "consumer":
        return "consumers", role
    if pair and degree == 1 and role != "bias":
        return "producers", "producer"
    if pair and degree == 0 and role in ("producer", "bias", "filter"):
        return "fixed", "scale" if role == "filter" else role
    fields = {"producer": "producers", "bias": "biases"}
    return fields.get(role, "scales"), "scale" if role == "filter" else role


def _line(op: Op | None) -> str | None:
    """``file:line`` of an operation, where it is known."""
    return None if op is None or op.eqn is None else source_line(op.eqn)
