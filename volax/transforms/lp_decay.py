"""Decoupled decay for any p norm: the step, then a shrinkage that p shapes.

t = w |p|^(2-q) / (|p|^(2-q) + learning_rate * strength) (arXiv 2404.10824).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from volax import _paths, masks, prox
from volax._numerics import wide
from volax._types import Leaf, Selection
from volax.transforms import _hyperparams, _post_step
from volax.transforms._hyperparams import Hyperparameter


class LpDecayState(NamedTuple):
    """State of :func:`lp_decay` where something is scheduled."""

    count: jax.Array  # int32, shape ()


def lp_decay(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    p: Hyperparameter,
    *,
    mask: Selection = "matrices",
    zeros: str = "sticky",
    reference: str = "before",
    snap_below: Hyperparameter = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Decoupled decay for the penalty $(\lambda / p) \sum |w|^p$, any $p \ge 0$.

    With $w$ the weight after the step, $r$ the weight before it and $\eta$ the learning
    rate,

    $$t = w \, \frac{|r|^{2-p}}{|r|^{2-p} + \eta \lambda}
        = \frac{w}{1 + \eta \lambda |r|^{p-2}}.$$

    ``p = 2`` is the decay of AdamW to first order; $p < 2$ drives small weights to zero
    super-exponentially; $p < 1$ has no diverging gradient. Stands last in the chain.

    Args:
      learning_rate: $\eta \ge 0$, the same number, array or schedule that the optimizer
        in the chain has; :func:`volax.lp_adam` gives one to both.
      strength: $\lambda \ge 0$, number, array or schedule. The authors' code takes
        ``lambda_p`` with ``strength = p * lambda_p``. Where the product with the
        learning rate is 0 the weights stay as they are.
      p: the norm, number, array or schedule; annealing from 2 down is the paper's own
        suggestion. A plain number is fastest.
      mask: the leaves to act on, as in :func:`volax.volumize`; by default the matrices.
      zeros: what becomes of a weight at exactly 0 for $p < 2$: ``"sticky"`` stays 0
        (the paper; pruned weights stay pruned, but a leaf that starts at 0 never
        trains), ``"free"`` may leave.
      reference: ``"before"`` takes the weight before the step for $r$ (the paper),
        ``"after"`` the weight after it (the authors' late variant).
      snap_below: weights smaller than this become exact zeros; the paper counts
        ``abs(w) < 1e-13`` as zero.

    Returns:
      A transformation for the end of an ``optax.chain``. A non-finite weight or
      gradient affects its own entry only.

    Raises:
      ValueError: a hyperparameter negative or not finite, an unknown ``zeros`` or
        ``reference``; at ``init`` a concrete all-zero leaf that could never train; at
        ``update`` no ``params``, a mask that selects nothing, a complex leaf.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"kernel": jnp.array([[1.0, 0.125]])}
      >>> tx = optax.chain(optax.sgd(0.5), volax.lp_decay(0.5, strength=0.25, p=1.0))
      >>> grads = {"kernel": jnp.zeros((1, 2))}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[0.888888..., 0.0625]]

    References:
      Outmezguine and Levi, `Decoupled Weight Decay for Any p Norm
      <https://arxiv.org/abs/2404.10824>`_, 2024, the update of pWD.
    """
    numbers = {
        "learning_rate": learning_rate,
        "strength": strength,
        "p": p,
        "snap_below": snap_below,
    }
    for argument, value in numbers.items():
        _hyperparams.check("lp_decay", argument, value)
    for argument, value, known in (
        ("zeros", zeros, ("sticky", "free")),
        ("reference", reference, ("before", "after")),
    ):
        if value not in known:
            raise ValueError(
                f"lp_decay: {argument} must be {known[0]!r} or {known[1]!r}, "
                f"got {value!r}"
            )
    is_scheduled = _hyperparams.is_scheduled(*numbers.values())
    sticks = zeros == "sticky" and reference == "before"

    def init(params: optax.Params) -> LpDecayState | optax.EmptyState:
        order = _at_start(p)
        if sticks and order is not None and order < 2 and _at_start(strength) != 0:
            _refuse_zero_leaves(params, mask)
        if not is_scheduled:
            return optax.EmptyState()
        return LpDecayState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        weights = _post_step.tentative_weights("lp_decay", updates, params, mask)
        count = state.count if is_scheduled else None
        now = {k: _hyperparams.at(value, count) for k, value in numbers.items()}
        shrink = _STATIC if isinstance(now["p"], int | float) else _TRACED
        targets = {}
        for path, leaf in weights.items():
            w = wide(leaf.after)
            t = shrink(
                w,
                leaf.before.astype(w.dtype) if reference == "before" else w,
                _hyperparams.product(now["learning_rate"], now["strength"], w.dtype),
                p=now["p"],
                zeros=zeros,
            )
            targets[path] = _post_step.Target(prox.snap(t, now["snap_below"]))
        if is_scheduled:
            state = LpDecayState(_hyperparams.next_count(state.count))
        return _post_step.deltas(updates, weights, targets), state

    return optax.GradientTransformationExtraArgs(init, update)


# Leaves of the same shape share one trace; XLA inlines it before it fuses.
_STATIC = jax.jit(prox.lp_shrink, static_argnames=("p", "zeros"))
_TRACED = jax.jit(prox.lp_shrink, static_argnames=("zeros",))


def _at_start(value: Any) -> float | None:
    """The value at step 0, if it is known and a single number."""
    value = _hyperparams.at(value, 0)
    if isinstance(value, Tracer) or np.size(value) != 1:
        return None
    return float(value)


def _refuse_zero_leaves(params: optax.Params, mask: Selection) -> None:
    """Raises for a concrete leaf of zeros, which would never train."""
    known = {k: x for k, x in _paths.named_leaves(params).items() if _is_known(x)}
    # Arrays that a traced function closes over, as in ``eval_shape(lambda:
    # tx.init(params))``, are known too, but whatever it makes of them is traced.
    with jax.ensure_compile_time_eval():
        used = jax.device_get({path: leaf.any() for path, leaf in known.items()})
    if all(used.values()):
        return
    chosen = masks.selected(mask, params, "lp_decay")
    for path in used:
        if not used[path] and path in chosen:
            raise ValueError(
                f"lp_decay: leaf {path!r} starts at all zeros and would never train, "
                "because for p < 2 a weight at 0 stays 0; exclude it with mask=..., or "
                "let zeros move with zeros='free'"
            )


def _is_known(leaf: Leaf) -> bool:
    """Whether a leaf is numbers that this process holds."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, (jax.Array, np.ndarray)):
        return False
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return False
    return leaf.size > 0 and jnp.issubdtype(leaf.dtype, jnp.inexact)
