"""Proof that two models are the same function: run both and compare."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from volax._types import Tree

_SUMMED = 84  # roundings of a sum that runs in the dtype itself
_ROUNDED = 4  # roundings of a result whose sums run in a wider dtype
_COARSEST = 0.05  # a larger difference proves nothing, whatever the dtype
_TINY = 1e-30  # in place of a largest output of zero


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two models are apart on given inputs.

    Attributes:
      absolute: the largest difference of two outputs.
      relative: the same, by the largest output of the same array.
    """

    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.absolute:.2g} absolute, {self.relative:.2g} relative"


def difference(full: Tree, small: Tree) -> Difference:
    """Compares the outputs of two models.

    Args:
      full: outputs of the one.
      small: outputs of the other.

    Returns:
      The largest differences.

    Raises:
      ValueError: the outputs differ in structure or shape, or are not finite.
    """
    before, after = _arrays(full), _arrays(small)
    if [x.shape for x in before.values()] != [x.shape for x in after.values()]:
        raise ValueError(
            f"the outputs have shapes {[x.shape for x in after.values()]}, expected "
            f"{[x.shape for x in before.values()]}"
        )
    if not any(x.size for x in before.values()):
        raise ValueError("the outputs are empty, which proves nothing")
    absolute = relative = 0.0
    for (path, x), y in zip(before.items(), after.values()):
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(
                f"output {path or '0'} is not finite, which proves nothing"
            )
        gap = float(np.abs(x - y).max(initial=0))
        absolute = max(absolute, gap)
        largest = float(np.abs(x).max(initial=0))
        relative = max(relative, gap / max(largest, _TINY))
    return Difference(absolute, relative)


def is_finite(outputs: Tree) -> bool:
    """Whether all outputs of a model are finite."""
    return all(np.isfinite(x).all() for x in _arrays(outputs).values())


def tolerance(*trees: Tree) -> float:
    """The largest relative difference that rounding explains.

    A sum of n numbers is off by about sqrt(n) roundings: 84 are 1e-5 in float32. In 16
    bits and less sums run in float32, and a few roundings of the results are left: 0.03
    in bfloat16.
    """
    kinds = [jnp.result_type(x) for x in jax.tree.leaves(trees) if not _is_key(x)]
    floating = [d for d in kinds if jnp.issubdtype(d, jnp.inexact)]
    eps = max((float(jnp.finfo(d).eps) for d in floating), default=0.0)
    if eps <= jnp.finfo(jnp.float32).eps:
        return _SUMMED * eps
    return min(_ROUNDED * eps, _COARSEST)


def _arrays(outputs: Tree) -> dict[str, np.ndarray]:
    """The outputs by key path, float64 or complex128, without random keys."""
    found = {}
    for path, x in jax.tree_util.tree_flatten_with_path(outputs)[0]:
        if not _is_key(x):
            kind = jnp.result_type(x)
            wide = np.complex128 if jnp.issubdtype(kind, jnp.complexfloating) else float
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found[name] = np.asarray(x).astype(wide)
    return found


def _is_key(x: object) -> bool:
    """Whether a leaf is a random key."""
    return jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key)
