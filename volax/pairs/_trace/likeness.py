"""Numbers that look like a width, where a second trace cannot tell.

A Linen or Haiku model says its sizes in the program, as in ``Dense(32)``, and whoever
builds the smaller model writes other sizes there. A number that was computed from them
(``x / self.features``) is the same in every trace. So here every number that the
user's own code wrote is compared with the sizes of a group: with n, 1/n, sqrt(n),
1/sqrt(n), and each of them for 2n and n/2 (He's factor is sqrt(2/n)). That is a guess:
it names a number that fits by chance, and misses a number of another form. What traces
with fewer units is judged by ``widths.py``, which proves it.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from volax._types import Leaf
from volax.pairs._trace.compat import primitives, source_line, written_by_library
from volax.pairs._trace.jaxprs import CALLS, bodies, live_eqns, sub_jaxpr
from volax.pairs.records import Axis, Group

_CASTS = {*primitives("convert_element_type"), *CALLS}
_DIVISIONS = set(primitives("div"))
_ROOTS = set(primitives("sqrt", "rsqrt"))
_RESHAPES = set(primitives("broadcast_in_dim", "convert_element_type", "reshape"))
_SUMS = set(primitives("reduce_sum"))
_WINDOWS = set(primitives("reduce_window_sum"))
_NARROW = (jnp.bfloat16, jnp.float16, jnp.float32)
_LARGEST = 1 << 20  # entries of a captured array that are looked at


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a program: its value, its precision, and the equation it is in."""

    value: float
    precision: float
    eqn: core.JaxprEqn

    def fits(self, size: int) -> bool:
        """Whether it is a simple function of a size."""
        powers = [self.value, 1 / self.value]
        if not self.in_root:  # there, the size itself comes in
            powers += [power * power for power in powers]
        # A small integer is exact in every dtype, so it is no other width rounded.
        exact = self.value <= 256 and self.value == int(self.value)
        precision = 0.0 if exact else self.precision
        return any(
            abs(power - factor * size) <= 2 * precision * power
            for power in powers
            if math.isfinite(power)
            for factor in (0.5, 1, 2)
        )

    @property
    def in_root(self) -> bool:
        """Whether its root is taken."""
        return self.eqn.primitive in _ROOTS

    def __str__(self) -> str:
        line = source_line(self.eqn)
        return f"{self.value:g} in {self.eqn.primitive.name}" + (
            f" ({line})" if line else ""
        )


def numbers(jaxpr: core.Jaxpr, consts: Sequence[Leaf]) -> list[Number]:
    """Every number of a program, each value once; 0, 1 and what is not finite left out.

    The count in a mean is no width: a sum over so many entries stands before it.
    """
    found: dict[tuple[float, bool], Number] = {}
    for number in _walk(jaxpr, consts, (True,) * len(jaxpr.outvars)):
        size = abs(number.value)
        if math.isfinite(size) and size not in (0, 1):
            number = dataclasses.replace(number, value=size)
            found.setdefault((size, number.in_root), number)
    return list(found.values())


def _walk(
    jaxpr: core.Jaxpr, consts: Sequence[Leaf], wanted: tuple[bool, ...]
) -> Iterator[Number]:
    held: dict[Any, Any] = dict(zip(jaxpr.constvars, consts))
    made = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    for eqn, outs in live_eqns(jaxpr, wanted)[0]:
        for atom in eqn.invars:
            literal = isinstance(atom, core.Literal)
            value = atom.val if literal else held.get(atom)
            if value is None or _is_count(eqn, atom, made):
                continue
            number = _number(value, eqn)
            # An integer is an index, unless it is turned into something else.
            if number is not None and (number.precision or eqn.primitive in _CASTS):
                yield number
        if eqn.primitive in CALLS:
            yield from _walk(*sub_jaxpr(eqn), outs)
            continue
        for param in eqn.params.values():
            for body, inner in bodies(param):
                yield from _walk(body, inner, (True,) * len(body.outvars))


def _number(value: Leaf, eqn: core.JaxprEqn) -> Number | None:
    """A literal, or an array that holds one number throughout."""
    dtype, size = jnp.result_type(value), np.size(value)
    if not jnp.issubdtype(dtype, jnp.number) or not 0 < size <= _LARGEST:
        return None
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return None
    entries = np.asarray(value).reshape(-1)
    if size > 1 and (entries != entries[0]).any():
        return None
    if not jnp.issubdtype(dtype, jnp.floating):
        return Number(float(entries[0]), 0.0, eqn)
    # A wide number may have been computed in a narrow dtype.
    with np.errstate(over="ignore"):
        own = [d for d in (*_NARROW, dtype) if entries[0] == entries[0].astype(d)]
    return Number(float(entries[0]), float(jnp.finfo([*own, dtype][0]).eps), eqn)


def _is_count(eqn: core.JaxprEqn, atom: Any, made: Mapping[Any, Any]) -> bool:
    """Whether a number is how many entries the sum that it divides is over."""
    if eqn.primitive not in _DIVISIONS or not isinstance(atom, core.Literal):
        return False
    above = eqn.invars[0]
    while isinstance(above, core.Var) and (maker := made.get(above)) is not None:
        if maker.primitive in _SUMS:
            shape = maker.invars[0].aval.shape
            return float(atom.val) == math.prod(shape[k] for k in maker.params["axes"])
        if maker.primitive in _WINDOWS:
            return float(atom.val) == math.prod(maker.params["window_dimensions"])
        if maker.primitive not in _RESHAPES:
            return False
        above = maker.invars[0]
    return False


@dataclasses.dataclass(frozen=True)
class Likeness:
    """Compares the numbers of a program with the sizes of its groups.

    Attributes:
      closed: the program.
      shapes: of its parameters and its state by key path.
    """

    closed: core.ClosedJaxpr
    shapes: Mapping[str, tuple[int, ...]]

    @functools.cached_property
    def _numbers(self) -> list[Number]:
        return numbers(self.closed.jaxpr, self.closed.consts)

    def _fitting(self, group: Group) -> list[Number]:
        sizes = {group.sizes[-1], group.size} | {
            size
            for member in group.carriers
            for size in _sizes(member.axes, self.shapes.get(member.path, ()))
        }
        return [n for n in self._numbers if any(n.fits(s) for s in sizes if s > 1)]

    def written(self, group: Group) -> tuple[str, ...]:
        """The numbers of the user's code that the group's sizes may have gone into."""
        fitting = self._fitting(group)
        return tuple(
            f"{n} is like their number, and the layers hold sizes of their own"
            for n in fitting
            if not written_by_library(n.eqn)
        )

    def signs(self, group: Group) -> tuple[str, ...]:
        """The same for a group that could not be traced with fewer units.

        A part of an axis, and a factor between producers and consumers, count as well.
        """
        why = "the layers hold sizes of their own, so no smaller model was traced, and "
        said = [f"{why}{n} is like their number" for n in self._fitting(group)]
        for member in group.carriers:
            shape = self.shapes.get(member.path, ())
            for axis in () if member in group.consumers else member.axes:
                if axis.offset or axis.sizes != (shape[axis.axis],):
                    part = f"a part of axis {axis.axis} of {member.path!r}"
                    said.append(f"{why}they are {part}")
        factors = [op for op in group.through if op in _FACTORS]
        if factors and not (group.scales or group.fixed or group.states):
            said.append(f"{why}there is a factor between ({', '.join(factors)})")
        return tuple(said)


_FACTORS = ("mul", "div", "pow", "integer_pow")


def _sizes(axes: Sequence[Axis], shape: tuple[int, ...]) -> Iterator[int]:
    """The extent of the units' axes, alone and with any of the others."""
    own = math.prod(shape[a.axis] for a in axes)
    rest = [n for k, n in enumerate(shape) if k not in {a.axis for a in axes}]
    for count in range(len(rest) + 1):
        for some in itertools.combinations(rest, count):
            yield own * math.prod(some)
