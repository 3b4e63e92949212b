"""Two traces of one program compared, equation by equation.

The first was read onto the tape, so the axes of all its values are known as terms. The
second is of the same function with other numbers of units. An axis of term ``t`` in the
first has the size in the second that ``t`` has with those numbers put into its leaves:
a flattened ``[7, 7, units]`` of 98 entries has 49 with one unit in the place of two.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from volax.pairs._trace import terms
from volax.pairs._trace.compat import (
    in_library,
    primitives,
    scan_counts,
    source_line,
    unlisted,
)
from volax.pairs._trace.jaxprs import (
    CACHED,
    MAPS,
    SCANS,
    bodies,
    is_followed,
    live_eqns,
    scan_needs,
    sub_jaxpr,
)
from volax.pairs._trace.tape import Read, Value, shape_of
from volax.pairs._trace.terms import Term


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two programs differ.

    Attributes:
      said: one line for each difference.
      numbers: whether they differ in nothing but numbers (or in an array that cannot
        be cut), which no other size that a layer holds would mend.
    """

    said: tuple[str, ...]
    numbers: bool


class _DiffersError(Exception):
    """Two programs differ in more than numbers, so the walk ends here."""


class Sizes:
    """What becomes of shapes and indices where some leaves have other sizes."""

    def __init__(self, leaves: Mapping[Term, int]):
        self.leaves = leaves

    def size(self, term: Term | None) -> int:
        """The new size of an axis."""
        if term is None:
            return 1
        term = terms.find(term)
        if term.form == "leaf":
            return self.leaves.get(term, term.size)
        parts = map(self.size, term.parts)
        return math.prod(parts) if term.form == "product" else sum(parts)

    def shape(self, value: Value) -> tuple[int, ...]:
        """The new shape of a value."""
        return tuple(
            n if term is None else self.size(term)
            for n, term in zip(value.shape, value.axes)
        )

    def index(self, term: Term | None, place: int) -> int | None:
        """Where the index of a boundary moves to, None within what changes its size."""
        if term is None:
            return place
        term = terms.find(term)
        size = self.size(term)
        if place in (0, term.size):
            return size if place else 0
        if size == term.size and not any(t in self.leaves for t in terms.leaves(term)):
            return place
        if term.form == "sum":
            offset = 0
            for part in term.parts:
                if place <= part.size:
                    inside = self.index(part, place)
                    return None if inside is None else offset + inside
                place -= part.size
                offset += self.size(part)
        if term.form == "product":
            major, *rest = term.parts
            minor = math.prod(t.size for t in rest)
            if place % minor == 0:
                inside = self.index(major, place // minor)
                scale = math.prod(map(self.size, rest))
                return None if inside is None else inside * scale
        return None


# Parameters that are the shape of the result, or follow from those of the operands (a
# convolution's groups: its channels by the kernel's). Shapes are compared anyway.
_SHAPES = {
    primitive: name
    for name, group in {
        "shape": primitives("broadcast_in_dim", "iota", "random_bits"),
        "new_sizes": primitives("reshape"),
        "slice_sizes": primitives("dynamic_slice"),
        "sizes": unlisted("split"),
        "feature_group_count": primitives("conv_general_dilated"),
    }.items()
    for primitive in group
}
_SLICES = set(primitives("slice"))
_DYNAMIC = set(primitives("dynamic_slice"))
_PADS = set(primitives("pad"))
_GATHERS = set(primitives("gather"))


class Walk:
    """Walks two jaxprs in step: ``old``, which was read onto the tape, and ``new``."""

    def __init__(self, sizes: Sizes, text: str, reads: Iterator[Read]):
        self.sizes = sizes
        self.text = text
        self.reads = reads
        self.sites: list[core.JaxprEqn] = []
        self.found: list[str] = []

    def compared(
        self, old: core.ClosedJaxpr, new: core.ClosedJaxpr
    ) -> Difference | None:
        """How the programs differ, if they do."""
        wanted = (True,) * len(old.jaxpr.outvars)
        try:
            self._jaxprs(old.jaxpr, old.consts, new.jaxpr, new.consts, wanted, False)
        except _DiffersError as error:
            return Difference((*dict.fromkeys(self.found), str(error)), False)
        said = tuple(dict.fromkeys(self.found))
        return Difference(said, True) if said else None

    def _differs(self, what: str, eqn: core.JaxprEqn | None) -> _DiffersError:
        return _DiffersError(self._line(f"with {self.text} {what}", eqn))

    def _line(self, text: str, eqn: core.JaxprEqn | None) -> str:
        site = self.sites[0] if self.sites else eqn
        line = None if site is None else source_line(site)
        return text + (f" ({line})" if line else "")

    def _number(self, old: Any, new: Any, eqn: core.JaxprEqn) -> None:
        text = f"{old} in {eqn.primitive.name} is {new} with {self.text}"
        self.found.append(self._line(text, eqn))

    def _jaxprs(
        self,
        old: core.Jaxpr,
        old_consts: Sequence[Any],
        new: core.Jaxpr,
        new_consts: Sequence[Any],
        wanted: tuple[bool, ...],
        exact: bool,
    ) -> None:
        """Compares two jaxprs; ``exact`` where no shape may follow a width."""
        eqns = [live_eqns(j, wanted[: len(j.outvars)])[0] for j in (old, new)]
        first = eqns[0][0][0] if eqns[0] else None
        args = [(*j.constvars, *j.invars) for j in (old, new)]
        if len(args[0]) != len(args[1]) or len(old.outvars) != len(new.outvars):
            raise self._differs("the program has other arguments or results", first)
        shapes = [[getattr(v.aval, "shape", ()) for v in some] for some in args]
        if exact and shapes[0] != shapes[1]:
            raise self._differs("what it reads has another shape", first)
        same: dict[core.Var, core.Var] = dict(zip(*args))
        other = {
            var: (a, b)
            for var, a, b in zip(old.constvars, old_consts, new_consts)
            if not _equal(a, b)
        }
        for (eqn, outs), (twin, twin_outs) in zip(*eqns):
            if eqn.primitive is not twin.primitive or outs != twin_outs:
                what = f"{eqn.primitive.name} is {twin.primitive.name}"
                raise self._differs(what, eqn)
            self._operands(eqn, twin, same, other, exact)
            self._equation(eqn, twin, outs, exact)
            same.update(zip(eqn.outvars, twin.outvars))
        if len(eqns[0]) != len(eqns[1]):
            longer = max(eqns, key=len)[min(map(len, eqns))][0]
            raise self._differs(f"{longer.primitive.name} is there or not", longer)
        for a, b, needed in zip(old.outvars, new.outvars, wanted):
            if needed and not _matches(a, b, same):
                raise self._differs("the results are others", first)

    def _operands(
        self,
        eqn: core.JaxprEqn,
        twin: core.JaxprEqn,
        same: Mapping[core.Var, core.Var],
        other: Mapping[core.Var, tuple[Any, Any]],
        exact: bool,
    ) -> None:
        for k, (a, b) in enumerate(zip(eqn.invars, twin.invars)):
            if isinstance(a, core.Literal) and isinstance(b, core.Literal):
                place = eqn.primitive in _DYNAMIC and k > 0 and not exact
                if not place and not _equal(a.val, b.val):
                    self._number(a.val, b.val, eqn)
                continue
            if isinstance(a, core.Literal) or isinstance(b, core.Literal):
                raise self._differs(f"{eqn.primitive.name} has other operands", eqn)
            if a in same and same[a] is not b:
                raise self._differs(f"{eqn.primitive.name} has other operands", eqn)
            if a in other:
                old, new = map(_told, other[a])
                self._number(old, new if old != new else "another one", eqn)

    def _equation(
        self,
        eqn: core.JaxprEqn,
        twin: core.JaxprEqn,
        outs: tuple[bool, ...],
        exact: bool,
    ) -> None:
        if is_followed(eqn):
            self._called(eqn, twin, outs, exact)
            self._read(eqn, exact)
            return
        read = self._read(eqn, exact)
        shapes = [
            (shape_of(eqn, k), shape_of(twin, k))
            for k, v in enumerate(eqn.outvars)
            if hasattr(v.aval, "shape")
        ]
        for k, (old, new) in enumerate(shapes):
            made = None if read is None else read.outs[k]
            expected = old if made is None else self.sizes.shape(made)
            if new != expected:
                what = f"the result of {eqn.primitive.name} has shape {new}, "
                raise self._differs(what + f"expected {expected}", eqn)
        for name in {**eqn.params, **twin.params}:
            a, b = eqn.params.get(name), twin.params.get(name)
            if read is None or not self._follows(eqn, twin, name, a, b, read):
                self._equal_param(eqn, name, a, b)
        if read is not None and eqn.primitive in _DYNAMIC:
            self._starts(eqn, twin, read)

    def _read(self, eqn: core.JaxprEqn, exact: bool) -> Read | None:
        if exact:
            return None
        read = next(self.reads)
        assert read.eqn is eqn, "the walks are out of step"
        return read

    def _called(
        self,
        eqn: core.JaxprEqn,
        twin: core.JaxprEqn,
        outs: tuple[bool, ...],
        exact: bool,
    ) -> None:
        old, old_consts = sub_jaxpr(eqn)
        new, new_consts = sub_jaxpr(twin)
        if eqn.primitive in SCANS:
            names = ("length", "reverse")
            if scan_counts(eqn.params) != scan_counts(twin.params):
                raise self._differs("a scan carries something else", eqn)
            for name in names:
                self._equal_param(eqn, name, eqn.params[name], twin.params[name])
            outs = scan_needs(eqn, outs)[0]
        if eqn.primitive in MAPS:
            for name in eqn.params.keys() - {"jaxpr"}:
                self._equal_param(eqn, name, eqn.params[name], twin.params[name])
        foreign = eqn.primitive in CACHED and in_library(old)
        if foreign:
            self.sites.append(eqn)
        self._jaxprs(old, old_consts, new, new_consts, outs, exact)
        if foreign:
            self.sites.pop()

    def _follows(
        self,
        eqn: core.JaxprEqn,
        twin: core.JaxprEqn,
        name: str,
        old: Any,
        new: Any,
        read: Read,
    ) -> bool:
        """Whether a parameter is a size, and the one that the axes' terms predict."""
        primitive = eqn.primitive
        if _SHAPES.get(primitive) == name:
            return True
        if primitive in _SLICES and name in ("start_indices", "limit_indices"):
            starts = zip(_axes(read.ins[0]), old, new)
            # The limit follows from where it starts and from the result's shape.
            return name == "limit_indices" or all(
                self.sizes.index(term, a) == b for term, a, b in starts
            )
        if primitive in _PADS and name == "padding_config":
            return all(
                a == b or (a[2] == b[2] and self.sizes.index(term, a[0]) == b[0])
                for term, a, b in zip(_axes(read.outs[0]), old, new)
            )
        if primitive in _GATHERS and name == "slice_sizes":
            avals: list[Any] = [e.invars[0].aval for e in (eqn, twin)]
            whole, left = (aval.shape for aval in avals)
            return all(
                a == b or (a == m and b == n)
                for a, b, m, n in zip(old, new, whole, left)
            )
        return False

    def _starts(self, eqn: core.JaxprEqn, twin: core.JaxprEqn, read: Read) -> None:
        """Where slices begin: literals, which move with what lies before them."""
        for term, a, b in zip(_axes(read.ins[0]), eqn.invars[1:], twin.invars[1:]):
            if isinstance(a, core.Literal) and isinstance(b, core.Literal):
                old, new = int(a.val), int(b.val)
                if old != new and self.sizes.index(term, old) != new:
                    self._number(old, new, eqn)

    def _equal_param(self, eqn: core.JaxprEqn, name: str, old: Any, new: Any) -> None:
        inside = [list(bodies(p)) for p in (old, new)]
        if inside[0] or inside[1]:
            if len(inside[0]) != len(inside[1]):
                raise self._differs(f"{eqn.primitive.name} runs something else", eqn)
            for (a, a_consts), (b, b_consts) in zip(*inside):
                wanted = (True,) * len(a.outvars)
                self._jaxprs(a, a_consts, b, b_consts, wanted, True)
        elif not _equal(old, new):
            if isinstance(old, int | float):
                self._number(f"{name}={old}", new, eqn)
                return
            what = f"{name} of {eqn.primitive.name} is {new} and not {old}"
            raise self._differs(what, eqn)


def _axes(value: Value | None) -> Sequence[Term | None]:
    """The terms of a value that some equation other than a call read or made."""
    assert value is not None, "only calls leave out what nobody wants"
    return value.axes


def _matches(
    a: core.Var | core.Literal,
    b: core.Var | core.Literal,
    same: Mapping[core.Var, core.Var],
) -> bool:
    """Whether two results are the same literal, or made by equations in step."""
    if isinstance(a, core.Literal) or isinstance(b, core.Literal):
        if not (isinstance(a, core.Literal) and isinstance(b, core.Literal)):
            return False
        return _equal(a.val, b.val)
    return same.get(a) is b


def _equal(a: Any, b: Any) -> bool:
    """Whether two parameters, literals or captured arrays are the same."""
    if a is b:
        return True
    try:
        if hasattr(a, "dtype") and hasattr(b, "dtype"):
            if a.dtype != b.dtype or np.shape(a) != np.shape(b):
                return False
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            return bool(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True))
        return bool(a == b) or (a != a and b != b)
    except (TypeError, ValueError):
        return False


def _told(array: Any) -> str:
    """A captured array in a few words: the number that it holds throughout, if so."""
    entries = np.ravel(array)
    if entries.size and (entries == entries[0]).all():
        return f"{entries[0]}"
    return f"a captured array of shape {np.shape(array)}"
