"""LeNet-5 with ReLU and max pooling (LeCun et al. 1998)."""

from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

from volax.examples.models._inputs import pictures


class LeNet(nnx.Module):
    """Two convolutions of 5 x 5 and two dense layers, `conv0`, `conv1`, `hidden0`, ...

    ReLU and maxima stand for the sigmoids and means of 1998, so that units can be
    rescaled, and both convolutions pad, so that small images serve as well.

    Args:
      picture: (height, width, colours) of an image.
      classes: number of classes.
      widths: channels of the two convolutions, and units of the two dense layers.
      dtype: of the computation in the hidden layers; parameters are float32.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        picture: Sequence[int],
        classes: int,
        widths: Sequence[int] = (6, 16, 120, 84),
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.picture = tuple(picture)
        height, width, colours = self.picture
        first, second, third, fourth = widths
        flat = -(-height // 4) * -(-width // 4) * second
        self.conv0 = nnx.Conv(colours, first, (5, 5), dtype=dtype, rngs=rngs)
        self.conv1 = nnx.Conv(first, second, (5, 5), dtype=dtype, rngs=rngs)
        self.hidden0 = nnx.Linear(flat, third, dtype=dtype, rngs=rngs)
        self.hidden1 = nnx.Linear(third, fourth, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(fourth, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images to logits [batch, classes]."""
        x = pictures(x, self.picture)
        for conv in (self.conv0, self.conv1):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2), padding="SAME")
        x = nnx.relu(self.hidden0(x.reshape(len(x), -1)))
        return self.out(nnx.relu(self.hidden1(x)))
