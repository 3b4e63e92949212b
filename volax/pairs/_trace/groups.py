"""From degrees to records: which leaves are units, and what belongs to them."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from volax.pairs._trace import terms
from volax.pairs._trace.behind import Behind
from volax.pairs._trace.carried import Carried
from volax.pairs._trace.compat import source_line
from volax.pairs._trace.degrees import Degrees
from volax.pairs._trace.facts import ZERO, Place
from volax.pairs._trace.solve import Solution, solve
from volax.pairs._trace.tape import Op, Tape, Value
from volax.pairs._trace.terms import Poison, Term
from volax.pairs._trace.unit import Unit, record
from volax.pairs.records import Group, cannot_cut
from volax.pairs.result import Groups, Refusal


@dataclasses.dataclass
class Given:
    """What a trace was given besides the program.

    Attributes:
      params: values of the trained parameters by path.
      states: paths and values of the inputs that may be cut (running statistics).
      data: values of the other inputs and of captured arrays, with a name.
      unknown: state that the program does not read, and the state that it may lie like.
      outputs: what the program returns, but for state.
      written: the state that it returns.
    """

    params: dict[str, Value]
    states: list[tuple[str, Value]]
    data: list[Value]
    unknown: list[tuple[Value, Value]] = dataclasses.field(default_factory=list)
    outputs: list[Value] = dataclasses.field(default_factory=list)
    written: list[Value] = dataclasses.field(default_factory=list)


class Grouping:
    """Judges every leaf of a program, once the degrees are known, and writes records.

    Attributes:
      tape: the program.
      given: its parameters, state and other arrays.
      degrees: how every value scales.
      carried: which values carry which leaves.
      foreign: names of arrays that cannot be cut, by the leaves that lie along them.
      behind: the biases behind each pair.
      last: of each record that :meth:`groups` made, the leaf of its last unit index.
    """

    def __init__(self, tape: Tape, given: Given):
        self.tape = tape
        self.given = given
        self.degrees = Degrees(tape, given.params)
        self.carried = Carried(tape, self.degrees)
        self.foreign = self._foreign()
        self.behind = Behind(tape, given.params, given.outputs, given.written)
        self.last: list[Term] = []

    def _foreign(self) -> dict[Term, tuple[str, ...]]:
        """Names of arrays that cannot be cut, by the leaves that lie along them."""
        found: dict[Term, set[str]] = defaultdict(set)
        for value in self.given.data:
            for leaf in self.carried.held[value]:
                found[leaf].add(value.name)
        for value, beside in self.given.unknown:
            for leaf in self.carried.held[beside] - self.carried.held[value]:
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
                numbers = self._order(unit, wholes)
                self.last.append(numbers[-1])
                group = record(
                    unit,
                    numbers,
                    self.degrees,
                    self.given.states,
                    self.foreign.get(unit.leaf, ()),
                )
                if group.homogeneous:
                    biases, why = self.behind.biases(group)
                    group = dataclasses.replace(
                        group, downstream=biases, unbalanced=why
                    )
                found.append(group)
        return Groups(tuple(found), tuple(dict.fromkeys(refused)) + self._unused())

    def _refusal(self, unit: Unit) -> Poison | None:
        """Why a leaf is no unit, judged by itself."""
        leaf = unit.leaf
        makers, takers = unit.having("producer"), unit.having("consumer")
        if leaf.size == 1:
            return Poison("the units are tied together or cut down to a single one")
        if leaf in self.carried.crossed:
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
        """The reason against another factor of the axis that a producer makes.

        A kernel ``[in, groups * channels]`` holds two leaves along one axis. A group
        norm refuses the channels, each of which depends on the others of its group, and
        with them the groups, unless the cause says that these are judged by themselves.
        """
        for place in unit.having("producer"):
            for leaf in place.piece.leaves:
                cause = leaf.poison
                if leaf in (unit.leaf, *unit.joined) or cause is None:
                    continue
                if not (cause.quiet or cause.alone):
                    return cause
        return None

    def _fixed_arrays(self, unit: Unit) -> Poison | None:
        """Refuses a group that can be neither rescaled nor cut.

        One that is no pair cannot be rescaled; it cannot be cut either where an array
        lies along its units that is no parameter and no state.
        """
        if unit.solution.degrees is not None:
            return None
        carries = self.foreign.get(unit.leaf)
        return Poison(cannot_cut(carries)) if carries else None

    def _joined(self, unit: Unit) -> frozenset[Term]:
        """The leaves that number the units together with this one."""
        near = {
            leaf
            for place in unit.having("producer")
            for leaf in self.carried.held[place.value]
            if leaf is not unit.leaf and leaf.size > 1
        }
        return frozenset(leaf for leaf in near if self._joins(unit, leaf))

    def _joins(self, unit: Unit, other: Term) -> bool:
        """Whether everything that carries the units carries the other leaf as well."""
        if other in self.carried.crossed:
            return False
        for place in unit.places:
            # The other leaf has to number the same entries: along one other axis of the
            # parameter, or as a factor of the same piece. In ``[a | b]`` along one axis
            # the leaves of ``b`` number entries that ``a`` does not have.
            axes = [
                axis
                for axis, _, piece in self.degrees.occurrences(place.value)
                if other in piece.leaves and axis != place.axis
            ]
            if len(axes) != 1 and other not in place.piece.leaves:
                return False
        for value in self.carried.by[unit.leaf]:
            beside = self.carried.beside(value, unit.leaf)
            if other not in beside or other in self.carried.mixed[value]:
                return False
            if value.carried is not None and other in terms.leaves(value.carried):
                return False
        return True

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
        self, unit: Unit, wholes: dict[Term, frozenset[Term]]
    ) -> tuple[Term, ...]:
        """The unit's leaves in the order in which the first producer has them.

        The last one is cut, so it must be carried by the members alone. A head is also
        carried by queries and keys, which no channel of the values is.
        """
        whole = unit.joined | {unit.leaf}
        seen = []
        first = unit.having("producer")[0].value
        for _, _, piece in self.degrees.occurrences(first):
            seen += [leaf for leaf in piece.leaves if leaf in whole]
        order = list(dict.fromkeys(seen))
        last = [leaf for leaf in order if wholes.get(leaf) == whole][-1]
        return (*(leaf for leaf in order if leaf is not last), last)

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
        """An entry for each parameter that no operation reads."""
        read = {v for op in self.tape.ops for v in op.ins} | self.tape.read
        return tuple(
            Refusal("never used by the function", path)
            for path, value in self.given.params.items()
            if value not in read
        )


# A recurrent kernel ``[units, units]`` makes units along one axis and reads them along
# the other, so that its place has these two roles.
_BOTH = {"producer", "consumer"}


def _makers(unit: Unit) -> Sequence[Place]:
    """The places by which a unit is put in the order of the parameters."""
    return unit.having("producer") or unit.places


def _twice(op: Op, leaf: Term) -> bool:
    """Whether an operation's result carries a leaf along two axes."""
    axes = [k for k, t in enumerate(op.out.axes) if t and leaf in terms.leaves(t)]
    return len(axes) > 1
