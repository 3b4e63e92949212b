"""A character GPT: a decoder of pre-norm blocks (Radford et al. 2019)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from volax.examples.models._layers import Block


class GPT(nnx.Module):
    """Predicts every next character from those before it.

    Args:
      vocabulary: number of characters.
      length: characters of a window, and the furthest that the model looks back.
      classes: number of characters that can follow, mostly the same.
      width: channels of the residual stream.
      layers: number of blocks.
      heads: of each attention.
      hidden: units of each MLP; 0 for four times the width.
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
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        hidden: int = 0,
        dropout: float = 0.0,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        hidden = hidden or 4 * width
        self.length = length
        self.characters = nnx.Embed(vocabulary, width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(length, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.blocks = nnx.List(
            Block(width, heads, hidden, dropout, dtype=dtype, rngs=rngs)
            for _ in range(layers)
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, characters: jax.Array) -> jax.Array:
        """Map numbers [batch, length] to logits [batch, length, classes]."""
        length = characters.shape[1]
        x = self.characters(characters) + self.positions(jnp.arange(length))
        x = self.dropout(x)
        mask = jnp.tril(jnp.ones((length, length), bool))
        for block in self.blocks:
            x = block(x, mask)
        return self.out(self.norm(x))


def sample(
    model: GPT,
    prompt: jax.Array,
    count: int,
    key: jax.Array,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """Write on from a prompt, one character at a time; `jax.jit` compiles the loop.

    Args:
      model: in evaluation mode.
      prompt: numbers of one or more characters [n], where the text begins.
      count: characters to be written, known to the compiler.
      key: draws them.
      temperature: below 1 the likely ones are drawn more often.

    Returns:
      The numbers of the characters, those of the prompt included [n + count].
    """
    begun = len(prompt)
    room = max(begun + count, model.length)
    text = jnp.zeros(room, jnp.int32).at[:begun].set(prompt)

    def write(place: jax.Array, text: jax.Array) -> jax.Array:
        # The window of a text that is still short reaches behind its end, to
        # characters that the causal mask hides from the last one written.
        start = jnp.maximum(place - model.length, 0)
        window = jax.lax.dynamic_slice(text, (start,), (model.length,))
        logits = model(window[None])[0, place - start - 1]
        drawn = jax.random.categorical(
            jax.random.fold_in(key, place), logits / temperature
        )
        return text.at[place].set(drawn.astype(text.dtype))

    return jax.lax.fori_loop(begun, begun + count, write, text)[: begun + count]
