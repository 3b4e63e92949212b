"""Alternating runs: what one arm costs beside another on a shared, noisy machine."""

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How much longer one arm takes than its baseline, round by round."""

    seconds: float  # median time of the arm
    baseline: float  # median time of the baseline
    median: float  # of the ratio within a round
    low: float  # lower quartile of that ratio
    high: float  # upper quartile of that ratio

    def __str__(self) -> str:
        return (
            f"{self.median:5.2f} [{self.low:.2f}-{self.high:.2f}] "
            f"{self.seconds * 1e3:9.2f} ms"
        )


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the output: what was measured, and its figures for JSON."""

    row: str
    text: str
    figures: dict[str, Any]


def alternate(
    arm: Callable[[], object], baseline: Callable[[], object], rounds: int = 31
) -> Ratio:
    """Runs both arms in turn, first one first and then the other, and compares."""
    for _ in range(min(3, rounds)):
        baseline(), arm()
    times = np.empty((rounds, 2))
    gc.disable()
    for k in range(rounds):
        order = ((0, baseline), (1, arm)) if k % 2 else ((1, arm), (0, baseline))
        for column, run in order:
            start = time.perf_counter()
            run()
            times[k, column] = time.perf_counter() - start
    gc.enable()
    low, median, high = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75))
    base, own = np.median(times, axis=0)
    return Ratio(own, base, median, low, high)


def waiting(run: Callable[..., Any], *args: Any) -> Callable[[], None]:
    """A call that ends when its result is there."""
    return lambda: jax.block_until_ready(run(*args))
