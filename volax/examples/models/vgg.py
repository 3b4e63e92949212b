"""VGG19 with batch norm (Simonyan and Zisserman 2014; Ioffe and Szegedy 2015)."""

from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

from volax.examples.models._inputs import pictures
from volax.examples.models._layers import ConvNorm

_CHANNELS = (64, 128, 256, 512, 512)
_DEPTHS = (2, 2, 4, 4, 4)


class VGG19(nnx.Module):
    """Sixteen convolutions of 3 x 3 in five stages, each halved, and one dense layer.

    The two dense layers of 4,096 units that ImageNet had before the last one are left
    out, as is usual for images of 32 x 32.

    Args:
      picture: (height, width, colours) of an image.
      classes: number of classes.
      width: factor of the channels, which are 64, 128, 256, 512 and 512 at 1.
      dtype: of the computation in the hidden layers; parameters are float32.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        picture: Sequence[int],
        classes: int,
        width: float = 1.0,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.picture = tuple(picture)
        inside, stages = self.picture[-1], []
        for channels, depth in zip(_CHANNELS, _DEPTHS):
            stage = []
            for _ in range(depth):
                outside = max(round(width * channels), 1)
                stage.append(ConvNorm(inside, outside, dtype=dtype, rngs=rngs))
                inside = outside
            stages.append(nnx.List(stage))
        self.stages = nnx.List(stages)
        self.out = nnx.Linear(inside, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images to logits [batch, classes]."""
        x = pictures(x, self.picture)
        for stage in self.stages:
            for layer in stage:
                x = nnx.relu(layer(x))
            x = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        return self.out(x.mean((1, 2)))
