"""Alternating runs: what one arm costs beside another on a shared, noisy machine."""

import dataclasses
import gc
import time
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How much longer one arm takes than its baseline, round by round."""

    seconds: float  # median time of the arm
    baseline: float  # median time of the baseline
    median: float  # of the ratio within a round
    low: float  # lower quartile of that ratio
    high: float  # upper quartile of that ratio


def alternate(
    arm: Callable[[], object], baseline: Callable[[], object], rounds: int = 31
) -> Ratio:
    """Runs both arms in turn, first one first and then the other, and compares."""
    for _ in range(3):
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
