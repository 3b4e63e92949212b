"""Hyperparameters that are a number, an array or a schedule, possibly traced."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

Hyperparameter = optax.ScalarOrSchedule


def check(
    name: str,
    argument: str,
    value: object,
    low: float = 0.0,
    high: float = np.inf,
    *,
    below: bool = False,
    finite: bool = True,
    scalar: bool = True,
) -> None:
    """Checks a hyperparameter whose value is known; schedules and tracers pass.

    Args:
      name: the transformation, for errors.
      argument: the argument, for errors.
      value: what was given.
      low: smallest value allowed.
      high: largest value allowed.
      below: whether values must be smaller than `high`.
      finite: whether infinity is refused.
      scalar: whether arrays of one or more dimensions are refused.

    Raises:
      ValueError: no single number, NaN, or out of range.
    """
    if isinstance(value, (Callable, Tracer)):
        return
    expected = f"{'a finite number' if finite else 'a number'} "
    end = ")" if below else "]"
    expected += f"in [{low:g}, {high:g}{end}" if high < np.inf else f">= {low:g}"
    try:
        known = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        known = np.asarray(np.nan)
    if isinstance(value, (str, bool)):
        known = np.asarray(np.nan)
    valid = (known >= low) & (known < high if below else known <= high)
    valid &= np.isfinite(known) | (not finite)
    if not valid.all() or (scalar and known.ndim):
        raise ValueError(
            f"{name}: {argument} must be {expected}, "
            f"{'a scalar array' if scalar else 'an array of such'}, or a schedule, "
            f"got {value!r}"
        )


def is_scheduled(*values: object) -> bool:
    """Whether any of the values depends on the step count."""
    return any(isinstance(value, Callable) for value in values)


def at(value: Hyperparameter, count: Any) -> Any:
    """The value at a step: schedules are read at the count before the update."""
    return value(count) if isinstance(value, Callable) else value


def next_count(count: jax.Array) -> jax.Array:
    """The count after one more update, int32 and never overflowing."""
    return jnp.asarray(optax.safe_increment(count), jnp.int32)


def product(first: ArrayLike, second: ArrayLike, dtype: DTypeLike) -> float | jax.Array:
    """The product in a dtype; Optax schedules give float32 even under x64."""
    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return first * second
    return jnp.asarray(first, dtype) * jnp.asarray(second, dtype)
