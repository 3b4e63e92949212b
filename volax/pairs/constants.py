"""Numbers that a program holds and that may come from the width of a layer.

``x / w.shape[0]`` leaves a plain number in the trace: nothing ties it to the axis that
it was taken from, and a smaller model would keep it. So every number of the program is
compared with the sizes of a group: with n, 1/n, sqrt(n), 1/sqrt(n), and each of them
for 2n and n/2 (He's factor is sqrt(2/n)). A number that fits only by chance is named
as well: whoever cuts has to prove it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from volax.pairs.compat import primitives, source_line
from volax.pairs.records import Group
from volax.pairs.trace import CALLS, live_eqns, sub_jaxpr

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
    eqn: Any

    def fits(self, size: int) -> bool:
        """Whether it is a simple function of a size."""
        powers = [self.value, 1 / self.value]
        if not self.in_root:  # there, the size itself comes in
            powers += [power * power for power in powers]
        return any(
            abs(power - factor * size) <= 2 * self.precision * power
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


def numbers(jaxpr: core.Jaxpr, consts: Sequence[Any]) -> list[Number]:
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
    jaxpr: core.Jaxpr, consts: Sequence[Any], wanted: tuple[bool, ...]
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
        for inner in eqn.params.values():
            for sub in inner if isinstance(inner, tuple | list) else (inner,):
                body = getattr(sub, "jaxpr", sub)
                if isinstance(body, core.Jaxpr):
                    every = (True,) * len(body.outvars)
                    yield from _walk(body, getattr(sub, "consts", ()), every)


def _number(value: Any, eqn: Any) -> Number | None:
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


def _is_count(eqn: Any, atom: Any, made: Mapping[Any, Any]) -> bool:
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


def marked(
    group: Group, program: Sequence[Number], shapes: Mapping[str, tuple[int, ...]]
) -> Group:
    """A group with the numbers of the program that its sizes may have gone into."""
    sizes = {group.sizes[-1], group.size} | {
        size
        for member in group.carriers
        for size in _sizes(member.axes, shapes.get(member.path, ()))
    }
    fitting = (n for n in program if any(n.fits(s) for s in sizes if s > 1))
    return dataclasses.replace(group, constants=tuple(map(str, fitting)))


def _sizes(axes: Any, shape: tuple[int, ...]) -> Iterator[int]:
    """The extent of the units' axes, alone and with any of the others."""
    own = math.prod(shape[a.axis] for a in axes)
    rest = [n for k, n in enumerate(shape) if k not in {a.axis for a in axes}]
    for count in range(len(rest) + 1):
        for some in itertools.combinations(rest, count):
            yield own * math.prod(some)
