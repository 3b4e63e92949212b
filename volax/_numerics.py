"""Numbers as dtypes hold them: float32 or wider for arithmetic, rounding, limits."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

T = TypeVar("T", float, np.ndarray, jax.Array)
Limit = float | np.ndarray | np.generic | jax.Array


def promoted(first: DTypeLike, second: DTypeLike) -> np.dtype:
    """The dtype that holds both; under strict promotion too, where JAX names none."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def wide_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype itself if it is a float of 32 bits or more, else float32."""
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype if is_wide else jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """The array in float32 or wider, where rules do their arithmetic."""
    return x.astype(wide_dtype(x.dtype))


# A weight p that a wall V stopped becomes fl(p + d) by the update d = fl(V - p), where
# |V - p| <= 2 V: each rounding is at most an ulp of V, so it sits within a few of them.
WALL_ULPS = 4


def inside(limit: T, dtype: DTypeLike, ulps: int = WALL_ULPS) -> T:
    """A limit less some ulps of a dtype: what is as large counts as at the limit."""
    return limit * (1 - ulps * float(jnp.finfo(dtype).eps))


INTEGERS = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}


def rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The value as the dtype holds it, even where XLA would keep excess precision."""
    info = jnp.finfo(dtype)
    if x.dtype == dtype and info.bits >= 32:
        return x
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def floor_magnitude(limit: Limit, dtype: DTypeLike) -> jax.Array:
    """A non-negative limit rounded toward zero to a dtype, shape of the limit."""
    if isinstance(limit, (int, float, np.ndarray, np.generic)):
        exact = np.asarray(limit, np.float64)
        nearest = np.asarray(exact, jnp.dtype(dtype))
        below = np.nextafter(nearest, np.zeros_like(nearest))
        return jnp.asarray(np.where(nearest.astype(np.float64) > exact, below, nearest))
    wide = promoted(limit.dtype, dtype)
    nearest = jnp.asarray(limit, dtype)
    bits = jax.lax.bitcast_convert_type(nearest, INTEGERS[nearest.dtype.itemsize])
    below = jax.lax.bitcast_convert_type(bits - 1, nearest.dtype)
    return jnp.where(nearest.astype(wide) > limit.astype(wide), below, nearest)
