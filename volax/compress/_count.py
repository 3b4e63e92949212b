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

ACTIVATIONS = "(activations)"

_MOVING = {
    "convert_element_type", "transpose", "reshape", "broadcast_in_dim", "squeeze",
    "copy", "slice", "dynamic_slice", "gather", "rev", "expand_dims", "split",
    "optimization_barrier", "sharding_constraint", "device_put", "copy_p",
    "reduce_precision",
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
    jaxpr: Any, labels: list[str | None]
) -> tuple["Counter[str]", list[str | None]]:
    """Counts of one jaxpr, and the labels of its results."""
    env = {v: label for v, label in zip(jaxpr.invars, labels) if label}
    total: Counter[str] = Counter()

    def read(atom: Any) -> str | None:
        return None if isinstance(atom, core.Literal) else env.get(atom)

    for eqn in jaxpr.eqns:
        name, ins = eqn.primitive.name, [read(v) for v in eqn.invars]
        outs: list[str | None] = [None] * len(eqn.outvars)
        if name in ("dot_general", "conv_general_dilated"):
            owners = [label for label in ins if label] or [ACTIVATIONS]
            total[owners[-1]] += _product(eqn)
        elif (inner := _inner(eqn)) is not None:
            found = [_count(body, ins[len(ins) - n :]) for body, n in inner]
            most, outs = max(found, key=lambda f: f[0].total())
            times = eqn.params["length"] if name == "scan" else 1
            for label, count in most.items():
                total[label] += times * count
            outs = (outs + [None] * len(eqn.outvars))[: len(eqn.outvars)]
        elif name in _MOVING and any(ins):
            outs = [next(label for label in ins if label)] * len(eqn.outvars)
        env.update({v: label for v, label in zip(eqn.outvars, outs) if label})
    return total, [read(v) for v in jaxpr.outvars]


def _inner(eqn: Any) -> list[tuple[Any, int]] | None:
    """The jaxprs that an equation calls, and how many of its last operands each has."""
    params = eqn.params
    if eqn.primitive.name == "while":
        body = params["body_jaxpr"].jaxpr
        return [(body, len(body.invars))]
    if "branches" in params:
        return [(b.jaxpr, len(b.jaxpr.invars)) for b in params["branches"]]
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            body = getattr(params[key], "jaxpr", params[key])
            return [(body, len(body.invars))]
    return None


def _product(eqn: Any) -> int:
    left, right = (v.aval.shape for v in eqn.invars[:2])
    out = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        contracted = eqn.params["dimension_numbers"][0][0]
        return out * math.prod(left[i] for i in contracted)
    kernel = eqn.params["dimension_numbers"].rhs_spec  # output, input, window
    return out * math.prod(right) // max(right[kernel[0]], 1)
