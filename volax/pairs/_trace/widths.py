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

Where the programs differ, the groups are halved, and halved again, until what is left
is the same, or those that cause it are alone; groups that are alike stay together as
long as all of them do. Then what was the same is put together again.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core

from volax.pairs._trace import likeness, terms
from volax.pairs._trace.compare import Difference, Sizes, Walk
from volax.pairs._trace.compat import raised_line
from volax.pairs._trace.models import Traceable, sizes_from_arrays
from volax.pairs._trace.tape import Read, Value
from volax.pairs._trace.terms import Term
from volax.pairs.records import Group

_T = TypeVar("_T")
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


def _halves(some: list[_T]) -> list[list[_T]]:
    """The first and the second half of a list."""
    half = len(some) // 2
    return [some[:half], some[half:]]


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
        self.held: set[int] | None = None  # numbers in the fields of the user's modules
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
        passed: list[list[list[int]]] = []
        waiting = [self.alike]
        trials = 0
        while waiting:
            sets = waiting.pop()
            some = [k for part in sets for k in part]
            why = self._tried(some)
            if why is None:
                passed.append(sets)
                continue
            halves = _halves(sets)
            if len(sets) == 1:
                trials += 1
                halves = [[half] for half in _halves(some)]
                if len(some) == 1 or trials > _TRIALS or self._each(some[0], some[-1]):
                    found |= dict.fromkeys(some, why)
                    continue
            waiting += halves[::-1]
        if not passed and (always := self._tried([])) is not None:
            return dict.fromkeys(everything, always)
        # A number may depend on two widths and change only where both do.
        together: list[int] = []
        waiting = passed[::-1] if len(passed) > 1 else []
        while waiting:
            sets = waiting.pop()
            some = [k for part in sets for k in part]
            why = self._tried(together + some)
            if why is None:
                together += some
            elif len(sets) == 1:
                found |= dict.fromkeys(some, why)
            else:
                waiting += _halves(sets)[::-1]
        return found

    def with_fields(self, blamed: Mapping[int, Difference]) -> dict[int, Difference]:
        """The same where the fields of Linen and Haiku modules follow the sizes.

        A field may hold one of the sizes by chance. So a number that changes with it
        counts, and a program that is the same is proven, but nothing else is said.
        """
        found = {k: why for k, why in blamed.items() if why.numbers}
        # Where no field holds the size, this would be one more trace as before.
        asked = [k in blamed or self._in_a_field(k) for k in range(len(self.leaves))]
        left = [[k for k in some if k not in found and asked[k]] for some in self.alike]
        left = [some for some in left if some]
        whole = self._followed([k for some in left for k in some]) if left else None
        for some in left if whole is not None else ():
            why = whole if len(left) == 1 else self._followed(some)
            if why is not None and why.numbers:
                found |= dict.fromkeys(some, why)
            elif why is not None:
                found |= {k: blamed[k] for k in some if k in blamed}
        return found

    def _in_a_field(self, k: int) -> bool:
        """Whether a field of a user's module holds the size of a group, if known."""
        return self.held is None or self.leaves[k].size in self.held

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
        new = Sizes(sizes)
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
        walk = Walk(new, text, iter(program.reads))
        why = walk.compared(program.closed, closed)
        if why is None:  # the same program, so all its modules were called
            self.held = set().union(*declared)
        return why


def _resized(leaf: Any, shape: tuple[int, ...]) -> Any:
    """An array's description with another shape; the array itself if it has it."""
    if jnp.shape(leaf) == shape:
        return leaf
    weak = getattr(leaf, "weak_type", False)
    sharding = _sharded(leaf)
    return jax.ShapeDtypeStruct(shape, leaf.dtype, weak_type=weak, sharding=sharding)
