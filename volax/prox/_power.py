"""The factor of decoupled decay, 1 / (1 + k size^(p - 2)), at the speed of memory.

``jnp.power`` alone costs more than twice a whole Adam step on CPU, where it is computed
one number at a time. Exponents that are halves of integers need only products and
roots. For the others float32 is split into exponent and mantissa,

    size = 2^n m,  sqrt(1/2) <= m < sqrt(2),     size^e = 2^(e n + e log2 m),

with short polynomials for log2 and exp2. The integer part of ``e n`` never meets the
fraction in one rounding, and k is multiplied in before the power of two, so that the
relative error is a few ulp also where size^e alone would overflow.

It is arithmetic, not memory, that bounds it on CPU, so every operation counts: rounding
adds 1.5 * 2^23, whose low bits then are the integer (a cast from float would bring
XLA's handling of NaN along), and Horner's rule leaves registers to the compiler.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Minimax fits (reweighted least squares on Chebyshev nodes): log2(1 + r) to 3e-7 for
# 1 + r in [sqrt(1/2), sqrt(2)], 2^f to 1e-7 of its value for |f| <= 0.51.
_LOG2 = (
    1.3235296708602462e-07,
    1.442700640670639,
    -0.7213841852621108,
    0.480435482145525,
    -0.3588049384361689,
    0.2974394946988622,
    -0.2736489405824355,
    0.17112173120227755,
)
_EXP2 = (
    1.0000000805343245,
    0.6931469402312856,
    0.24022076415599683,
    0.05550738155429809,
    0.009677846022967559,
    0.0013274164987159118,
)
_SQRT_HALF = 0x3F3504F3  # the bit pattern of sqrt(1/2)
_EXPONENT = np.int32(-(1 << 23))  # the bits of sign and exponent
_ROUND = 1.5 * 2**23  # added to a small float32, it leaves the nearest integer
_LARGEST = 2.0**100  # beyond it q / (q + 1) is 1 in every dtype


def retention(
    size: jax.Array, p: jax.typing.ArrayLike, k: jax.typing.ArrayLike
) -> jax.Array:
    """What decay of strength k leaves of a weight, ``1 / (1 + k * size ** (p - 2))``.

    Args:
      size: magnitudes > 0, any shape, float32 or float64; the result at 0, and at
        subnormal or non-finite sizes, is without meaning.
      p: a Python number, which selects products and roots where they do, or a scalar
        array; non-negative.
      k: non-negative scalar; at 0 the factor is 1.

    Returns:
      The factor in [0, 1], shape and dtype of ``size``; in float32 a small one stops
      at about 2^-125.

    Example:
      >>> import jax.numpy as jnp
      >>> retention(jnp.array([1.0, 4.0]), 0.5, 0.5).round(4).tolist()
      [0.666..., 0.941...]
    """
    k = jnp.asarray(k, size.dtype)
    if isinstance(p, (int, float)) and 2 * p in range(5):
        if p >= 1:  # no power that could overflow
            power = jnp.sqrt(size) if p == 1.5 else size ** int(2 - p)
            return power / (power + k)
        odds = (1 / k) * size * (size if p == 0 else jnp.sqrt(size))
    elif size.dtype == jnp.float32:
        return 1 / (1 + _float32_pull(size, p, k))
    else:
        odds = jnp.power(size, 2 - jnp.asarray(p, size.dtype)) * (1 / k)
    odds = jnp.minimum(odds, _LARGEST)
    return odds / (odds + 1)


def retention_slopes(
    size: jax.Array, p: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The retention and its derivatives by size, k and p, each in the shape of size.

    With size^(p - 2) = b / a, where neither a nor b exceeds 1, the retention is
    f = a / (a + k b). Then df/dk = -f b / (a + k b), which is finite at k = 0 too, and
    the other two are the multiples (2 - p) / size and -log(size) of
    f (1 - f) = -k df/dk.

    Args:
      size: positive normal numbers, any shape.
      p: non-negative scalar.
      k: non-negative scalar.

    Returns:
      The retention, and its derivatives by size, by k and by p.
    """
    log = jnp.log(size)
    power = (p - 2) * log
    a, b = jnp.exp(-jnp.maximum(power, 0)), jnp.exp(jnp.minimum(power, 0))
    total = jnp.maximum(a + k * b, jnp.finfo(size.dtype).tiny)
    factor = a / total
    by_k = -factor * (b / total)
    spread = -k * by_k
    return factor, (2 - p) * (spread / size), by_k, -log * spread


def _float32_pull(size: jax.Array, p: jax.typing.ArrayLike, k: jax.Array) -> jax.Array:
    """``k * size ** (p - 2)``, kept a normal number."""
    # The head of e, of 12 bits, times the 8-bit exponent of size is exact.
    if isinstance(p, (int, float)):
        e = np.float32(2 - p)
        head = (e.view(np.int32) & np.int32(~0xFFF)).view(np.float32)
        tail = np.float32(2 - p - float(head))
    else:
        e = 2 - jnp.asarray(p, jnp.float32)
        head = _number(_bits(e) & ~0xFFF)
        tail = (2 - head) - jnp.asarray(p, jnp.float32)
    none = k < jnp.finfo(jnp.float32).tiny
    k_n = jnp.where(none, 0, (_bits(k) - _SQRT_HALF) >> 23)
    scale = jnp.where(none, 1, k)
    # Without strength the pull is the least normal number.
    lowest, highest = (
        jnp.where(none, -126, -124 - k_n),
        jnp.where(none, -126, 124 - k_n),
    )

    above = (_bits(size) - _SQRT_HALF) & _EXPONENT  # n * 2^23
    r = _number(_bits(size) - above) - 1
    n = above.astype(jnp.float32)
    unit = np.float32(2**-23)
    fraction = (-tail * unit) * n + _horner([-e * np.float32(c) for c in _LOG2], r)
    exact = (-head * unit) * n
    whole = _bits((exact + fraction) + _ROUND) - np.float32(_ROUND).view(np.int32)
    rest = (exact - whole.astype(jnp.float32)) + fraction
    scaled = scale * _horner([np.float32(c) for c in _EXP2], rest)
    return _number(_bits(scaled) + (jnp.clip(whole, lowest, highest) << 23))


def _horner(coefficients: Sequence[Any], x: jax.Array) -> jax.Array:
    value = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _number(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
