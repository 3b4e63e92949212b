"""Layers that two families share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class ConvNorm(nnx.Module):
    """A convolution without bias, and batch norm.

    Args:
      inside: channels of the input.
      outside: channels of the output.
      size: pixels along an edge of the kernel.
      strides: pixels between two positions.
      dtype: of the computation; parameters are float32.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        size: int = 3,
        strides: int = 1,
        *,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inside,
            outside,
            (size, size),
            strides,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outside, momentum=0.9, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [batch, height, width, inside] to [batch, ..., outside]."""
        return self.norm(self.conv(x))


class Attention(nnx.Module):
    """Attention of several heads, whose number and sizes are those of the arrays.

    So heads can be cut, and the channels of the values without those of queries and
    keys, which `nnx.MultiHeadAttention` wants to be of one size.

    Args:
      width: channels of the inputs and outputs.
      heads: number of heads, which share the width evenly.
      dtype: of the computation; parameters are float32.
      rngs: source of the initial weights.
    """

    def __init__(
        self, width: int, heads: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ):
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}")
        inner = (heads, width // heads)

        def projection() -> nnx.LinearGeneral:
            return nnx.LinearGeneral(width, inner, dtype=dtype, rngs=rngs)

        self.query, self.key, self.value = projection(), projection(), projection()
        self.out = nnx.LinearGeneral(
            inner, width, axis=(-2, -1), dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Mix [batch, length, width] along the length.

        Args:
          x: [batch, length, width].
          mask: true where a position (third axis) may look at another (fourth axis),
            of a shape that broadcasts to [batch, heads, length, length].

        Returns:
          [batch, length, width].
        """
        query, key, value = self.query(x), self.key(x), self.value(x)
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key) * query.shape[-1] ** -0.5
        scores = jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(value.dtype)
        return self.out(jnp.einsum("bhqk,bkhc->bqhc", weights, value))


class Block(nnx.Module):
    """Attention and an MLP of GELU units, each behind a layer norm and added.

    Args:
      width: channels of the inputs and outputs.
      heads: of the attention.
      hidden: units of the MLP.
      dropout: share of the channels that training drops behind each of the two.
      dtype: of the computation; parameters are float32.
      rngs: source of the initial weights and of what is dropped.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.norm0 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Map [batch, length, width] to the same; the mask is the attention's."""
        x = x + self.dropout(self.attention(self.norm0(x), mask))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm1(x)))))
