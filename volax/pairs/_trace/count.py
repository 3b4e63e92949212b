"""Multiply-adds of a model, by the weight that takes part in them.

The function is traced, not run. Weights are followed through the operations that only
move them (cast, transpose, reshape, slice) to the products and convolutions that use
them; products of activations, as in attention, are counted apart.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend import core

from volax import _paths
from volax._types import Function, Tree
from volax.pairs._trace import terms
from volax.pairs._trace.compat import primitives, unlisted
from volax.pairs._trace.jaxprs import SCANS, holds_jaxpr, sub_jaxpr
from volax.pairs._trace.tape import Read, Tape, Value
from volax.pairs._trace.terms import Term
from volax.pairs.result import ACTIVATIONS, Product

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


def multiply_adds(fn: Function, params: Tree, inputs: Tree) -> dict[str, int]:
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
    return _by_weight(closed.jaxpr, list(_paths.named_leaves(params)))


def products(
    jaxpr: core.Jaxpr,
    params: Mapping[str, Value],
    tape: Tape,
    units: Mapping[Term, int],
) -> tuple[Product, ...]:
    """The same of a program that was read onto a tape.

    Args:
      jaxpr: the program.
      params: its first arguments.
      tape: what each of its live equations read.
      units: for the leaf that numbers a group's last unit index the group's number.

    Returns:
      A record for each weight, and for the products of two activations those that grow
      with the same units together.
    """
    by_weight = _by_weight(jaxpr, list(params))
    whole = by_weight.pop(ACTIVATIONS, 0)
    grown: Counter[tuple[int, ...]] = Counter()
    weights = set(params.values())
    # A scan takes slices of what it runs along.
    slices = {
        op.out: op.ins[0]
        for op in tape.ops
        if op.ins and op.out.loops > op.ins[0].loops
    }
    for read in tape.reads if whole else ():
        ins = [v for v in read.ins if v is not None]
        found = [v for v in ins if v in weights or slices.get(v) in weights]
        if read.eqn.primitive in _CONTRACTIONS and not found:
            for groups, count in _grown(read, units).items():
                grown[groups] += count
        elif read.eqn.primitive in _MOVING and found:
            weights.update(v for v in read.outs if v is not None)
    grown.pop((), None)
    # What the tape does not tell (branches, convolutions of two activations, loops that
    # no operand runs along) counts as a constant.
    rest = whole - grown.total()
    if rest < 0:
        grown, rest = Counter(), whole
    found = [Product(count, path) for path, count in by_weight.items()]
    found += [Product(rest, ACTIVATIONS)] if rest else []
    return (*found, *(Product(n, ACTIVATIONS, ks) for ks, n in sorted(grown.items())))


def _grown(read: Read, units: Mapping[Term, int]) -> Counter[tuple[int, ...]]:
    """The multiply-adds of a product, by the groups that they grow with.

    Each axis of the product is a sum of pieces, and a piece a product of leaves. So the
    multiply-adds, the product of all axes, are a sum over one piece of each axis.
    """
    x, y = read.ins[:2]
    if x is None or y is None:
        return Counter()
    used = {k for ks in read.eqn.params["dimension_numbers"] for k in ks[1]}
    axes = [*zip(x.shape, x.axes)]
    axes += [(n, t) for k, (n, t) in enumerate(zip(y.shape, y.axes)) if k not in used]
    pieces = [_pieces(n, term, units) for n, term in axes]
    times = math.prod(loop.size for loop in x.loops | y.loops)
    found: Counter[tuple[int, ...]] = Counter()
    for chosen in itertools.product(*(p.items() for p in pieces)):
        groups = sorted(k for ks, _ in chosen for k in ks)
        found[tuple(groups)] += times * math.prod(n for _, n in chosen)
    return found


def _pieces(
    size: int, term: Term | None, units: Mapping[Term, int]
) -> Counter[tuple[int, ...]]:
    """The entries of an axis by the groups whose units they are."""
    found: Counter[tuple[int, ...]] = Counter()
    for piece in (terms.pieces(term) if term is not None else None) or ():
        groups = sorted(units[leaf] for leaf in piece.leaves if leaf in units)
        found[tuple(groups)] += math.prod(leaf.size for leaf in piece.leaves)
    return found if found.total() == size else Counter({(): size})


def _by_weight(jaxpr: core.Jaxpr, names: list[str]) -> dict[str, int]:
    """Multiply-adds by key path, those of two activations under their own name."""
    labels = names + [None] * (len(jaxpr.invars) - len(names))
    return dict(_count(jaxpr, labels)[0])


def _count(
    jaxpr: core.Jaxpr, labels: list[str | None]
) -> tuple[Counter[str], list[str | None]]:
    """Counts of one jaxpr, and the labels of its results."""
    env = {v: label for v, label in zip(jaxpr.invars, labels) if label}
    total: Counter[str] = Counter()

    def read(atom: core.Var | core.Literal) -> str | None:
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
