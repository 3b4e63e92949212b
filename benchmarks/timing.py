"""Alternating runs: what one arm costs beside another on a shared, noisy machine."""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

Arm = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How much longer one arm takes than its baseline, round by round."""

    seconds: float  # median time of the arm
    baseline: float  # median time of the baseline
    median: float  # of the ratio within a round
    low: float  # lower quartile of that ratio
    high: float  # upper quartile of that ratio

    def __str__(self) -> str:
        return f"{self.spread} {self.seconds * 1e3:9.2f} ms"

    @property
    def spread(self) -> str:
        return f"{self.median:5.2f} [{self.low:.2f}-{self.high:.2f}]"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the output: what was measured, and its figures for JSON."""

    row: str
    text: str
    figures: dict[str, Any]


def measure(
    arms: Sequence[Arm],
    rounds: int,
    *,
    warm: int = 3,
    before: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Seconds [rounds, arms], all arms in turns and every other round backwards.

    ``warm`` rounds go first and are not timed; neither is ``before``, at every call.
    """
    for run in [*arms] * min(warm, rounds):
        run()
    times = np.empty((rounds, len(arms)))
    gc.disable()
    try:
        for k in range(rounds):
            columns = range(len(arms))
            for column in columns if k % 2 else reversed(columns):
                before()
                start = time.perf_counter()
                arms[column]()
                times[k, column] = time.perf_counter() - start
    finally:
        gc.enable()
    return times


def ratio(own: np.ndarray, baseline: np.ndarray) -> Ratio:
    """Compares two columns of one measurement."""
    low, median, high = np.quantile(own / baseline, (0.25, 0.5, 0.75))
    return Ratio(np.median(own), np.median(baseline), median, low, high)


def alternate(arm: Arm, baseline: Arm, rounds: int = 31, **options: Any) -> Ratio:
    """Measures an arm in turns with its baseline."""
    times = measure((baseline, arm), rounds, **options)
    return ratio(times[:, 1], times[:, 0])


def forget() -> None:
    """Empties JAX's caches, so that the next call traces and compiles."""
    jax.clear_caches()
    gc.collect()


def waiting(run: Callable[..., Any], *args: Any) -> Arm:
    """A call that ends when its result is there."""
    return lambda: jax.block_until_ready(run(*args))
