"""The arithmetic of the maps runs in float32 or wider, whatever the weights' dtype."""

import jax
import jax.numpy as jnp

from volax._numerics import promoted


def wide(
    x: jax.typing.ArrayLike, strength: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Weights and strength in one dtype, float32 or wider, each of its own shape."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be real floating-point, got dtype {x.dtype}")
    dtype = promoted(x.dtype, jnp.float32)
    return x.astype(dtype), jnp.asarray(strength, dtype)
