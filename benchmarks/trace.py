"""What it costs to find pairs: seconds for deep models, and how depth adds to it.

Models are given by shape only. "trace" is the time that JAX needs for the jaxpr; the
other that of ``find_groups``, the trace included. The best of three, with cold caches.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.timing import Line
from tests.pairs.zoo_linen import ResNet, Transformer
from volax import find_groups


def models() -> Iterator[tuple[str, Any, Any]]:
    """Models in growing depth, as (name, module, input)."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    yield "ResNet-50", ResNet((3, 4, 6, 3), True, width=64), image
    yield "ResNet-101", ResNet((3, 4, 23, 3), True, width=64), image
    yield "ResNet-152", ResNet((3, 8, 36, 3), True, width=64), image
    for layers in (12, 24, 48, 96):
        model = Transformer(layers, 256, 8, 1000, nn.relu)
        yield f"transformer, {layers} layers", model, tokens


def tracing(rounds: int, only: str) -> Iterator[Line]:
    del rounds
    for name, model, x in models():
        if only in name:
            shapes = jax.eval_shape(model.init, jax.random.key(0), x)
            plain = _best(lambda m=model, s=shapes, x=x: jax.make_jaxpr(m.apply)(s, x))
            total = _best(lambda m=model, s=shapes, x=x: find_groups(m, s, x))
            text = f"{'trace':8} {name:24} trace {plain:.2f} s, groups {total:.2f} s"
            yield Line(f"trace {name}", text, {"trace": plain, "seconds": total})


def _best(run: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        jax.clear_caches()
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
