"""Numbers that depend on a width, found by tracing the program once more.

``x / w.shape[0]`` leaves a plain number in the trace, and nothing ties it to the axis
that it was taken from: a smaller model would divide by another one. So the program is
traced again with fewer units in every group, and the two jaxprs are compared equation
by equation: the same primitives on the same operands, with the same parameters and the
same numbers. Shapes may differ, but only as the terms of the axes say, where the leaf
of each group has its new size. If all that holds, no number depends on a width.

Two sizes are tried: an odd number of units fewer, mostly one, which shows whatever
grows or falls with the width and what has to divide it, and two to five units, which
shows thresholds. For any two groups they are chosen such that neither the difference
nor the ratio of their widths is the same in both trials, even rounded. Where groups
lie one after another along an axis, so that a place in it may depend on all of them, a
third size is drawn for each. So a number is not seen if it is the same at these sizes
as at the full one, such as one that is different for a single unit only. Groups of two
units are traced with more units instead, because JAX treats an axis of size 1 as one
that is broadcast, and so are narrow groups of which there are too many to differ. On an
explicit mesh the units of a sharded axis come and go by as many as it has devices.

Where the programs differ, the groups that are alike are tried by themselves, and halved
until those that cause it are alone, or all of them do.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from volax.pairs._trace import likeness, terms
from volax.pairs._trace.compat import (
    in_library,
    primitives,
    raised_line,
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
from volax.pairs._trace.models import Traceable, sizes_from_arrays
from volax.pairs._trace.tape import Read, Value, shape_of
from volax.pairs._trace.terms import Term
from volax.pairs.records import Group

_TRIALS = 32  # sets of groups that are tried before a set is named as a whole
_MORE = 400  # fewer units than this are added where groups are concatenated


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced program.

    Attributes:
      given: the model that was traced.
      closed: its jaxpr.
      arrays: the traced value of each argument of the jaxpr.
      fixed: those among them that cannot be cut.
      shapes: of the parameters and of the state by key path.
      reads: what each live equation read and made, in the order of the walk.
    """

    given: Traceable
    closed: core.ClosedJaxpr
    arrays: Sequence[Value]
    fixed: frozenset[Value]
    shapes: Mapping[str, tuple[int, ...]]
    reads: Sequence[Read]


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


def marked(
    program: Program, groups: Sequence[Group], leaves: Sequence[Term]
) -> tuple[Group, ...]:
    """The groups with what in the program depends on the number of their units.

    Args:
      program: the traced program.
      groups: its groups.
      leaves: for each group the leaf that numbers its last unit index.

    Returns:
      The groups, in the same order, with ``constants``.
    """
    trials = _Trials(program, groups, leaves)
    blamed = trials.blamed()
    constants = [why.said if (why := blamed.get(k)) else () for k in range(len(groups))]
    if trials.declared:
        blamed = trials.with_fields(blamed)
        like = likeness.Likeness(program.closed, program.shapes)
        for k, group in enumerate(groups):
            why = blamed.get(k)
            if why is None:
                constants[k] = like.written(group)
            else:
                constants[k] = why.said if why.numbers else like.signs(group)
    return tuple(
        dataclasses.replace(group, constants=said)
        for group, said in zip(groups, constants)
    )


def _fewer(count: int, step: int) -> int:
    """One step of units fewer, or more where an axis of size 1 would be broadcast."""
    least = 2 if step == 1 else 1
    return count - step if count // step > least else count + step


def _sizes(counts: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
    """The two other numbers of units that each group is traced with.

    Both are multiples of the group's step. The first differs by an odd number of steps,
    so that what has to be even is seen. The two are chosen such that what holds between
    the widths of two groups, as where a concatenation is cut in the middle, holds at
    one of them no longer.
    """
    chosen: list[tuple[int, int]] = []
    lost: list[tuple[int, int]] = []  # by how much each group is smaller
    for count, step in zip(counts, steps):
        for new in _candidates(count // step, step):
            less = count - new[0], count - new[1]
            if all(
                _apart(count, less, other, gone) for other, gone in zip(counts, lost)
            ):
                chosen.append(new)
                lost.append(less)
                break
    return chosen


def _any_sizes(counts: Sequence[int], steps: Sequence[int]) -> list[int]:
    """Larger numbers of units that nothing but chance relates to one another."""
    rng = random.Random(0)
    return [n + step * rng.randrange(1, _MORE) for n, step in zip(counts, steps)]


def _concatenated(program: Program, leaves: Sequence[Term]) -> bool:
    """Whether units of several groups lie one after another along some axis."""
    ours, seen = set(leaves), set()
    for read in program.reads:
        for value in (*read.ins, *read.outs):
            for term in () if value is None else value.axes:
                if term is not None and (root := terms.find(term)) not in seen:
                    seen.add(root)
                    if root.form != "leaf" and len(ours & {*terms.leaves(root)}) > 1:
                        return True
    return False


def _candidates(times: int, step: int) -> Iterator[tuple[int, int]]:
    least = 2 if step == 1 else 1  # an axis of size 1 is broadcast
    few = [n for n in range(least, least + 4) if n < times]
    few = few or list(range(times + 2, times + 6))
    fewer = range(times - 1, least - 1, -2)
    for first in itertools.chain(fewer, itertools.count(times + 1, 2)):
        for second in few:
            yield first * step, second * step


def _apart(a: int, a_less: tuple[int, int], b: int, b_less: tuple[int, int]) -> bool:
    """Whether neither the difference nor the ratio of two widths stays in both trials.

    Rounding counts as staying: ``n // 2`` is the same for two widths.
    """
    if _rounded((a_less[0] - b_less[0], a_less[1] - b_less[1])):
        return False
    if a_less[0] * b_less[1] == a_less[1] * b_less[0]:
        return False
    return any(abs(x * b - y * a) >= max(a, b) for x, y in zip(a_less, b_less))


def _rounded(missed: tuple[int, int]) -> bool:
    return max(map(abs, missed)) < 2


def _sharded(leaf: Any) -> Any:
    """The sharding that the program itself sees (on an explicit mesh), else None."""
    sharding = jax.typeof(leaf).sharding
    return sharding if any(part is not None for part in sharding.spec) else None


def _steps(program: Program, flat: Sequence[Any]) -> dict[Term, int]:
    """By how much the sizes of leaves may change: what a mesh axis has to divide."""
    steps: dict[Term, int] = {}
    for value, array in zip(program.arrays, flat):
        if value.shape and (sharding := _sharded(array)) is not None:
            for term, part in zip(value.axes, sharding.spec):
                names = part if isinstance(part, tuple) else (part,) if part else ()
                count = math.prod(sharding.mesh.shape[name] for name in names)
                for leaf in () if term is None else terms.leaves(term):
                    steps[leaf] = math.lcm(steps.get(leaf, 1), count)
    return steps


class _Trials:
    """Traces a program with some groups smaller, and compares."""

    def __init__(
        self, program: Program, groups: Sequence[Group], leaves: Sequence[Term]
    ):
        self.program = program
        self.leaves = leaves
        self.declared = False
        self.done: dict[frozenset[int], Difference | None] = {}
        given = program.given
        self.flat, self.tree = jax.tree.flatten((given.params, *given.inputs))
        steps = _steps(program, self.flat)
        self.steps = [steps.get(leaf, 1) for leaf in leaves]
        counts = [leaf.size for leaf in leaves]
        self.sizes: list[tuple[int, ...]] = [*_sizes(counts, self.steps)]
        if _concatenated(program, leaves):
            more = _any_sizes(counts, self.steps)
            self.sizes = [(*two, third) for two, third in zip(self.sizes, more)]
        alike: dict[Any, list[int]] = {}
        for k, group in enumerate(groups):
            carriers = [
                (m.role, m.axes, program.shapes[m.path]) for m in group.carriers
            ]
            alike.setdefault((group.through, *carriers), []).append(k)
        self.alike = [*alike.values()]

    def blamed(self) -> dict[int, Difference]:
        """The groups that change the program, and how."""
        everything = [k for some in self.alike for k in some]
        if not everything or self._tried(everything) is None:
            return {}
        found: dict[int, Difference] = {}
        passed: list[list[int]] = []
        waiting = self.alike[::-1]
        trials = 0
        while waiting:
            some = waiting.pop()
            why = self._tried(some)
            trials += 1
            half = len(some) // 2
            if why is None:
                passed.append(some)
            elif not half or trials > _TRIALS or self._each(some[0], some[-1]):
                found |= dict.fromkeys(some, why)
            else:
                waiting += [some[half:], some[:half]]
        if not passed and (always := self._tried([])) is not None:
            return dict.fromkeys(everything, always)
        # A number may depend on two widths and change only where both do.
        together: list[int] = []
        for some in passed if len(passed) > 1 else ():
            why = self._tried(together + some)
            if why is None:
                together += some
            else:
                found |= dict.fromkeys(some, why)
        return found

    def with_fields(self, blamed: Mapping[int, Difference]) -> dict[int, Difference]:
        """The same where the fields of Linen and Haiku modules follow the sizes.

        A field may hold one of the sizes by chance. So a number that changes with it
        counts, and a program that is the same is proven, but nothing else is said.
        """
        found = {k: why for k, why in blamed.items() if why.numbers}
        left = [[k for k in some if k not in found] for some in self.alike]
        left = [some for some in left if some]
        whole = self._followed([k for some in left for k in some])
        for some in left if whole is not None else ():
            why = whole if len(left) == 1 else self._followed(some)
            if why is not None and why.numbers:
                found |= dict.fromkeys(some, why)
            elif why is not None:
                found |= {k: blamed[k] for k in some if k in blamed}
        return found

    def _followed(self, some: Sequence[int]) -> Difference | None:
        # Groups of one size get one size, as a field may be read by any of them.
        sizes = {
            leaf: _fewer(leaf.size, step)
            for leaf, step in ((self.leaves[k], self.steps[k]) for k in some)
        }
        fields = {leaf.size: size for leaf, size in sizes.items()}
        text = "other numbers of units in the fields of its modules"
        return self._differing(sizes, text, fields)

    def _each(self, *some: int) -> bool:
        """Whether each of these groups changes the program by itself."""
        return all(self._tried([k]) is not None for k in some)

    def _tried(self, some: Sequence[int]) -> Difference | None:
        """How the program differs with these groups smaller, if it does."""
        key = frozenset(some)
        if key not in self.done:
            self.done[key] = self._traced(some)
        return self.done[key]

    def _traced(self, some: Sequence[int]) -> Difference | None:
        """The same, which was not tried before."""
        seen = set()
        for which in range(max(map(len, self.sizes))):
            text = "other numbers of units"
            sizes = {self.leaves[k]: self.sizes[k][which] for k in some}
            if len(some) == 1:
                (k,) = some
                text = f"{self.sizes[k][which]} of {self.leaves[k].size} units"
            key = tuple(sizes.values())
            if key not in seen and (why := self._differing(sizes, text)) is not None:
                return why
            seen.add(key)
        return None

    def _differing(
        self, sizes: Mapping[Term, int], text: str, fields: Mapping[int, int] = {}
    ) -> Difference | None:
        new = _Sizes(sizes)
        program = self.program
        for value in program.arrays:
            if value in program.fixed and new.shape(value) != value.shape:
                why = f"{value.name} lies along the units and cannot be cut"
                return Difference((why,), True)
        given = program.given
        small = [_resized(x, new.shape(v)) for x, v in zip(self.flat, program.arrays)]
        try:
            with sizes_from_arrays(fields) as declared:
                # A function of its own: a trace of the same shapes may be kept.
                trace = jax.make_jaxpr(lambda *args: given.fn(*args))
                closed = trace(*jax.tree.unflatten(self.tree, small))
        except Exception as error:
            line = raised_line(error)
            first = (str(error).splitlines() or [""])[0]
            why = f"with {text} it does not trace: {type(error).__name__}: {first}"
            return Difference((why + (f" ({line})" if line else ""),), False)
        finally:
            self.declared |= bool(declared)
        walk = _Walk(new, text, iter(program.reads))
        return walk.compared(program.closed, closed)


def _resized(leaf: Any, shape: tuple[int, ...]) -> Any:
    """An array's description with another shape; the array itself if it has it."""
    if jnp.shape(leaf) == shape:
        return leaf
    weak = getattr(leaf, "weak_type", False)
    sharding = _sharded(leaf)
    return jax.ShapeDtypeStruct(shape, leaf.dtype, weak_type=weak, sharding=sharding)


class _Sizes:
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


class _Walk:
    """Walks two jaxprs in step: ``old``, which was read onto the tape, and ``new``."""

    def __init__(self, sizes: _Sizes, text: str, reads: Iterator[Read]):
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
        same: dict[Any, Any] = dict(zip(*args))
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
        same: Mapping[Any, Any],
        other: Mapping[Any, Any],
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


def _matches(a: Any, b: Any, same: Mapping[Any, Any]) -> bool:
    if isinstance(a, core.Literal) or isinstance(b, core.Literal):
        both = isinstance(a, core.Literal) and isinstance(b, core.Literal)
        return both and _equal(a.val, b.val)
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
