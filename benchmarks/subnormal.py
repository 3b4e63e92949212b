"""Whether weights that decay into the subnormal range slow a training down."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

import volax
from benchmarks import trees
from benchmarks.timing import Line, measure, ratio
from benchmarks.update import RATE

ROWS = {
    "lp_decay p=0.5": optax.chain(optax.adam(RATE), volax.lp_decay(RATE, 1e-3, 0.5)),
    "lp_decay p=0.8": optax.chain(optax.adam(RATE), volax.lp_decay(RATE, 3e-3, 0.8)),
}
_LOOKS = 10  # in each tenth of the run


def subnormal(
    rounds: int, only: str, side: int = 1000, steps: int = 10_000
) -> Iterator[Line]:
    """A run of 10,000 steps in turns with plain Adam; after ten steps only one weight
    in a hundred has a gradient, and the others decay to nothing. The largest count of
    subnormal numbers seen, weights and Adam's first moments, and the zeros at the end.
    """
    del rounds
    params = {"k": jax.random.normal(jax.random.key(0), (side, side)) / 30}
    busy = trees.gradients(params)
    idle = {"k": busy["k"].at[side // 100 :].set(0)}
    for name, tx in ROWS.items():
        if only not in name:
            continue
        plain, own = (_Arm(t, params, busy) for t in (optax.adam(RATE), tx))
        for _ in range(10):
            plain()
            own()
        plain.grads = own.grads = idle
        for tenth in range(10):
            counts, times = [], []
            for _ in range(_LOOKS):
                each = max(steps // (10 * _LOOKS), 1)
                times.append(measure((plain, own), each, warm=0))
                counts.append((*own.counts(), plain.counts()[1]))
            base, taken = np.concatenate(times).T
            spread = ratio(taken, base)
            weights, moments, adams = (max(x[i] for x in counts) for i in range(3))
            zeros = own.zeros()
            text = (
                f"{'decay':8} {name:15} tenth {tenth + 1:2} {spread.spread} "
                f"{spread.seconds * 1e3:.3f} ms, Adam {spread.baseline * 1e3:.3f} ms; "
                f"subnormal {weights:,} weights, {moments:,} moments (Adam {adams:,}); "
                f"zero {zeros:,} weights"
            )
            figures = {"weights": weights, "moments": moments, "zeros": zeros}
            yield Line(f"subnormal {name} {tenth + 1}", text, vars(spread) | figures)


class _Arm:
    """Steps of one optimizer on gradients that may be exchanged."""

    def __init__(self, tx: optax.GradientTransformation, params: Any, grads: Any):
        self.step, self.grads = trees.update_step(tx), grads
        self.carry = jax.tree.map(jax.numpy.copy, params), tx.init(params)

    def __call__(self) -> None:
        self.carry = jax.block_until_ready(self.step(*self.carry, self.grads))

    def counts(self) -> tuple[int, int]:
        """Subnormal numbers among the weights and the first moments."""
        params, state = self.carry
        return _subnormal(params["k"]), _subnormal(optax.tree.get(state, "mu")["k"])

    def zeros(self) -> int:
        return int((_bits(self.carry[0]["k"]) == 0).sum())


def _subnormal(x: jax.Array) -> int:
    bits = _bits(x)
    return int(((bits > 0) & (bits < 0x00800000)).sum())


def _bits(x: jax.Array) -> np.ndarray:
    # On the host: XLA takes a subnormal number for zero where it compares.
    return np.asarray(x).view(np.uint32) & 0x7FFFFFFF
