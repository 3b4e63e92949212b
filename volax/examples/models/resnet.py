"""ResNet-18 for small images (He et al. 2015)."""

from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

from volax.examples.models._inputs import pictures
from volax.examples.models._layers import ConvNorm


class ResidualBlock(nnx.Module):
    """Two convolutions beside a shortcut, which is a projection where sizes change.

    Args:
      inside: channels of the input.
      outside: channels of the output.
      strides: pixels between two positions.
      dtype: of the computation; parameters are float32.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        strides: int,
        *,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.first = ConvNorm(inside, outside, 3, strides, dtype=dtype, rngs=rngs)
        self.second = ConvNorm(outside, outside, dtype=dtype, rngs=rngs)
        projected = strides > 1 or inside != outside
        self.shortcut = nnx.data(
            ConvNorm(inside, outside, 1, strides, dtype=dtype, rngs=rngs)
            if projected
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [batch, height, width, inside] to [batch, ..., outside]."""
        around = x if self.shortcut is None else self.shortcut(x)
        return nnx.relu(around + self.second(nnx.relu(self.first(x))))


class ResNet(nnx.Module):
    """A convolution of 3 x 3, stages of residual blocks, and one dense layer.

    The stem keeps the resolution of images of 28 or 32 pixels. Each stage but the first
    halves it and has twice the channels.

    Args:
      picture: (height, width, colours) of an image.
      classes: number of classes.
      width: channels of the first stage; 64 makes ResNet-18.
      blocks: blocks of each stage.
      dtype: of the computation in the hidden layers; parameters are float32.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        picture: Sequence[int],
        classes: int,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.picture = tuple(picture)
        self.stem = ConvNorm(self.picture[-1], width, dtype=dtype, rngs=rngs)
        inside, made = width, []
        for stage, count in enumerate(blocks):
            for number in range(count):
                strides = 2 if stage and not number else 1
                outside = width * 2**stage
                made.append(
                    ResidualBlock(inside, outside, strides, dtype=dtype, rngs=rngs)
                )
                inside = outside
        self.blocks = nnx.List(made)
        self.out = nnx.Linear(inside, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images to logits [batch, classes]."""
        x = nnx.relu(self.stem(pictures(x, self.picture)))
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((1, 2)))
