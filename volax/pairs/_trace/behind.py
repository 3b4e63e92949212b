"""What stands behind a pair: the biases that scale if its output does.

Scaling the outgoing weights of a pair by c scales what they make, and what is made of
that. The program's outputs scale by c as well if every bias on the way does, so that
two pairs may trade c for 1/c, each with the biases behind it.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction

from volax.pairs._trace.tape import WEIGHT, Op, Tape, Value
from volax.pairs.records import Group

_ONE = Fraction(1)


class _Stop(Exception):
    """Why the outputs do not scale with a pair."""


class Behind:
    """The biases behind each pair of a program."""

    def __init__(
        self,
        tape: Tape,
        params: Mapping[str, Value],
        outputs: Iterable[Value],
        states: Iterable[Value],
    ):
        self.ops = tape.ops
        self.params = params
        self.paths = {value: path for path, value in params.items()}
        self.outputs, self.states = list(outputs), list(states)
        self.made = {op.out: op for op in tape.ops}
        # Operations without a rule: what they make is no operation's result.
        self.opaque = [
            read
            for read in tape.reads
            if any(v is not None and v not in self.made for v in read.outs)
        ]
        self.first: dict[Value, int] = {}
        for k, op in enumerate(tape.ops):
            for v in op.ins:
                self.first.setdefault(v, k)

    def biases(self, group: Group) -> tuple[tuple[str, ...] | None, str]:
        """The key paths of the biases behind a pair, or None and why."""
        scaled = {m.path for m in group.consumers}
        for m in group.consumers:
            shape = self.params[m.path].shape
            for axis in m.axes:
                if len(set(axis.indices().ravel().tolist())) < shape[axis.axis]:
                    return None, f"{m.path} reads other units as well"
        try:
            found = self._walk(scaled, frozenset())
            # Once more, with every use of a bias scaled: one may stand elsewhere too.
            if found:
                self._walk(scaled | found, None)
        except _Stop as stop:
            return None, str(stop)
        return tuple(path for path in self.params if path in found), ""

    def _walk(self, scaled: set[str], biases: frozenset[str] | None) -> set[str]:
        """Degrees of all values where some parameters scale; the biases that must.

        With ``biases=None`` no further parameter may scale.
        """
        degrees = {self.params[path]: _ONE for path in scaled}
        found = set(biases or ())
        begin = min((self.first.get(v, len(self.ops)) for v in degrees), default=0)
        for op in self.ops[begin:] if biases is not None else self.ops:
            given = [degrees.get(v, Fraction(0)) for v in op.ins]
            if any(given):
                for path in self._asked(op, given) if biases is not None else ():
                    found.add(path)
                    degrees[self.params[path]] = _ONE
                    given = [
                        _ONE if self._origin(v) == path else d
                        for v, d in zip(op.ins, given)
                    ]
                degree = _result(op, given)
                if degree:
                    degrees[op.out] = degree
        for read in self.opaque:
            if any(v is not None and degrees.get(v) for v in read.ins):
                raise _Stop(f"its output passes {read.eqn.primitive.name}")
        if any(degrees.get(v) != 1 for v in self.outputs):
            raise _Stop("not every output of the function scales with it")
        if any(degrees.get(v) for v in self.states):
            raise _Stop("the state that is written back scales with it")
        return found

    def _asked(self, op: Op, given: list[Fraction]) -> Iterable[str]:
        """The parameters that an operation asks to scale as its other operands do."""
        if op.law in ("equal", "select") and set(given) == {_ONE, Fraction(0)}:
            for v, degree in zip(op.ins, given):
                path = self._origin(v) if not degree and v.kind == WEIGHT else None
                if path is not None:
                    yield path

    def _origin(self, value: Value) -> str | None:
        """The parameter that a weight is, as it is or laid out otherwise."""
        while value not in self.paths:
            op = self.made.get(value)
            if op is None or len(op.ins) != 1 or op.law != "equal":
                return None
            (value,) = op.ins
        return self.paths[value]


def _result(op: Op, given: list[Fraction]) -> Fraction:
    """The degree of a result; raises where it has none."""
    why = _Stop(f"its output passes {op.name}")
    if op.law == "sum":
        return sum((w * d for w, d in zip(op.weights, given)), Fraction(0))
    chooses = {"select": given[-1:], "update": given[2:]}.get(op.law, [])
    cases = len(given) - len(chooses)
    if any(chooses) or op.law == "carry":
        raise why
    pairs = zip(op.ins[:cases], given)
    degrees = {d for v, d in pairs if not v.fits_any}
    if len(degrees) > 1 or (op.law == "zero" and any(degrees)):
        raise why
    return (
        Fraction(0) if op.law in ("zero", "drop") else max(degrees, default=Fraction(0))
    )
