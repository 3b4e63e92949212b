"""Degrees: how every value scales when its units' incoming side is scaled.

Each place where a watched leaf occurs in a parameter is an unknown. Walking the tape
expresses the degree of every value in these unknowns and collects the equations that
hold if rescaling is to leave the program's result as it is. Degrees belong to
occurrences of a leaf, not to the leaf: in ``concatenate(relu(x), relu(-x))`` it
occurs twice.

Along with the degree each occurrence knows whether it is zero when the unit's weights
are, and which parameters it is made of while it is still a weight.
"""

import dataclasses
import enum
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction

from jax.extend.core import JaxprEqn

from volax.pairs._trace import terms
from volax.pairs._trace.facts import (
    FITS_ANY,
    FITS_ANY_ZERO,
    PLAIN,
    UNSCALED,
    ZERO,
    Fact,
    Place,
    Row,
    Unknown,
    Zero,
    plus,
    zero_of,
)  # fmt: skip
from volax.pairs._trace.tape import ACTIVATION, WEIGHT, Op, Tape, Value
from volax.pairs._trace.terms import Piece, Term


class _NoSource(enum.Enum):
    """Why an occurrence of a leaf in a result has none in an operand."""

    REPEATED = enum.auto()  # no such axis: one entry of the operand is at every index
    ELSEWHERE = enum.auto()  # this part of the axis is made of other operands


# Of an occurrence in a value: the axis, which of its pieces, and the leaf.
Key = tuple[int, int, Term]


@dataclasses.dataclass
class Use:
    """A contraction that consumes units, ``[..., units]`` with ``[units, out]``.

    Attributes:
      op: the contraction.
      weight: what is known of the units in the operand that is a weight.
      units: the same of the other operand, the activations.
    """

    op: Op
    weight: Fact
    units: Fact


class Degrees:
    """The degrees of all values on a tape, in the unknowns of the parameters.

    Attributes:
      rows: for each leaf the expressions that have to be zero in a pair, and the
        operation that asks for each.
      uses: the contractions that consume it.
      ops: all operations that it goes through.
      broken: leaves whose pieces do not line up, and the equation where.
      revived: leaves at which a scan's carry is zero at first, but not after a step.
      places: where the leaf occurs in parameters.
      facts: what is known of each occurrence in each value.
    """

    def __init__(self, tape: Tape, params: dict[str, Value]):
        self.rows: dict[Term, list[tuple[Row, Op]]] = defaultdict(list)
        self.uses: dict[Term, list[Use]] = defaultdict(list)
        self.ops: dict[Term, list[Op]] = defaultdict(list)
        self.broken: dict[Term, JaxprEqn | None] = {}
        self.revived: set[Term] = set()
        self.places: dict[Term, list[Place]] = {}
        self.facts: dict[Value, dict[Key, Fact]] = {}
        self._pieces: dict[int, tuple[Piece, ...]] = {}
        self._index: dict[int, dict[Piece, int]] = {}
        # The caches go by ``id``, which is a term's own only as long as it lives.
        self._keep: list[Term] = []
        for path, value in params.items():
            self._declare(path, value)
        for op in tape.ops:
            self._follow(op)

    def pieces(self, term: Term | None) -> tuple[Piece, ...]:
        """The pieces of an axis; one that is cut too finely is poisoned."""
        if term is None:
            return ()
        root = terms.find(term)
        if id(root) not in self._pieces:
            found = terms.pieces(root)
            if found is None:
                terms.poison(root, terms.Poison("the axis is cut into too many pieces"))
                found = tuple(
                    Piece(0, (leaf,), (1,)) for leaf in terms.leaves(root)[:1]
                )
            self._pieces[id(root)] = found
            self._index[id(root)] = {p: i for i, p in enumerate(found)}
            self._keep.append(root)
        return self._pieces[id(root)]

    def occurrences(self, value: Value) -> Iterator[tuple[int, int, Piece]]:
        """Every piece of every axis of a value."""
        for k, term in enumerate(value.axes):
            for i, piece in enumerate(self.pieces(term)):
                yield k, i, piece

    def _declare(self, path: str, value: Value) -> None:
        """Makes every occurrence of a leaf in a parameter an unknown."""
        facts = self.facts[value] = {}
        for k, i, piece in self.occurrences(value):
            for leaf in piece.leaves:
                place = Place(path, k, piece, leaf, value)
                self.places.setdefault(leaf, []).append(place)
                facts[k, i, leaf] = Fact(
                    {place: Fraction(1)}, ZERO, ZERO, frozenset({place})
                )

    def _fact(self, value: Value, key: Key) -> Fact:
        """What is known of one occurrence in a value."""
        found = self.facts.get(value, {}).get(key)
        return self._absent(value) if found is None else found

    def _absent(self, value: Value) -> Fact:
        """What is known where a value does not carry the units."""
        if value.known == 0:
            return FITS_ANY_ZERO
        return FITS_ANY if value.fits_any else UNSCALED

    def _follow(self, op: Op) -> None:
        """Finds what is known of an operation's result from its operands."""
        seen = set()
        facts = self.facts[op.out] = {}
        for key, given in self._given(op):
            facts[key] = self._combined(op, key, given)
            seen.add(key[2])
        for a, b in op.contracted:
            seen |= self._contract(op, a, b)
        if op.out.kind == ACTIVATION:
            self._give_roles(op)
        for leaf in seen:
            self.ops[leaf].append(op)

    def _given(self, op: Op) -> Iterator[tuple[Key, list[Fact | None]]]:
        """For each occurrence in the result, the facts of the operands behind it."""
        merged = {j for _, after in op.merges for j in after}
        for j, term in enumerate(op.out.axes):
            if j in merged:
                continue
            for i, piece in enumerate(self.pieces(term)):
                behind = [self._behind(op, n, j, piece) for n in range(len(op.ins))]
                for leaf in piece.leaves:
                    if leaf in self.places:
                        yield (
                            (j, i, leaf),
                            [
                                self._source(op, n, at, leaf)
                                for n, at in enumerate(behind)
                            ],
                        )
        for before, after in op.merges:
            yield from self._reshaped(op, before, after)

    def _behind(
        self, op: Op, n: int, j: int, piece: Piece
    ) -> tuple[int, int] | _NoSource:
        """The axis of operand ``n``, and which of its pieces, that a piece comes from.

        The result's axis ``j`` may be a concatenation: the piece of its entries 4 to 7
        is then the first one of the second operand, and no piece of the first.
        """
        link = op.links[n].get(j)
        if link is None:
            return _NoSource.REPEATED
        axis, shift = link
        term = op.ins[n].axes[axis]
        if term is None:
            return _NoSource.ELSEWHERE
        self.pieces(term)
        found = self._index[id(terms.find(term))].get(piece.moved(-shift))
        if found is not None:
            return axis, found
        if 0 <= piece.offset - shift < term.size:
            for leaf in (*piece.leaves, *terms.leaves(term)):
                self.broken.setdefault(leaf, op.eqn)
        return _NoSource.ELSEWHERE

    def _source(
        self, op: Op, n: int, at: tuple[int, int] | _NoSource, leaf: Term
    ) -> Fact | None:
        """What is known of a leaf in operand ``n``; None if it has no part in it."""
        if at is _NoSource.REPEATED:
            return self._absent(op.ins[n])
        if isinstance(at, _NoSource):
            return None
        return self._fact(op.ins[n], (*at, leaf))

    def _reshaped(
        self, op: Op, before: tuple[int, ...], after: tuple[int, ...]
    ) -> Iterator[tuple[Key, list[Fact | None]]]:
        """The same through a reshape that joins axes or takes one apart.

        Row-major, the operand's axes ``before`` and the result's axes ``after`` hold
        the same entries, so both are first written as one axis of pieces. A piece of
        one that the other lacks breaks its units. A leaf may occur in several of the
        joined pieces, and then the law asks of all of them to scale alike.
        """
        (x,) = op.ins
        old = dict(self._merged(x, before))
        found: dict[Key, list[Fact | None]] = defaultdict(list)
        for piece, where in self._merged(op.out, after):
            source = old.get(piece)
            if source is None:
                for leaf in piece.leaves:
                    self.broken.setdefault(leaf, op.eqn)
                continue
            for leaf in piece.leaves:
                if leaf in self.places:
                    (at,) = [w for w in source if leaf in w[2].leaves][:1]
                    (to,) = [w for w in where if leaf in w[2].leaves][:1]
                    fact = self._fact(x, (at[0], at[1], leaf))
                    found[to[0], to[1], leaf].append(fact)
        yield from found.items()

    def _merged(
        self, value: Value, axes: tuple[int, ...]
    ) -> list[tuple[Piece, list[tuple[int, int, Piece]]]]:
        """Several axes as one, row-major: its pieces, and what each is made of.

        Axes of sizes ``(a, b)`` become one of ``a * b`` entries; a piece of it joins a
        piece of each, which are listed as (axis, number of the piece, piece).
        """
        joined: list[tuple[Piece, list]] = [(Piece(0, (), ()), [])]
        for k in axes:
            size = value.shape[k]
            joined = [
                (terms.join(whole, size, piece), [*where, (k, i, piece)])
                for whole, where in joined
                for i, piece in enumerate(self.pieces(value.axes[k]))
            ]
        return joined

    def _combined(self, op: Op, key: Key, given: list[Fact | None]) -> Fact:
        """What is known of an occurrence in the result from those in the operands.

        In ``select(which, *cases)`` and ``update(x, part, *indices)`` only some of the
        operands are values that the result has; the others choose between them.
        """
        axis, _, leaf = key
        cases = given
        if op.law == "select":
            cases = given[:-1]
            self._require(leaf, given[-1], op)
        elif op.law == "update":
            cases = given[:2]
        facts = [f for f in cases if f is not None]
        places = frozenset().union(*(f.places for f in facts))
        if op.out.kind != WEIGHT:
            places = frozenset()
        states = [{f.zero for f in facts}, {f.unfed for f in facts}]
        if op.zero == "again" and max(map(len, states)) > 1:
            self.revived.add(leaf)
        zero = zero_of(op.zero, [f and f.zero for f in cases])
        unfed = [f and self._unfed(op, n, axis, f) for n, f in enumerate(cases)]
        return Fact(self._law(op, leaf, cases), zero, zero_of(op.zero, unfed), places)

    def _unfed(self, op: Op, n: int, axis: int, fact: Fact) -> Zero:
        """An operand's ``unfed``: a weight that multiplies units is not zero here."""
        if op.merges or op.out.kind != ACTIVATION or op.ins[n].kind != WEIGHT:
            return fact.unfed
        link = op.links[n].get(axis)
        multiplies = link is not None and _role(op, n, link[0]) in ("scale", "filter")
        return PLAIN if multiplies else fact.unfed

    def _law(self, op: Op, leaf: Term, given: list[Fact | None]) -> Row | None:
        """The degree of a result; what its operands have to satisfy is written down."""
        rows = [f.row for f in given if f is not None and f.row is not None]
        if op.law == "carry":
            unknown: Row = {Unknown(): Fraction(1)}
            return unknown
        if op.law == "sum":
            total: Row = {}
            for fact, weight in zip(given, op.weights):
                if fact is not None and weight:
                    if fact.row is None:
                        return None
                    total = plus(total, fact.row, Fraction(weight))
            return total
        if op.law == "zero":
            for row in rows:
                self._equation(leaf, row, op)
            return {}
        for row in rows[1:]:
            self._equation(leaf, plus(row, rows[0], Fraction(-1)), op)
        if op.law == "drop":
            return {}
        return rows[0] if rows else None

    def _require(self, leaf: Term, fact: Fact | None, op: Op) -> None:
        """Asks an operand that only chooses not to scale at all."""
        if fact is not None and fact.row:
            self._equation(leaf, fact.row, op)

    def _equation(self, leaf: Term, row: Row, op: Op) -> None:
        """Asks the expression ``row`` to be zero in every pair of this leaf."""
        if row:
            self.rows[leaf].append((row, op))

    def _contract(self, op: Op, a: int, b: int) -> set[Term]:
        """Lines up two contracted axes; returns the leaves that are summed over.

        In ``h @ v`` with ``h`` of shape ``[batch, units]`` and ``v`` ``[units, out]``
        the terms are ``h[i, u] * v[u, j]``. Their degrees are the sums of both, and a
        sum over units that scale each by a factor of its own stays only at degree zero.
        """
        x, y = op.ins
        seen: set[Term] = set()
        other = y.axes[b]
        if other is None:
            return seen
        self.pieces(other)
        index = self._index[id(terms.find(other))]
        for i, piece in enumerate(self.pieces(x.axes[a])):
            j = index.get(piece)
            for leaf in piece.leaves:
                if leaf not in self.places:
                    continue
                if j is None:
                    self.broken.setdefault(leaf, op.eqn)
                    continue
                left, right = self._fact(x, (a, i, leaf)), self._fact(y, (b, j, leaf))
                if left.row is not None and right.row is not None:
                    self._equation(leaf, plus(left.row, right.row, Fraction(1)), op)
                weight, units = (left, right) if x.kind == WEIGHT else (right, left)
                self.uses[leaf].append(Use(op, weight, units))
                seen.add(leaf)
        return seen

    def _give_roles(self, op: Op) -> None:
        """Gives the weights that the operation combines with data their roles."""
        for n, value in enumerate(op.ins):
            if value.kind != WEIGHT:
                continue
            mixed = {k for i, k in op.mixed if i == n}
            for (axis, _, _), fact in self.facts.get(value, {}).items():
                if axis not in mixed:
                    for place in fact.places:
                        place.roles.add(_role(op, n, axis))


def _role(op: Op, n: int, axis: int) -> str:
    """What an axis of a weight, operand ``n``, is where it is combined with data.

    In ``x @ w`` with ``w`` of shape ``[in, units]`` axis 0 is contracted and consumes
    the units of ``x``; axis 1 makes units. A batch axis, ``[units, in, out]`` in a
    batched product, handles each unit by a filter of its own.
    """
    if axis in {pair[n] for pair in op.contracted if n < 2}:
        return "consumer"
    if n < len(op.batch) and axis in op.batch[n]:
        return "filter"
    return op.role
