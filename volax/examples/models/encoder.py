"""A small transformer for sentences (Vaswani et al. 2017)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from volax.examples.data.text import PADDING
from volax.examples.models._layers import Block


class Encoder(nnx.Module):
    """Blocks of attention over all words, and the mean of what they make of each.

    Args:
      vocabulary: number of words, padding included.
      length: words of the longest sentence.
      classes: number of classes.
      width: channels of the residual stream.
      layers: number of blocks.
      heads: of each attention.
      hidden: units of each MLP; 0 for twice the width.
      dropout: share of the channels that training drops behind the embedding,
        attentions and MLPs.
      dtype: of the computation in the blocks; parameters are float32.
      rngs: source of the initial weights and of what is dropped.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        classes: int,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        hidden: int = 0,
        dropout: float = 0.0,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        hidden = hidden or 2 * width
        self.words = nnx.Embed(vocabulary, width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(length, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.blocks = nnx.List(
            Block(width, heads, hidden, dropout, dtype=dtype, rngs=rngs)
            for _ in range(layers)
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, words: jax.Array) -> jax.Array:
        """Map numbers [batch, length] to logits [batch, classes]."""
        x = self.words(words) + self.positions(jnp.arange(words.shape[1]))
        x, real = self.dropout(x), words != PADDING
        for block in self.blocks:
            x = block(x, real[:, None, None])
        x = jnp.where(real[..., None], self.norm(x), 0).sum(1)
        return self.out(x / jnp.maximum(real.sum(1, keepdims=True), 1))
