"""What it costs to find pairs: seconds for deep models, and how depth adds to it."""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.timing import Line, alternate, forget
from tests.pairs.zoo_linen import ResNet, Transformer
from volax import find_groups

_IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
_TOKENS = jax.ShapeDtypeStruct((1, 128), jnp.int32)
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_MODELS = {
    f"ResNet-{depth}": (ResNet(blocks, True, width=64), _IMAGE)
    for depth, blocks in _BLOCKS.items()
} | {
    f"transformer, {layers} layers": (
        Transformer(layers, 256, 8, 1000, nn.relu), _TOKENS,
    ) for layers in (12, 24, 48, 96)
}  # fmt: skip
ROWS = [*_MODELS]


def tracing(rounds: int, only: str) -> Iterator[Line]:
    """``find_groups`` on shapes, JAX's own trace included, beside that trace alone;
    caches empty every time.
    """
    for name, (model, x) in _MODELS.items():
        if only in name:
            shapes = jax.eval_shape(model.init, jax.random.key(0), x)
            ratio = alternate(
                lambda m=model, s=shapes, x=x: find_groups(m, s, x),
                lambda m=model, s=shapes, x=x: jax.make_jaxpr(m.apply)(s, x),
                max(rounds // 6, 1), warm=1, before=forget,
            )  # fmt: skip
            text = f"{'trace':8} {name:24} {ratio}, trace {ratio.baseline:.2f} s"
            yield Line(f"trace {name}", text, vars(ratio))
