"""Which values of a program carry which leaves, along their axes or around them."""

from collections import defaultdict

from volax.pairs._trace import terms
from volax.pairs._trace.degrees import Degrees
from volax.pairs._trace.tape import CONST, WEIGHT, Tape, Value
from volax.pairs._trace.terms import Term


class Carried:
    """What carries the leaves of a program.

    Attributes:
      held: for each value the leaves along its axes and those of enclosing loops.
      by: for each leaf the parameters, and what is made of them, that carry it.
      crossed: leaves that lie along two axes of one array.
      mixed: for each value the leaves that an operation on it mixes with each other.
    """

    def __init__(self, tape: Tape, degrees: Degrees):
        self._degrees = degrees
        self.held: dict[Value, set[Term]] = {}
        self.by: dict[Term, list[Value]] = defaultdict(list)
        self.crossed: set[Term] = set()
        self.mixed: dict[Value, set[Term]] = defaultdict(set)
        self._beside: dict[tuple[Value, Term], set[Term]] = {}
        for value in tape.values:
            self._add(value)
        for op in tape.ops:
            for i, axis in op.mixed:
                if (term := op.ins[i].axes[axis]) is not None:
                    self.mixed[op.ins[i]].update(terms.leaves(term))

    def _add(self, value: Value) -> None:
        """Writes down what one value carries."""
        along: dict[Term, int] = {}
        for axis, _, piece in self._degrees.occurrences(value):
            for leaf in piece.leaves:
                # A recurrent kernel ``[units, units]`` carries them along both axes,
                # each with a role of its own; an activation would hold their products.
                again = along.setdefault(leaf, axis) != axis
                if value.kind in (CONST, WEIGHT):
                    again = False
                if again or piece.leaves.count(leaf) > 1:
                    self.crossed.add(leaf)
        self.held[value] = set(along)
        for loop in value.loops:
            self.held[value].update(terms.leaves(loop))
        if value.kind >= WEIGHT:
            for leaf in along:
                self.by[leaf].append(value)

    def beside(self, value: Value, leaf: Term) -> set[Term]:
        """The leaves that number a value's entries together with a leaf.

        They lie along other axes, in the same piece of its axis, or along an enclosing
        loop; another piece of its axis holds other units instead.
        """
        if (value, leaf) in self._beside:
            return self._beside[value, leaf]
        found = {other for loop in value.loops for other in terms.leaves(loop)}
        places = list(self._degrees.occurrences(value))
        own = {axis for axis, _, piece in places if leaf in piece.leaves}
        for axis, _, piece in places:
            if axis not in own or leaf in piece.leaves:
                found.update(piece.leaves)
        self._beside[value, leaf] = found
        return found
