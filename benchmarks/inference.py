"""Inference before and after compaction: half, or three quarters, of all units dead."""

from collections.abc import Iterator
from typing import Any

import jax

import volax
from benchmarks import trees
from benchmarks.timing import Line, alternate, waiting

MODELS = {
    "dense": (trees.dense, trees.dense_loss, (128, 784)),
    "vgg": (trees.vgg, trees.vgg_loss, (8, 32, 32, 3)),
}
SHARES = (0.5, 0.75)


def _row(name: str, share: float) -> str:
    return f"{name}, {share:.0%} of the units dead"


ROWS = [_row(name, share) for name in MODELS for share in SHARES]


def inference(rounds: int, only: str, **size: int) -> Iterator[Line]:
    """The forward pass after ``compact`` beside the one before."""
    for name, (tree, loss, shape) in MODELS.items():
        params, pairs = tree(*size.values())
        x = jax.random.normal(jax.random.key(9), shape)
        for share in SHARES:
            row = _row(name, share)
            if only not in row:
                continue
            dead = dict(params)
            for pair in pairs:
                path = pair.consumers[0].path
                axis = dead[path].ndim - 2
                alive = round(dead[path].shape[axis] * (1 - share))
                dead[path] = _zero_from(dead[path], axis, alive)
            small = volax.compact(dead, pairs, check=(loss, None, (x,)))
            run = jax.jit(loss)
            ratio = alternate(
                waiting(run, small.params, x), waiting(run, dead, x), rounds
            )
            before, after = small.manifest["parameters"]
            text = (
                f"{'compact':8} {row:32} {ratio}, full {ratio.baseline * 1e3:.2f} ms; "
                f"{after / before:.2f} of the parameters, difference {small.difference}"
            )
            yield Line(
                f"compact {row}", text, vars(ratio) | {"parameters": after / before}
            )


def _zero_from(x: Any, axis: int, start: int) -> Any:
    return x.at[(slice(None),) * axis + (slice(start, None),)].set(0)
