"""From degrees to records: which leaves are units, and what belongs to them."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from volax.pairs._trace import terms
from volax.pairs._trace.compat import source_line
from volax.pairs._trace.degrees import ZERO, Degrees, Place
from volax.pairs._trace.members import members
from volax.pairs._trace.solve import Solution, solve
from volax.pairs._trace.tape import CONST, WEIGHT, Op, Tape, Value
from volax.pairs._trace.terms import Poison, Term
from volax.pairs.records import Group, Member, cannot_cut
from volax.pairs.result import Groups, Refusal


@dataclasses.dataclass
class Given:
    """What a trace was given besides the program.

    Attributes:
      params: values of the trained parameters by path.
      states: paths and values of the inputs that may be cut (running statistics).
      data: values of the other inputs and of captured arrays, with a name.
      unknown: state that the program does not read, and the state that it may lie like.
    """

    params: dict[str, Value]
    states: list[tuple[str, Value]]
    data: list[Value]
    unknown: list[tuple[Value, Value]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Unit:
    """One unit in the making: its leaf, the leaves that joined it, and its solution."""

    leaf: Term
    places: list[Place]
    joined: frozenset[Term] = frozenset()
    solution: Solution = dataclasses.field(default_factory=lambda: Solution(None))
    refused: Poison | None = None

    def having(self, role: str) -> list[Place]:
        """The places of a role."""
        return [p for p in self.places if role in p.roles]


class Grouping:
    """Everything that is asked about leaves once the degrees are known."""

    def __init__(self, tape: Tape, given: Given):
        self.tape = tape
        self.given = given
        self.states = {value for _, value in given.states}
        self.degrees = Degrees(tape, given.params)
        self.carrying: dict[Term, list[Value]] = defaultdict(list)
        self.crossed: set[Term] = set()
        self.held: dict[Value, set[Term]] = {}
        self.beside: dict[tuple[Value, Term], set[Term]] = {}
        for value in tape.values:
            self._carry(value)
        self.mixed: dict[Value, set[Term]] = defaultdict(set)
        for op in tape.ops:
            for i, axis in op.mixed:
                if (term := op.ins[i].axes[axis]) is not None:
                    self.mixed[op.ins[i]].update(terms.leaves(term))
        self.foreign = self._foreign()
        self.last: list[Term] = []  # of each record, the leaf of its last unit index

    def _carry(self, value: Value) -> None:
        seen: dict[Term, int] = {}
        for axis, _, piece in self.degrees.occurrences(value):
            for leaf in piece.leaves:
                # A recurrent kernel ``[units, units]`` carries them along both axes,
                # each with a role of its own; an activation would hold their products.
                again = seen.setdefault(leaf, axis) != axis and value.kind not in (
                    CONST,
                    WEIGHT,
                )
                if again or piece.leaves.count(leaf) > 1:
                    self.crossed.add(leaf)
        self.held[value] = set(seen)
        for loop in value.loops:
            self.held[value].update(terms.leaves(loop))
        for leaf in seen:
            if value.kind >= WEIGHT:
                self.carrying[leaf].append(value)

    def _foreign(self) -> dict[Term, tuple[str, ...]]:
        """Names of arrays that cannot be cut, by the leaves that lie along them."""
        found: dict[Term, set[str]] = defaultdict(set)
        for value in self.given.data:
            for leaf in self.held[value]:
                found[leaf].add(value.name)
        for value, beside in self.given.unknown:
            for leaf in self.held[beside] - self.held[value]:
                found[leaf].add(f"{value.name}, which the function does not read,")
        return {leaf: tuple(sorted(names)) for leaf, names in found.items()}

    def groups(self) -> Groups[Group]:
        """The records of the program."""
        units = [
            Unit(leaf, places)
            for leaf, places in self.degrees.places.items()
            if terms.find(leaf) is leaf
        ]
        for unit in units:
            unit.refused = self._refusal(unit)
            if unit.refused is None:
                unit.solution = self._solved(unit)
                unit.joined = self._joined(unit)
                unit.refused = self._spread(unit) or self._fixed_arrays(unit)
        self._give_way(units)
        wholes = {u.leaf: u.joined | {u.leaf} for u in units if u.refused is None}
        found, refused, seen = [], [], set()
        inner = frozenset().union(*wholes.values())
        order = {path: k for k, path in enumerate(self.given.params)}
        units.sort(key=lambda u: min((order[p.path] for p in _makers(u)), default=0))
        for unit in units:
            whole = unit.joined | {unit.leaf}
            if unit.refused is not None:
                refused += [] if unit.leaf in inner else self._listed(unit)
            elif whole not in seen:
                seen.add(whole)
                found.append(self._record(unit, wholes))
        return Groups(tuple(found), tuple(dict.fromkeys(refused)) + self._unused())

    def _refusal(self, unit: Unit) -> Poison | None:
        """Why a leaf is no unit, judged by itself."""
        leaf = unit.leaf
        makers, takers = unit.having("producer"), unit.having("consumer")
        if leaf.size == 1:
            return Poison("the units are tied together or cut down to a single one")
        if leaf in self.crossed:
            where = next(
                (op.eqn for op in self.degrees.ops[leaf] if _twice(op, leaf)), None
            )
            return Poison("the units lie along two axes of one array", where)
        if leaf.poison is not None:
            return leaf.poison
        if leaf in self.degrees.broken:
            why = "the units' places do not line up"
            return Poison(why, self.degrees.broken[leaf])
        for place in unit.places:
            if len(place.roles) > 1 and place.roles != _BOTH:
                roles = " and ".join(sorted(place.roles))
                return Poison(f"{place.path} is used as {roles} of the same units")
        if any(not p.roles for p in unit.places) or not makers:
            return Poison("no parameter makes the units", quiet=not makers)
        if not takers:
            return Poison("no parameter consumes the units")
        for use in self.degrees.uses[leaf]:
            if use.weight.zero != ZERO or not use.weight.places:
                why = "the outgoing weights are not used as they are"
                return Poison(why, use.op.eqn)
        return None

    def _solved(self, unit: Unit) -> Solution:
        """The degrees of a pair; a parameter on both sides would scale twice."""
        makers, takers = unit.having("producer"), unit.having("consumer")
        both = {p.path for p in makers} & {p.path for p in takers}
        if both:
            return Solution(None, f"{min(both)} stands on both sides")
        return solve(unit.places, self.degrees.rows.get(unit.leaf, []))

    def _spread(self, unit: Unit) -> Poison | None:
        """A norm over a part of the channels refuses the other part as well."""
        for place in unit.having("producer"):
            for leaf in place.piece.leaves:
                cause = leaf.poison
                if leaf in (unit.leaf, *unit.joined) or cause is None:
                    continue
                if not (cause.quiet or cause.alone):
                    return cause
        return None

    def _fixed_arrays(self, unit: Unit) -> Poison | None:
        """A group that is no pair is only good for cutting: all of it must be ours."""
        if unit.solution.degrees is not None:
            return None
        carries = self.foreign.get(unit.leaf)
        return Poison(cannot_cut(carries)) if carries else None

    def _joined(self, unit: Unit) -> frozenset[Term]:
        """The leaves that number the units together with this one."""
        near = {
            leaf
            for place in unit.having("producer")
            for leaf in self.held[place.value]
            if leaf is not unit.leaf and leaf.size > 1
        }
        return frozenset(leaf for leaf in near if self._joins(unit, leaf))

    def _joins(self, unit: Unit, other: Term) -> bool:
        """Whether everything that carries the units carries the other leaf as well."""
        if other in self.crossed:
            return False
        for place in unit.places:
            # Another piece of the place's own axis holds other entries.
            axes = [
                axis
                for axis, _, piece in self.degrees.occurrences(place.value)
                if other in piece.leaves and axis != place.axis
            ]
            if len(axes) != 1 and other not in place.piece.leaves:
                return False
        for value in self.carrying[unit.leaf]:
            beside = self._beside(value, unit.leaf)
            if other not in beside or other in self.mixed[value]:
                return False
            if value.carried is not None and other in terms.leaves(value.carried):
                return False
        return True

    def _beside(self, value: Value, leaf: Term) -> set[Term]:
        """The leaves that number a value's entries together with a leaf.

        They lie along other axes, in the same piece of its axis, or along an enclosing
        loop; another piece of its axis holds other units instead.
        """
        if (value, leaf) in self.beside:
            return self.beside[value, leaf]
        found = {other for loop in value.loops for other in terms.leaves(loop)}
        places = list(self.degrees.occurrences(value))
        own = {axis for axis, _, piece in places if leaf in piece.leaves}
        for axis, _, piece in places:
            if axis not in own or leaf in piece.leaves:
                found.update(piece.leaves)
        self.beside[value, leaf] = found
        return found

    def _record(self, unit: Unit, wholes: dict[Term, frozenset[Term]]) -> Group:
        """The group of a unit, a pair if the solution says so."""
        degrees = unit.solution.degrees
        first = unit.having("producer")[0]
        units = self._order(unit, first, wholes)
        self.last.append(units[-1])
        sizes = tuple(leaf.size for leaf in units)
        made: dict[str, list[Member]] = defaultdict(list)
        by_role: dict[tuple[str, str, int, int, str], list[Place]] = {}
        for place in unit.places:
            for role in sorted(place.roles):
                degree = 0 if degrees is None else degrees[place]
                field, role = _field(role, degree, degrees is not None)
                key = (field, role, degree, place.axis, place.path)
                by_role.setdefault(key, []).append(place)
        for (field, role, degree, *_), places in by_role.items():
            made[field] += members(places, role, degree, units, self.degrees)
        made["states"] = self._states(unit, units)
        pairs = {k: tuple(v) for k, v in made.items()}
        uses = self.degrees.uses[unit.leaf]
        carries = self.foreign.get(unit.leaf, ())
        note, source = "", None
        if degrees is None:
            note, source = unit.solution.why, _line(unit.solution.op)
        else:
            note = f"carries {', '.join(carries)}" if carries else ""
        # A running mean is subtracted from what is zero, unless gamma is the producer.
        # A pair's units scale by c with what is judged, so at c = 0 they are zero.
        found = (u.units.unfed if degrees is None else u.units.zero for u in uses)
        kept = all(state == ZERO for state in found)
        kept = kept and (degrees is not None or not made["states"])
        kept = kept and unit.leaf not in self.degrees.revived
        if degrees is None:
            note += f"; f(0) {'=' if kept else 'is not'} 0"
        return Group(
            sizes=sizes,
            homogeneous=degrees is not None,
            through=self._through(unit),
            keeps_zero=kept,
            carries=carries,
            note=note,
            source=source,
            **{"producers": (), "consumers": (), **pairs},
        )

    def _give_way(self, units: Sequence[Unit]) -> None:
        """Lets a unit be rescaled in one pair only, the one with the most indices.

        The channels of a head, numbered by head and channel, can be rescaled one by
        one; then the head as a whole is a group, to be cut.
        """
        finer = [u for u in units if u.refused is None and u.solution.degrees]
        inner = frozenset().union(*(u.joined for u in finer))
        for unit in units:
            if unit.refused is None and unit.leaf in inner and unit.solution.degrees:
                whole = unit.joined | {unit.leaf}
                if all(whole != u.joined | {u.leaf} for u in finer if u is not unit):
                    unit.solution = Solution(
                        None, "its channels are pairs of their own"
                    )
                    unit.refused = self._fixed_arrays(unit)

    def _order(
        self, unit: Unit, first: Place, wholes: dict[Term, frozenset[Term]]
    ) -> tuple[Term, ...]:
        """The unit's leaves in the order in which the first producer has them.

        The last one is cut, so it must be carried by the members alone. A head is also
        carried by queries and keys, which no channel of the values is.
        """
        whole = unit.joined | {unit.leaf}
        seen = []
        for _, _, piece in self.degrees.occurrences(first.value):
            seen += [leaf for leaf in piece.leaves if leaf in whole]
        order = list(dict.fromkeys(seen))
        last = [leaf for leaf in order if wholes.get(leaf) == whole][-1]
        return (*(leaf for leaf in order if leaf is not last), last)

    def _states(self, unit: Unit, units: tuple[Term, ...]) -> list[Member]:
        found = []
        for path, value in self.given.states:
            places = [
                Place(path, axis, piece, unit.leaf, value)
                for axis, _, piece in self.degrees.occurrences(value)
                if unit.leaf in piece.leaves
            ]
            if places:
                found += members(places, "state", 0, units, self.degrees)
        return found

    def _through(self, unit: Unit) -> tuple[str, ...]:
        names = []
        for op in self.degrees.ops[unit.leaf]:
            if op.out.kind > WEIGHT and not op.contracted and op.name not in _LAYOUT:
                names.append(op.name)
        return tuple(dict.fromkeys(names))

    def _listed(self, unit: Unit) -> list[Refusal]:
        """A refused unit's entry, unless nobody would look for units there."""
        cause = unit.refused
        makers = unit.having("producer") or unit.having("scale")
        unused = not any(p.roles for p in unit.places)
        if cause is None or not (
            unit.having("producer") or (unused and not cause.quiet)
        ):
            return []
        line = None if cause.eqn is None else source_line(cause.eqn)
        return [
            Refusal(cause.reason, place.path, place.axis, line)
            for place in makers or unit.places[:1]
        ]

    def _unused(self) -> tuple[Refusal, ...]:
        read = {v for op in self.tape.ops for v in op.ins} | self.tape.read
        return tuple(
            Refusal("never used by the function", path)
            for path, value in self.given.params.items()
            if value not in read
        )


_BOTH = {"producer", "consumer"}
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


def _makers(unit: Unit) -> Sequence[Place]:
    return unit.having("producer") or unit.places


def _field(role: str, degree: int, pair: bool) -> tuple[str, str]:
    """The field and the role of a member in the record."""
    if role == "consumer":
        return "consumers", role
    if pair and degree == 1 and role != "bias":
        return "producers", "producer"
    if pair and degree == 0 and role in ("producer", "bias", "filter"):
        return "fixed", "scale" if role == "filter" else role
    fields = {"producer": "producers", "bias": "biases"}
    return fields.get(role, "scales"), "scale" if role == "filter" else role


def _twice(op: Op, leaf: Term) -> bool:
    axes = [k for k, t in enumerate(op.out.axes) if t and leaf in terms.leaves(t)]
    return len(axes) > 1


def _line(op: Op | None) -> str | None:
    return None if op is None or op.eqn is None else source_line(op.eqn)
