"""How long trained networks take, measured in turns."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def runner(model: nnx.Module) -> Callable[[jax.Array], jax.Array]:
    """A network as a compiled function of its inputs."""
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    return functools.partial(run, params)


def alternating(
    first: Callable[..., Any], second: Callable[..., Any], x: jax.Array, runs: int = 40
) -> list[float]:
    """Median seconds of two functions, run in turns."""
    times: list[list[float]] = [[], []]
    for _ in range(runs):
        for fn, taken in zip((first, second), times):
            start = time.perf_counter()
            jax.block_until_ready(fn(x))
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]
