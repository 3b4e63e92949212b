"""Whether weights that decay into the subnormal range slow a training down.

Ten times a thousand steps of ``lp_decay`` with p = 0.5. Only one weight in a hundred
has a gradient, so all others decay to nothing.
"""

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

import volax
from benchmarks import trees
from benchmarks.timing import Line
from benchmarks.update import RATE

ROWS = {
    "adam": optax.adam(RATE),
    "lp_decay p=0.5": optax.chain(optax.adam(RATE), volax.lp_decay(RATE, 1e-4, 0.5)),
    "lp_decay p=1": optax.chain(optax.adam(RATE), volax.lp_decay(RATE, 1e-2, 1)),
}


def subnormal(
    rounds: int, only: str, side: int = 1000, steps: int = 1000
) -> Iterator[Line]:
    del rounds
    params = {"k": jax.random.normal(jax.random.key(0), (side, side)) / 30}
    grads = {"k": trees.gradients(params)["k"].at[side // 100 :].set(0)}
    arms = {
        name: trees.arm(trees.update_step(tx), tx, params, grads)
        for name, tx in ROWS.items()
        if only in name
    }
    for tenth in range(1, 11):
        for name, run in arms.items():
            times = []
            for _ in range(steps):
                start = time.perf_counter()
                (params, _), *_ = run()
                times.append(time.perf_counter() - start)
            # On the host: XLA takes a subnormal number for zero where it compares.
            size = np.abs(jax.device_get(params["k"]))
            figures = {
                "milliseconds": 1e3 * float(np.median(times)),
                "zero": int((size == 0).sum()),
                "subnormal": int(
                    ((size > 0) & (size < jnp.finfo("float32").tiny)).sum()
                ),
            }
            text = (
                f"{'decay':8} {name:24} to step {tenth * steps:6,}: "
                f"{figures['milliseconds']:.3f} ms, of the weights "
                f"{figures['zero']:,} are 0 and {figures['subnormal']:,} subnormal"
            )
            yield Line(f"subnormal {name} {tenth}", text, figures)
