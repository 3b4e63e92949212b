"""Operations on each entry: what they do to the degree of every axis."""

import math
from fractions import Fraction
from typing import Unpack

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jax.typing import DTypeLike

from volax.pairs._trace.compat import primitives, unlisted
from volax.pairs._trace.rules.registry import rule, same, shape_of
from volax.pairs._trace.tape import (
    CONST,
    DATA,
    WEIGHT,
    HowZero,
    OpArgs,
    Tape,
    Value,
    dtype_of,
)
from volax.pairs._trace.terms import Term
from volax.pairs.records import RANDOM


def elementwise(tape: Tape, eqn: JaxprEqn, *ins: Value, **law: Unpack[OpArgs]) -> Value:
    """Lines the operands' axes up; rank 0 and size 1 stand for every index."""
    shape = shape_of(eqn)
    axes: list[Term | None] = [None] * len(shape)
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
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
}


def known(eqn: JaxprEqn, *ins: Value) -> float | None:
    """The number that the result is, rounded as the program does, if it is known."""
    given, name = [v.known for v in ins], eqn.primitive.name
    dtype = dtype_of(eqn.outvars[0])
    if any(g is None for g in given) or name not in _ARITHMETIC:
        return None
    if name == "div" and not jnp.issubdtype(dtype, jnp.floating):
        return None
    with np.errstate(all="ignore"):
        return float(_ARITHMETIC[name](*(np.asarray(g, dtype) for g in given)))


@rule(primitives("add", "sub", "add_jaxvals", "max", "min", "clamp"))
def additive(tape: Tape, eqn: JaxprEqn, *ins: Value) -> Value:
    """All operands have to scale alike: a bias takes the degree of its units."""
    number = known(eqn, *ins)
    return elementwise(
        tape, eqn, *ins, role="bias", known=number, zero=_bound(eqn, *ins)
    )


def _bound(eqn: JaxprEqn, *ins: Value) -> HowZero:
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


@rule(primitives("mul", "div"), params="out_dtype")
def multiplicative(tape: Tape, eqn: JaxprEqn, x: Value, y: Value) -> Value:
    """Degrees add up."""
    if is_narrow(dtype_of(eqn.outvars[0])) and eqn.params.get("out_dtype"):
        raise ValueError(f"a result in {eqn.params['out_dtype']}")
    weights, zero = ((1, 1), "any") if eqn.primitive.name == "mul" else ((1, -1), "div")
    number = known(eqn, x, y)
    return elementwise(
        tape, eqn, x, y, law="sum", weights=weights, zero=zero, known=number
    )


@rule(primitives("select_n"))
def select(tape: Tape, eqn: JaxprEqn, which: Value, *cases: Value) -> Value:
    """Cases have to scale alike; the choice is made by comparisons, which do not."""
    masks = which.kind <= DATA and all(v.kind != DATA for v in cases)
    number = cases[0].known
    if any(v.known != number for v in cases):
        number = None
    # The choice is listed last: "all" asks the cases only.
    return elementwise(
        tape, eqn, *cases, which, law="select", masks=masks, role="bias", known=number
    )


@rule(primitives("neg", "abs", "real"))
def keep(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """The degree stays."""
    return elementwise(tape, eqn, x, known=known(eqn, x))


@rule(primitives("copy", "stop_gradient"), unlisted("optimization_barrier"))
@rule(primitives("name"), params="name")
@rule(primitives("device_put"), params="devices srcs copy_semantics")
@rule(
    primitives("sharding_constraint"),
    params="sharding layout context_mesh unconstrained_dims",
)
@rule(unlisted("reshard"), params="dst_sharding concrete_mesh")
@rule(unlisted("pvary"), params="axes axis_index_groups")
def unchanged(tape: Tape, eqn: JaxprEqn, *ins: Value) -> list[Value]:
    """Every result is its operand."""
    return [
        tape.op(eqn, [v], v.axes, [same(v)], shape=v.shape, known=v.known) for v in ins
    ]


@rule(primitives("reduce_precision"), params="exponent_bits mantissa_bits")
def reduce_precision(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Rounding keeps the degree, as in a cast."""
    narrow = eqn.params["exponent_bits"] + eqn.params["mantissa_bits"] + 1 < 16
    return narrowed(tape, eqn, x) if narrow else elementwise(tape, eqn, x)


def narrowed(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Fewer than 16 bits hold too few powers of two for units that are rescaled."""
    return elementwise(tape, eqn, x, law="zero", zero="lost")


def is_narrow(dtype: DTypeLike) -> bool:
    """Whether a dtype is floating point with fewer than 16 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16


@rule(primitives("convert_element_type"), params="new_dtype weak_type sharding")
def convert(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Casts between floats keep the degree; a cast to integers loses the units."""
    to, given = eqn.params["new_dtype"], dtype_of(eqn.invars[0])
    number = _cast(x.known, to)
    if is_narrow(to) and not is_narrow(given):
        return narrowed(tape, eqn, x)
    if not jnp.issubdtype(to, jnp.integer) or not jnp.issubdtype(given, jnp.floating):
        law = "drop" if to == jnp.bool_ else "equal"
        return elementwise(tape, eqn, x, law=law, known=number)
    if x.kind >= WEIGHT:
        why = "a cast to integers loses how the units scale"
        mixed = tuple((0, k) for k in range(len(x.shape)))
        return tape.op(
            eqn,
            [x],
            [None] * len(x.shape),
            [{}],
            mixed=mixed,
            why=why,
            law="zero",
            known=number,
        )
    return elementwise(tape, eqn, x, law="zero", known=number)


def _cast(number: float | None, to: DTypeLike) -> float | None:
    """A known number in another dtype, as far as the dtype can hold it."""
    if number is None or jnp.issubdtype(to, jnp.complexfloating):
        return None
    if to == jnp.bool_:
        return float(number != 0)
    if jnp.issubdtype(to, jnp.integer):
        held = math.isfinite(number) and (
            jnp.iinfo(to).min <= number <= jnp.iinfo(to).max
        )
        return float(math.trunc(number)) if held else None
    with np.errstate(all="ignore"):
        return float(np.asarray(number).astype(to))


def _power(tape: Tape, eqn: JaxprEqn, x: Value, power: int | Fraction) -> Value:
    zero = "all" if power > 0 else "singular" if power < 0 else "lost"
    return elementwise(tape, eqn, x, law="sum", weights=(power,), zero=zero)


@rule(primitives("sqrt", "rsqrt", "cbrt", "square"), params="accuracy")
def root(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Powers multiply the degree."""
    powers = {"sqrt": (1, 2), "rsqrt": (-1, 2), "cbrt": (1, 3), "square": (2, 1)}
    return _power(tape, eqn, x, Fraction(*powers[eqn.primitive.name]))


@rule(primitives("integer_pow"), params="y")
def integer_power(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Powers multiply the degree."""
    return _power(tape, eqn, x, eqn.params["y"])


@rule(primitives("pow"))
def power(tape: Tape, eqn: JaxprEqn, x: Value, y: Value) -> Value:
    """A known exponent multiplies the degree; any other breaks it.

    The exponent is the number that the program holds, exactly: 0.33333334 in float32
    is no third.
    """
    if y.known is None or not math.isfinite(y.known) or y.kind != CONST:
        return singular(tape, eqn, x, y)
    return _power(tape, eqn, x, Fraction(y.known))


@rule(primitives("sign", "is_finite", "not", "and", "or", "xor"))
def scaleless(tape: Tape, eqn: JaxprEqn, *ins: Value) -> Value:
    """The result does not scale, however the operand does."""
    return elementwise(tape, eqn, *ins, law="sum", weights=(0,) * len(ins), zero="lost")


@rule(primitives("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "le_to", "lt_to"))
def compare(tape: Tape, eqn: JaxprEqn, *ins: Value) -> Value:
    """Values that scale alike compare the same, as do all values with zero."""
    return elementwise(tape, eqn, *ins, law="drop", zero="lost")


@rule(
    primitives("tanh", "erf", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh"),
    primitives("expm1", "log1p", "floor", "ceil", "round", "erf_inv"),
    params="accuracy rounding_method",
)
def zero_keeping(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Not homogeneous, with f(0) = 0."""
    return elementwise(tape, eqn, x, law="zero")


@rule(
    primitives("exp", "exp2", "logistic", "cos", "cosh", "acos", "erfc", "polynomial"),
    primitives("bessel_i0e", "bessel_i1e", "one_minus_square", "atan2", "nextafter"),
    primitives("shift_left", "shift_right_logical", "shift_right_arithmetic", "clz"),
    primitives("population_count", "imag", "conj", "complex"),
    params="accuracy input_dtype unroll",
)
def nonhomogeneous(tape: Tape, eqn: JaxprEqn, *ins: Value) -> Value:
    """Whatever scales its operand breaks it."""
    return elementwise(tape, eqn, *ins, law="zero", zero="lost")


@rule(primitives("log", "log2"), params="accuracy")
@rule(
    primitives("acosh", "lgamma", "digamma", "rem", "igamma", "igammac"),
    primitives("polygamma", "zeta"),
)
def singular(tape: Tape, eqn: JaxprEqn, *ins: Value) -> Value:
    """Not homogeneous, and at zero perhaps not even finite."""
    return elementwise(tape, eqn, *ins, law="zero", zero="singular")


@rule(primitives("bitcast_convert_type"), params="new_dtype")
def bitcast(tape: Tape, eqn: JaxprEqn, x: Value) -> Value:
    """Bits of another type are not numbers that scale."""
    if shape_of(eqn) != x.shape:
        mixed = tuple((0, k) for k in range(len(x.shape)))
        return tape.op(eqn, [x], [None] * len(shape_of(eqn)), [{}], mixed=mixed)
    return nonhomogeneous(tape, eqn, x)


@rule(primitives("iota"), params="dtype shape dimension sharding")
def iota(tape: Tape, eqn: JaxprEqn) -> Value:
    """Data: an index is no number that scales, and it cannot be cut."""
    out = tape.value(shape_of(eqn), DATA)
    tape.poison(out.axes[eqn.params["dimension"]], "the units are numbered", eqn, True)
    return out


@rule(primitives("random_bits"), params="bit_width shape")
def random_bits(tape: Tape, eqn: JaxprEqn, key: Value) -> Value:
    """Data of any size, but not the same data for another size."""
    return tape.value(shape_of(eqn), max(DATA, key.kind), name=RANDOM)
