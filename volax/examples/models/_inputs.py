"""What the loaded arrays become before the first layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def pictures(inputs: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Rows in [0, 1], or bytes, as pictures [batch, *shape] in [-1, 1]."""
    return 2 * unit(inputs).reshape(-1, *shape) - 1


def unit(inputs: jax.Array) -> jax.Array:
    """Bytes as float32 in [0, 1]; floats as they are."""
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        return inputs.astype(jnp.float32) / 255
    return inputs
