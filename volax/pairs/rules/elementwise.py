"""Operations on each entry: what they do to the degree of every axis."""

import math
import operator
from typing import Any

import jax.numpy as jnp

from volax.pairs.compat import primitives, unlisted
from volax.pairs.rules.registry import rule, same, shape_of
from volax.pairs.tape import CONST, DATA, WEIGHT, Tape, Value


def elementwise(tape: Tape, eqn: Any, *ins: Value, **law: Any) -> Value:
    """Lines the operands' axes up; rank 0 and size 1 stand for every index."""
    shape = shape_of(eqn)
    axes: list[Any] = [None] * len(shape)
    links = []
    for v in ins:
        link = {}
        for k, term in enumerate(v.axes):
            if term is not None and v.shape[k] == shape[k]:
                if axes[k] is None:
                    axes[k] = term
                tape.unify(axes[k], term, eqn)
                link[k] = (k, 0)
        links.append(link)
    return tape.op(eqn, ins, axes, links, **law)


_ARITHMETIC = {
    "add": operator.add,
    "add_any": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": max,
    "min": min,
    "neg": operator.neg,
}


def known(eqn: Any, *ins: Value) -> float | None:
    """The number that the result is, where all operands are known numbers."""
    given = [v.known for v in ins]
    if any(g is None for g in given) or eqn.primitive.name not in _ARITHMETIC:
        return None
    try:
        return _ARITHMETIC[eqn.primitive.name](*given)
    except ArithmeticError:
        return None


@rule(primitives("add", "sub", "add_jaxvals", "max", "min", "clamp"))
def additive(tape: Tape, eqn: Any, *ins: Value) -> Value:
    """All operands have to scale alike: a bias takes the degree of its units."""
    number = known(eqn, *ins)
    return elementwise(
        tape, eqn, *ins, meet="bias", known=number, zero=_bound(eqn, *ins)
    )


def _bound(eqn: Any, *ins: Value) -> str | int:
    """Which operand decides about zero: known bounds around zero let it pass."""
    unknown = [k for k, v in enumerate(ins) if v.known is None]
    numbers = [v.known for v in ins if v.known is not None]
    if len(unknown) != 1 or not numbers:
        return "all"
    inside = {
        "max": numbers[0] <= 0,
        "min": numbers[0] >= 0,
        "clamp": unknown == [1] and numbers[0] <= 0 <= numbers[-1],
    }
    return unknown[0] if inside.get(eqn.primitive.name) else "all"


@rule(primitives("mul", "div"))
def multiplicative(tape: Tape, eqn: Any, x: Value, y: Value) -> Value:
    """Degrees add up."""
    weights, zero = ((1, 1), "any") if eqn.primitive.name == "mul" else ((1, -1), "div")
    number = known(eqn, x, y)
    return elementwise(
        tape, eqn, x, y, law="sum", weights=weights, zero=zero, known=number
    )


@rule(primitives("select_n"))
def select(tape: Tape, eqn: Any, which: Value, *cases: Value) -> Value:
    """Cases have to scale alike; the choice is made by comparisons, which do not."""
    masks = which.kind <= DATA and all(v.kind != DATA for v in cases)
    number = cases[0].known
    if any(v.known != number for v in cases):
        number = None
    # The choice is listed last: "all" asks the cases only.
    return elementwise(
        tape, eqn, *cases, which, law="select", masks=masks, meet="bias", known=number
    )


@rule(
    primitives("neg", "abs", "real", "copy", "stop_gradient", "name", "device_put"),
    primitives("sharding_constraint", "reduce_precision"),
    unlisted("reshard", "pvary"),
)
def keep(tape: Tape, eqn: Any, *ins: Value) -> Value:
    """The degree stays."""
    return elementwise(tape, eqn, *ins, known=known(eqn, *ins) or _kept(eqn, *ins))


def _kept(eqn: Any, *ins: Value) -> float | None:
    return ins[0].known if eqn.primitive.name not in ("neg", "abs") else None


@rule(unlisted("optimization_barrier"))
def barrier(tape: Tape, eqn: Any, *ins: Value) -> list[Value]:
    """Every result is its operand."""
    return [
        tape.op(eqn, [v], v.axes, [same(v)], shape=v.shape, known=v.known) for v in ins
    ]


@rule(primitives("convert_element_type"))
def convert(tape: Tape, eqn: Any, x: Value) -> Value:
    """Casts between floats keep the degree; a cast to integers loses the units."""
    to, given = eqn.params["new_dtype"], eqn.invars[0].aval.dtype
    number = x.known
    if not jnp.issubdtype(to, jnp.integer) or not jnp.issubdtype(given, jnp.floating):
        law = "drop" if to == jnp.bool_ else "equal"
        return elementwise(tape, eqn, x, law=law, known=number)
    if x.kind >= WEIGHT:
        why = "a cast to integers loses how the units scale"
        mixed = tuple((0, k) for k in range(len(x.shape)))
        return tape.op(
            eqn, [x], [], [{}], mixed=mixed, why=why, law="zero", known=number
        )
    return elementwise(tape, eqn, x, law="zero", known=number)


def _power(tape: Tape, eqn: Any, x: Value, power: float, **more: Any) -> Value:
    zero = "all" if power > 0 else "singular" if power < 0 else "lost"
    return elementwise(tape, eqn, x, law="sum", weights=(power,), zero=zero, **more)


@rule(primitives("sqrt", "rsqrt", "cbrt", "square"))
def root(tape: Tape, eqn: Any, x: Value) -> Value:
    """Powers multiply the degree."""
    powers = {"sqrt": 1 / 2, "rsqrt": -1 / 2, "cbrt": 1 / 3, "square": 2}
    return _power(tape, eqn, x, powers[eqn.primitive.name])


@rule(primitives("integer_pow"))
def integer_power(tape: Tape, eqn: Any, x: Value) -> Value:
    """Powers multiply the degree."""
    return _power(tape, eqn, x, eqn.params["y"])


@rule(primitives("pow"))
def power(tape: Tape, eqn: Any, x: Value, y: Value) -> Value:
    """A known exponent multiplies the degree; any other breaks it."""
    if y.known is None or not math.isfinite(y.known) or y.kind != CONST:
        return nonhomogeneous(tape, eqn, x, y)
    return _power(tape, eqn, x, y.known)


@rule(primitives("sign", "is_finite", "not", "and", "or", "xor"))
def scaleless(tape: Tape, eqn: Any, *ins: Value) -> Value:
    """The result does not scale, however the operand does."""
    return elementwise(tape, eqn, *ins, law="sum", weights=(0,) * len(ins), zero="lost")


@rule(primitives("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "le_to", "lt_to"))
def compare(tape: Tape, eqn: Any, *ins: Value) -> Value:
    """Values that scale alike compare the same, as do all values with zero."""
    return elementwise(tape, eqn, *ins, law="drop", zero="lost")


@rule(
    primitives("tanh", "erf", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh"),
    primitives("expm1", "log1p", "floor", "ceil", "round", "erf_inv"),
)
def zero_keeping(tape: Tape, eqn: Any, x: Value) -> Value:
    """Not homogeneous, with f(0) = 0."""
    return elementwise(tape, eqn, x, law="zero")


@rule(
    primitives(
        "exp", "exp2", "log", "log2", "logistic", "cos", "cosh", "acos", "acosh"
    ),
    primitives("erfc", "lgamma", "digamma", "bessel_i0e", "bessel_i1e", "polynomial"),
    primitives("one_minus_square", "atan2", "rem", "nextafter", "igamma", "igammac"),
    primitives("shift_left", "shift_right_logical", "shift_right_arithmetic", "clz"),
    primitives("population_count", "polygamma", "zeta", "imag", "conj", "complex"),
)
def nonhomogeneous(tape: Tape, eqn: Any, *ins: Value) -> Value:
    """Whatever scales its operand breaks it."""
    zero = "singular" if eqn.primitive.name in ("log", "log2") else "lost"
    return elementwise(tape, eqn, *ins, law="zero", zero=zero)


@rule(primitives("bitcast_convert_type"))
def bitcast(tape: Tape, eqn: Any, x: Value) -> Value:
    """Bits of another type are not numbers that scale."""
    if shape_of(eqn) != x.shape:
        mixed = tuple((0, k) for k in range(len(x.shape)))
        return tape.op(eqn, [x], [], [{}], mixed=mixed)
    return nonhomogeneous(tape, eqn, x)


@rule(primitives("iota"))
def iota(tape: Tape, eqn: Any) -> Value:
    """Data: an index is no number that scales, and it cannot be cut."""
    out = tape.value(shape_of(eqn), DATA)
    tape.poison(out.axes[eqn.params["dimension"]], "the units are numbered", eqn, True)
    return out


@rule(primitives("random_bits"))
def random_bits(tape: Tape, eqn: Any, key: Value) -> Value:
    """Data, of any size."""
    return tape.value(shape_of(eqn), max(DATA, key.kind))
