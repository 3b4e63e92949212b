"""The dtypes in which arithmetic is done, also where JAX promotes none by itself."""

from typing import Any

import jax
import jax.numpy as jnp


def promoted(first: Any, second: Any) -> Any:
    """The dtype that holds both; under strict promotion too, where JAX names none."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def wide(x: jax.Array) -> jax.Array:
    """The array in float32 or wider, where rules do their arithmetic."""
    return x.astype(promoted(x.dtype, jnp.float32))
