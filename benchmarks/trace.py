"""What it costs to find pairs: seconds for deep models, and how depth adds to it.

Run with ``python -m benchmarks.trace`` from the repository's root. Models are given by
shape only. "trace" is the time that JAX needs for the jaxpr; "total" is that of
``find_groups``, the trace included. The best of three, each with cold caches.
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.pairs.zoo_linen import ResNet, Transformer
from volax.pairs import find_groups


def models():
    """Models in growing depth, as (name, module, input)."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    yield "ResNet-50", ResNet((3, 4, 6, 3), True, width=64), image
    yield "ResNet-101", ResNet((3, 4, 23, 3), True, width=64), image
    yield "ResNet-152", ResNet((3, 8, 36, 3), True, width=64), image
    for layers in (12, 24, 48, 96):
        model = Transformer(layers, 256, 8, 1000, nn.relu)
        yield f"transformer, {layers} layers", model, tokens


def main():
    """Prints one line a model."""
    print(f"JAX {jax.__version__}")
    for name, model, x in models():
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        best = [float("inf")] * 2
        for _ in range(3):
            jax.clear_caches()
            start = time.perf_counter()
            jax.make_jaxpr(model.apply)(shapes, x)
            best[0] = min(best[0], time.perf_counter() - start)
            jax.clear_caches()
            start = time.perf_counter()
            found = find_groups(model, shapes, x)
            best[1] = min(best[1], time.perf_counter() - start)
        print(
            f"{name:24} trace {best[0]:.2f} s  total {best[1]:.2f} s  "
            f"{len(found.pairs)} pairs"
        )


if __name__ == "__main__":
    main()
