"""What a trace writes down: values with their axes, and operations with their laws.

The interpreter runs once over the program. It unifies axes as it goes and appends one
:class:`Op` for each result; degrees are worked out afterwards (``degrees.py``), when
the leaves of every axis are final.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from jax.extend import core
from jax.extend.core import JaxprEqn

from volax.pairs._trace import terms
from volax.pairs._trace.terms import Poison, Term


class Kind(enum.IntEnum):
    """What a value is computed from; the larger kind of two operands wins.

    A weight ``w`` of shape ``[in, units]`` stays a weight where a mask of that shape or
    a smaller one multiplies it. It becomes an activation where it is contracted with
    data, ``x @ w`` of shape ``[batch, units]``, or broadcast against data of more axes.
    """

    CONST = 0  # numbers that the program writes
    DATA = 1  # inputs, captured arrays, indices, random numbers
    WEIGHT = 2  # parameters, and what is computed from them (and masks) alone
    ACTIVATION = 3  # parameters and data together


CONST, DATA, WEIGHT, ACTIVATION = Kind

Law = Literal["equal", "sum", "zero", "drop", "select", "update", "carry"]
# An int is the number of the operand that decides.
HowZero = Literal["all", "again", "any", "div", "lost", "singular"] | int
Role = Literal["producer", "bias", "scale"]


@dataclasses.dataclass(eq=False)
class Value:
    """A traced array.

    Attributes:
      shape: its shape.
      axes: a term for each axis longer than 1, else None.
      kind: what it depends on.
      known: the number that every entry is, where that is known.
      varies: for each axis whether the entries along it may differ; not where one
        entry was repeated, as ``b`` of shape ``[units]`` is along the rows of a batch.
      loops: axes of enclosing scans along which it is made one slice at a time.
      name: path of the parameter or input, or "" for a computed value.
      carried: the scan axis whose steps it connects, if it is a loop's carry.
    """

    shape: tuple[int, ...]
    axes: tuple[Term | None, ...]
    kind: Kind
    known: float | None = None
    varies: tuple[bool, ...] = ()
    loops: frozenset[Term] = frozenset()
    name: str = ""
    carried: Term | None = None

    @property
    def fits_any(self) -> bool:
        """Whether the value scales by every factor: c * 0 = 0, c * inf = inf."""
        return self.known is not None and (
            self.known == 0 or not math.isfinite(self.known)
        )


# For axes of the result the operand's axis that they are, and a shift: entry i of the
# operand's axis is entry i + shift of the result's.
Links = Mapping[int, tuple[int, int]]


@dataclasses.dataclass(eq=False)
class Op:
    """How one result follows from its operands.

    Attributes:
      name: what to call it.
      ins: the operands.
      out: the result.
      links: for each operand which of the result's axes are its own, and by how much
        an index moves.
      law: how degrees combine: ``equal`` (all the same, kept), ``sum`` (weighted by
        ``weights``), ``zero`` (none may scale), ``drop`` (all the same, lost),
        ``select`` and ``update`` (equal, but for operands that only choose), ``carry``
        (an unknown of its own).
      weights: of the operands under ``sum``.
      zero: when the result is zero at a unit whose weights are all zero: ``all``
        (``again``, at the start and at the end of every step of a scan) or ``any``
        operand is, the operand of a number is, as in a ``div``, ``lost``, or
        ``singular`` (not even finite).
      role: what a weight does to the units where it is combined with data here: a
        dense kernel makes them, a bias is added to them, a scale multiplies them. The
        axes on which it is contracted make it a consumer instead.
      contracted: pairs of axes, of the first and of the second operand.
      batch: for each operand the axes on which both are aligned in a contraction.
      mixed: (operand, axis) whose units are not handled one by one.
      merges: for a reshape, groups of operand axes and result axes with equal entries.
      eqn: the equation.
    """

    name: str
    ins: tuple[Value, ...]
    out: Value
    links: tuple[Links, ...]
    law: Law = "equal"
    weights: tuple[int | Fraction, ...] = ()
    zero: HowZero = "all"
    role: Role = "scale"
    contracted: tuple[tuple[int, int], ...] = ()
    batch: tuple[frozenset[int], ...] = ()
    mixed: tuple[tuple[int, int], ...] = ()
    merges: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    eqn: JaxprEqn | None = None


class Scaling(TypedDict, total=False):
    """The fields of :class:`Op` that say how the result scales and when it is zero."""

    law: Law
    weights: tuple[int | Fraction, ...]
    zero: HowZero


class OpFields(Scaling, total=False):
    """The fields of :class:`Op` that a rule may give."""

    role: Role
    contracted: tuple[tuple[int, int], ...]
    batch: tuple[frozenset[int], ...]
    mixed: tuple[tuple[int, int], ...]
    merges: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class OpArgs(OpFields, total=False):
    """What a rule may hand on to :meth:`Tape.op`."""

    shape: Sequence[int] | None
    known: float | None
    kind: Kind | None
    loops: frozenset[Term] | None
    why: str
    quiet: bool
    masks: bool


@dataclasses.dataclass(frozen=True)
class Read:
    """One live equation: what it read and what it made."""

    eqn: JaxprEqn
    ins: Sequence[Value | None]
    outs: Sequence[Value | None]


_MIXES = "{} does not handle the units one by one"


def shape_of(eqn: JaxprEqn, k: int = 0) -> tuple[int, ...]:
    """The shape of an equation's result."""
    aval: Any = eqn.outvars[k].aval
    return tuple(aval.shape)


def dtype_of(atom: core.Var | core.Literal) -> np.dtype:
    """The dtype of an operand or a result."""
    aval: Any = atom.aval
    return aval.dtype


class Tape:
    """The record of a trace, and the helpers that rules are written with."""

    def __init__(self):
        self.ops: list[Op] = []
        self.reads: list[Read] = []
        self.values: list[Value] = []
        self.labels: list[str] = []
        self.read: set[Value] = set()
        self.sites: list[JaxprEqn] = []

    def value(self, shape: Sequence[int], kind: Kind, **rest: Any) -> Value:
        """A new value; axes without a term get a fresh one."""
        axes = rest.pop("axes", [None] * len(shape))
        axes = [None if n == 1 else (t or Term(n)) for n, t in zip(shape, axes)]
        varies = rest.pop("varies", (True,) * len(axes))
        made = Value(tuple(shape), tuple(axes), kind, varies=tuple(varies), **rest)
        self.values.append(made)
        return made

    def poison(
        self,
        term: Term | None,
        reason: str,
        eqn: JaxprEqn | None,
        quiet: bool = False,
        alone: bool = False,
    ) -> None:
        """Refuses the units of an axis."""
        if term is not None:
            terms.poison(term, Poison(reason, self.site(eqn), quiet, alone))

    def site(self, eqn: JaxprEqn | None) -> JaxprEqn | None:
        """The equation whose source line a reader should see.

        Inside a function of a library it is the call: the traceback within may be that
        of another call, for which JAX traced the function first.
        """
        return self.sites[0] if self.sites else eqn

    def unify(self, a: Term | None, b: Term | None, eqn: JaxprEqn | None) -> None:
        """Lines two axes up."""
        if a is None or b is None:
            return
        if not terms.unify(a, b):
            reason = "axes that are cut or grouped differently are brought together"
            self.poison(a, reason, eqn)
            self.poison(b, reason, eqn)

    def op(
        self,
        eqn: JaxprEqn,
        ins: Sequence[Value],
        axes: Sequence[Term | None],
        links: Sequence[Links],
        *,
        shape: Sequence[int] | None = None,
        known: float | None = None,
        kind: Kind | None = None,
        loops: frozenset[Term] | None = None,
        why: str = "",
        quiet: bool = False,
        masks: bool = False,
        **law: Unpack[OpFields],
    ) -> Value:
        """Appends an operation and returns its result.

        Operand axes that neither live on in the result nor are contracted or known
        to be mixed are poisoned here, so a rule that forgets an axis fails closed.
        Mixed axes are poisoned for the reason ``why``, quietly where nobody would
        look for units. ``masks`` says that data only masks or scales a weight.

        A result's axis of size n that comes from no operand's axis is poisoned too:
        its entries differ by their place, and with n - 1 units the program would put
        other entries there. Only where entries are repeated do they not differ.
        """
        name = self.labels[-1] if self.labels else eqn.primitive.name
        shape = shape_of(eqn) if shape is None else tuple(shape)
        # Entries along an axis that no operand has differ, unless they are repeated.
        fresh = eqn.primitive.name != "broadcast_in_dim"
        varies = []
        for i, n in enumerate(shape):
            held = [v.varies[link[i][0]] for v, link in zip(ins, links) if i in link]
            varies.append(any(held) if held else fresh and n != 1)
        new = [i for i, n in enumerate(shape) if n != 1 and axes[i] is None and fresh]
        for before, after in law.get("merges", ()):
            for i in after:
                varies[i] = any(ins[0].varies[k] for k in before)
        if loops is None:
            loops = frozenset().union(*(v.loops for v in ins))
        kind = (
            self._kind(ins, varies, links, masks or law.get("law") == "sum")
            if kind is None
            else kind
        )
        if kind == CONST and known is None and any(varies):
            kind = DATA  # a table: literal numbers that are not all the same
        out = self.value(
            shape, kind, axes=axes, varies=varies, known=known, loops=loops
        )
        done = Op(name, tuple(ins), out, tuple(links), eqn=self.site(eqn), **law)
        for i, (v, link) in enumerate(zip(ins, links)):
            followed = {a for a, _ in link.values()}
            followed |= {pair[i] for pair in done.contracted if i < 2}
            followed |= {a for group, _ in done.merges for a in group}
            for k, term in enumerate(v.axes):
                if (i, k) in done.mixed:
                    self.poison(term, why or _MIXES.format(name), eqn, quiet)
                elif k not in followed:
                    self.poison(term, _MIXES.format(name), eqn)
        for i in new:
            self.poison(out.axes[i], why or _MIXES.format(name), eqn, quiet)
        self.ops.append(done)
        return out

    def _kind(
        self,
        ins: Sequence[Value],
        varies: Sequence[bool],
        links: Sequence[Links],
        masks: bool,
    ) -> Kind:
        """The kind of a result, of axes that vary as ``varies`` says.

        Data and a weight make an activation, with one exception: ``masks`` holds and
        every axis along which the result varies is an axis along which the weight does,
        as for a weight ``[in, units]`` times a mask ``[in, units]``. A vector
        ``[units]`` times data ``[batch, units]`` varies along the batch, and is an
        activation.
        """
        kinds = {v.kind for v in ins}
        if not kinds or ACTIVATION in kinds or not {DATA, WEIGHT} <= kinds:
            return max(kinds, default=CONST)
        if not masks:
            return ACTIVATION
        for v, link in zip(ins, links):
            if v.kind == WEIGHT:
                covered = [
                    i in link and v.varies[link[i][0]] for i in range(len(varies))
                ]
                if covered == list(varies):
                    return WEIGHT
        return ACTIVATION
