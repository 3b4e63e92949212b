"""The odds of a weight against its decay, size^e / k, at the speed of memory.

Decoupled decay multiplies a weight by q / (q + 1) with q = size^e / k. ``jnp.power``
alone costs more than twice a whole Adam step on CPU, where it is computed one number at
a time. Exponents that are halves of integers need only products and roots. For the
others float32 is split into exponent and mantissa,

    size = 2^n m,  sqrt(1/2) <= m < sqrt(2),     size^e = 2^(e n + e log2 m),

with short polynomials for log2 and exp2. The integer part of ``e n`` never meets the
fraction in one rounding, and k enters by its own exponent and mantissa, so that the
relative error is a few ulp wherever q is a normal number, also where size^e is not.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Minimax fits in relative error (reweighted least squares on Chebyshev nodes), to 2e-7
# of log2(1 + r) / r for 1 + r in [sqrt(1/2), sqrt(2)], to 1e-7 of 2^f for |f| <= 0.51.
_LOG2 = (
    1.442694902420044,
    -0.7213528156280518,
    0.48092323541641235,
    -0.3602396249771118,
    0.2870987057685852,
    -0.24887686967849731,
    0.23404234647750854,
    -0.14581164717674255,
)
_EXP2 = (
    1.0,
    0.6931469440460205,
    0.24022208154201508,
    0.0555076040327549,
    0.009673659689724445,
    0.00132619752548635,
)
_SQRT_HALF = 0x3F3504F3  # the bit pattern of sqrt(1/2)
_LARGEST = 2.0**100  # beyond it q / (q + 1) is 1 in every dtype


def odds(
    size: jax.Array, p: jax.typing.ArrayLike, k: jax.typing.ArrayLike
) -> jax.Array:
    """``size ** (2 - p) / k``, kept finite, for ``size > 0`` and ``k >= 0``.

    Args:
      size: magnitudes, any shape, float32 or float64; the result at 0, and at subnormal
        or non-finite sizes, is without meaning.
      p: a Python number, which selects products and roots where they do, or a scalar
        array; non-negative.
      k: non-negative scalar; at 0 the odds are very large.

    Returns:
      The odds, shape and dtype of ``size``, at most 2^127; in float32 a small value
      stops at about 2^-125.

    Example:
      >>> import jax.numpy as jnp
      >>> odds(jnp.array([1.0, 4.0]), 0.5, 0.5).tolist()
      [2.0, 16.0]
    """
    k = jnp.asarray(k, size.dtype)
    if isinstance(p, (int, float)) and 2 * p in range(5):
        whole, half = divmod(4 - 2 * p, 2)
        value = 1 / k
        for factor in [jnp.sqrt(size)] * int(half) + [size] * int(whole):
            value = value * factor
        return jnp.minimum(value, _LARGEST)
    if size.dtype != jnp.float32:
        power = jnp.power(size, 2 - jnp.asarray(p, size.dtype))
        return jnp.minimum(power * (1 / k), _LARGEST)
    return _float32_odds(size, p, k)


def _float32_odds(size: jax.Array, p: jax.typing.ArrayLike, k: jax.Array) -> jax.Array:
    e = 2 - jnp.asarray(p, jnp.float32)
    # A 12-bit head of e times an 8-bit exponent is exact.
    head = _number(_bits(e) & ~0xFFF)
    tail = (2 - head) - jnp.asarray(p, jnp.float32)
    if isinstance(p, (int, float)):
        tail = tail + jnp.float32(np.float64(np.float32(p)) - p)
    k_n, k_m = _split(k)
    # Without strength the odds are beyond all bounds.
    k_n = jnp.where(k < jnp.finfo(jnp.float32).tiny, -1000, k_n).astype(jnp.float32)
    size_n, size_m = _split(size)
    size_n = size_n.astype(jnp.float32)
    r = size_m - 1
    fraction = tail * size_n + r * _horner([e * c for c in _LOG2], r)
    exact = head * size_n
    n = jnp.round(exact + fraction)
    scaled = _horner([c / k_m for c in _EXP2], (exact - n) + fraction)
    n = jnp.clip(n - k_n, -124, 125).astype(jnp.int32)
    return _number(_bits(scaled) + (n << 23))


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Exponent (int32) and mantissa (in [sqrt(1/2), sqrt(2))) of positive float32."""
    n = (_bits(x) - _SQRT_HALF) >> 23
    return n, _number(_bits(x) - (n << 23))


def _horner(coefficients: list[jax.Array], x: jax.Array) -> jax.Array:
    value = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _number(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
