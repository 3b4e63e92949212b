"""Time of `x @ packed` beside the dense product: `python benchmarks/packed.py`."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from volax.compress import binarize, pack, ternarize


def alternating(functions, runs=30):
    times = {name: [] for name in functions}
    for _ in range(runs):
        for name, call in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(taken[3:]) for name, taken in times.items()}


def main():
    print(f"{jax.devices()[0].device_kind}, median ms of 27 alternating runs")
    print(f"{'batch x in x out':>20} {'dense':>9} {'1 bit':>9} {'2 bit':>9}  bytes")
    product = jax.jit(lambda x, w: x @ w)
    for batch, size in ((1, 1024), (1, 4096), (64, 1024), (512, 2048)):
        rng = np.random.default_rng(0)
        w = {"k": jnp.asarray(rng.normal(size=(size, size)), jnp.float32)}
        x = jnp.asarray(rng.normal(size=(batch, size)), jnp.float32)
        kinds = {
            "dense": w["k"],
            "1 bit": pack(binarize(w), bits=1)["k"],
            "2 bit": pack(ternarize(w), bits=2)["k"],
        }
        times = alternating(
            {k: (lambda v=v: product(x, v)) for k, v in kinds.items()}  # noqa: B023
        )
        cells = " ".join(f"{times[k]:9.3f}" for k in kinds)
        stored = " ".join(f"{v.nbytes:,}" for v in kinds.values())
        print(f"{f'{batch} x {size} x {size}':>20} {cells}  {stored}")


if __name__ == "__main__":
    main()
