"""Multiply-adds of a model, by the weight that takes part in them.

The function is traced, not run. Weights are followed through the operations that only
move them (cast, transpose, reshape, slice) to the products and convolutions that use
them; products of activations, as in attention, are counted apart.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from volax import _paths
from volax.pairs._trace.compat import primitives, unlisted
from volax.pairs._trace.jaxprs import SCANS, holds_jaxpr, sub_jaxpr

ACTIVATIONS = "(activations)"

_CONTRACTIONS = set(primitives("dot_general"))
_CONVOLUTIONS = set(primitives("conv_general_dilated"))
_LOOPS, _CHOICES = set(primitives("while")), set(primitives("cond"))
_MOVING = {
    *primitives(
        "convert_element_type", "transpose", "reshape", "broadcast_in_dim", "squeeze",
        "copy", "slice", "dynamic_slice", "gather", "rev", "device_put",
        "sharding_constraint", "reduce_precision",
    ),
    *unlisted("split", "optimization_barrier", "reshard"),
}  # fmt: skip


def multiply_adds(fn: Callable[..., Any], params: Any, inputs: Any) -> dict[str, int]:
    """Counts the multiply-adds of products and convolutions.

    Args:
      fn: ``fn(params, *inputs)``.
      params: the parameters, arrays or ``jax.ShapeDtypeStruct``.
      inputs: a tuple of the other arguments, likewise.

    Returns:
      Multiply-adds by the key path of the weight; those of two activations under
      ``(activations)``. A ``while`` loop counts once, a ``cond`` by its dearest branch.
    """
    closed = jax.make_jaxpr(fn)(params, *inputs)
    names = list(_paths.named_leaves(params))
    labels = names + [None] * (len(closed.jaxpr.invars) - len(names))
    return dict(_count(closed.jaxpr, labels)[0])


def _count(
    jaxpr: core.Jaxpr, labels: list[str | None]
) -> tuple[Counter[str], list[str | None]]:
    """Counts of one jaxpr, and the labels of its results."""
    env = {v: label for v, label in zip(jaxpr.invars, labels) if label}
    total: Counter[str] = Counter()

    def read(atom: Any) -> str | None:
        return None if isinstance(atom, core.Literal) else env.get(atom)

    for eqn in jaxpr.eqns:
        ins = [read(v) for v in eqn.invars]
        outs: list[str | None] = [None] * len(eqn.outvars)
        if eqn.primitive in _CONTRACTIONS | _CONVOLUTIONS:
            owners = [label for label in ins if label] or [ACTIVATIONS]
            total[owners[-1]] += _product(eqn)
        elif bodies := _bodies(eqn):
            # An index or a predicate, or the condition's constants, come first.
            found = [_count(b, ins[len(ins) - len(b.invars) :]) for b in bodies]
            most, outs = max(found, key=lambda f: f[0].total())
            times = eqn.params["length"] if eqn.primitive in SCANS else 1
            for label, count in most.items():
                total[label] += times * count
            outs = (outs + [None] * len(eqn.outvars))[: len(eqn.outvars)]
        elif eqn.primitive in _MOVING and any(ins):
            outs = [next(label for label in ins if label)] * len(eqn.outvars)
        env.update({v: label for v, label in zip(eqn.outvars, outs) if label})
    return total, [read(v) for v in jaxpr.outvars]


def _bodies(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """The jaxprs that an equation may run, each on the last of its operands."""
    if eqn.primitive in _LOOPS:
        return [eqn.params["body_jaxpr"].jaxpr]
    if eqn.primitive in _CHOICES:
        return [branch.jaxpr for branch in eqn.params["branches"]]
    return [sub_jaxpr(eqn)[0]] if holds_jaxpr(eqn) else []


def _product(eqn: core.JaxprEqn) -> int:
    """The multiply-adds of a contraction or a convolution."""
    avals: list[Any] = [v.aval for v in (*eqn.invars[:2], *eqn.outvars)]
    left, right, result = (aval.shape for aval in avals)
    out = math.prod(result)
    if eqn.primitive in _CONTRACTIONS:
        contracted = eqn.params["dimension_numbers"][0][0]
        return out * math.prod(left[i] for i in contracted)
    kernel = eqn.params["dimension_numbers"].rhs_spec  # output, input, window
    return out * math.prod(right) // max(right[kernel[0]], 1)
