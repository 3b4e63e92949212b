"""A GRU with attention over the words (Cho et al. 2014; Yang et al. 2016)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from volax.examples.data.text import PADDING


class Recurrent(nnx.Module):
    """Reads a sentence word by word and judges it by a weighted mean of the states.

    Args:
      vocabulary: number of words, padding included.
      length: words of a sentence; sentences of any length are read.
      classes: number of classes.
      width: channels of the embedding.
      hidden: units of the GRU.
      attention: units that weigh the states.
      dropout: share of the embedding's channels, and of the mean's, that training
        drops.
      dtype: of the computation in the hidden layers; parameters are float32.
      rngs: source of the initial weights and of what is dropped.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        classes: int,
        width: int = 64,
        hidden: int = 64,
        attention: int = 32,
        dropout: float = 0.0,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.words = nnx.Embed(vocabulary, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        cell = nnx.GRUCell(width, hidden, dtype=dtype, rngs=rngs)
        self.reader = nnx.RNN(cell, rngs=False)
        self.tell = nnx.Linear(hidden, attention, dtype=dtype, rngs=rngs)
        self.weigh = nnx.Linear(attention, 1, use_bias=False, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, words: jax.Array) -> jax.Array:
        """Map numbers [batch, length] to logits [batch, classes]."""
        cell: Any = self.reader.cell
        # A first state that is given needs no random numbers.
        first = jnp.zeros((len(words), cell.hidden_features), jnp.float32)
        embedded: Any = self.dropout(self.words(words))
        states: Any = self.reader(embedded, initial_carry=first)
        scores = self.weigh(nnx.tanh(self.tell(states))).astype(jnp.float32)
        # Padding stands behind the words, where it changes no state of theirs.
        real = (words != PADDING)[..., None]
        weights = jax.nn.softmax(
            jnp.where(real, scores, jnp.finfo(jnp.float32).min), axis=1
        )
        return self.out(self.dropout((weights * states).sum(1)))
