r"""The group soft threshold of whole units, whatever layer they are in.

x <- x max(0, 1 - learning_rate * strength * sqrt(n) / ||x||) for the n weights x of a
unit (Yuan and Lin 2006), and the map of the norm's p-th power for p < 1.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from volax import masks, prox
from volax._numerics import wide
from volax._sharding import pinned
from volax.pairs import _layout, _score, records
from volax.pairs._path_norm import side_norms
from volax.pairs.records import Group, Member, Written
from volax.transforms import _hyperparams, _post_step, _units
from volax.transforms._hyperparams import Hyperparameter


class GroupProxState(NamedTuple):
    """State of :func:`group_prox` where something is scheduled."""

    count: jax.Array  # int32, shape ()


def group_prox(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    groups: Written | Iterable[Written],
    *,
    over: str = "consumers",
    p: Hyperparameter = 1.0,
    freeze_dead: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes whole units of any layer by the group soft threshold.

    A unit of ``find_groups`` is a neuron of an MLP, whatever its activation and gates,
    a channel of a convolution behind batch norm, of attention values or of a residual
    stream without norms, a whole head, or a unit of an expert. After the step of the
    optimizer, with learning rate $\eta$, its $n$ weights $x$ become

    $$x \leftarrow x \max\Bigl(0, 1 - \frac{\eta \lambda \sqrt{n}}
        {\lVert x \rVert}\Bigr),$$

    the proximal step of $\lambda \sum \sqrt{n} \lVert x \rVert$. For $p < 1$ it is
    that of $\lambda \sum n^{1 - p/2} \lVert x \rVert^p$, with the exact map of the
    norm's power. This power of $n$ makes the penalty $\lambda n r^p$ in the root mean
    square $r = \lVert x \rVert / \sqrt{n}$: what $\lambda \sum |w|^p$ over the single
    weights would be if those of a unit were of one size, $\sqrt{n}$ at $p = 1$ and the
    number of weights at $p = 0$. So the map of a unit is the map of $\lambda r^p$ on
    $r$ alone, and one strength suits layers of all sizes.

    Stands last in the chain. Behind plain SGD the fixed points are those of the loss
    plus the penalty; a unit of exact zeros is dead, and ``compact`` removes it.

    Units that lie inside others, as the channels of a head do, go first. For $p = 1$
    this composition is the exact proximal map of the sum over nested groups. Where
    units overlap otherwise (``over="all"`` on layers that follow one another, the rows
    and columns of a recurrent kernel), and for $p < 1$, each takes its map on what the
    ones before left, those of fewer weights first, then in the given order: the result
    is no proximal map of the sum, but a unit below its threshold ends at zero all the
    same.

    Under Adam, ``over="all", p=0.5`` with a strength near 0.04 lost the most units for
    the least loss (a character transformer, see ``benchmarks/RESULTS.md``). A step of
    Adam moves the root mean square $r$ of a unit by up to $\eta$, and the threshold of
    $p = 1$ pulls it back by $\eta \lambda$, whatever its size: a strength that leaves
    useful units alone is too weak to hold the others at zero against the noise of their
    gradients, and a stronger one takes many of both. At $p = 1/2$ large units feel
    little, and a dead one has to reach $r = \frac{3}{2} (\eta \lambda)^{2/3}$ in one
    step to come back: none did, and ``freeze_dead`` changed nothing. It pays where a
    schedule takes the strength to zero for the last part of the training, in which the
    units that stay recover from the shrinkage. With ``over="consumers"`` producers grow
    against the penalty: nothing dies, or nearly everything. Nothing keeps a layer from
    losing all its units: in a CNN of 8 and 16 channels and 64 units, cut to a tenth
    of its multiply-adds by :func:`volax.tune_strength`, whole layers died; there
    :func:`volax.keep_units` was better.

    On a mesh every weight keeps its sharding, and the devices exchange vectors with a
    number a unit. Inside a ``shard_map`` norms are those of the parts that a device
    holds.

    Args:
      learning_rate: $\eta \ge 0$, the same number, array or schedule that the optimizer
        in the chain has.
      strength: $\lambda \ge 0$, number, array or schedule.
      groups: what ``find_groups`` returns, or some of its records; pairs, also of
        :func:`volax.pair`, are groups. Those that cannot be cut, because an input, a
        captured array or random numbers lie along the units (``Group.carries``) or
        because units share entries, are left as they are.
      over: which weights of a unit count and shrink. ``"consumers"``: the outgoing
        ones; a unit without them is dead whatever lies between. Weights that the
        penalty leaves out can grow to make up for it: give those weight decay.
        ``"all"``: every trained parameter that carries the unit, producers, gates,
        biases, scales and consumers, so that it can neither move along the unit nor
        come back by a gradient; a superset of the zero-invariant groups of OTO, which
        leave out the consumers.
      p: in [0, 1], number, array or schedule. Below 1 large units shrink less and small
        ones go at once; 0 removes units of $r \le \sqrt{2 \eta \lambda}$ and shrinks
        none.
      freeze_dead: keeps units dead whose chosen weights were all zero before the step,
        from the start on: not for layers that start at zero.

    Returns:
      A transformation for the end of an ``optax.chain``. A unit whose norm is not
      finite is not shrunk.

    Raises:
      ValueError: a hyperparameter out of range, an unknown ``over``, no groups,
        something that is no group, groups none of which can be cut; at ``update`` no
        ``params``, a group that does not fit the tree or is masked out by half.

    Example:
      >>> import jax, jax.numpy as jnp, optax, volax
      >>> params = {"a": jnp.ones((1, 2)), "v": jnp.array([[3.0], [0.25]])}
      >>> def model(p, x):
      ...     return jax.nn.gelu(x @ p["a"]) @ p["v"]
      >>> groups = volax.find_groups(model, params, jnp.ones((1, 1)))
      >>> tx = optax.chain(optax.sgd(0.5), volax.group_prox(0.5, 1.0, groups))
      >>> updates, _ = tx.update(
      ...     jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> optax.apply_updates(params, updates)["v"].tolist()
      [[2.5], [0.0]]

    References:
      Yuan and Lin, `Model Selection and Estimation in Regression with Grouped Variables
      <https://doi.org/10.1111/j.1467-9868.2005.00532.x>`_, 2006; Jenatton et al.,
      `Proximal Methods for Hierarchical Sparse Coding
      <https://arxiv.org/abs/1009.2139>`_, 2011, proposition 1 (nested groups); Chen et
      al., `Only Train Once <https://arxiv.org/abs/2107.07467>`_, 2021 (zero-invariant
      groups); Marjanovic and Solo, `On lq Optimization and Matrix Completion
      <https://doi.org/10.1109/TSP.2012.2212015>`_, 2012 (p < 1).
    """
    numbers = {"learning_rate": learning_rate, "strength": strength, "p": p}
    for argument, value in numbers.items():
        high = 1.0 if argument == "p" else math.inf
        _hyperparams.check("group_prox", argument, value, high=high)
    if over not in ("consumers", "all"):
        raise ValueError(f"group_prox: over must be 'consumers' or 'all', got {over!r}")
    written = _units.separable("group_prox", records.listed(groups, "group_prox"))
    is_scheduled = _hyperparams.is_scheduled(*numbers.values())

    def init(params: optax.Params) -> GroupProxState | optax.EmptyState:
        del params
        if not is_scheduled:
            return optax.EmptyState()
        return GroupProxState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _post_step.require_params("group_prox", params)
        present, leaves = _units.present(
            "group_prox", written, params, kind="group", side=_score.trained
        )
        chosen = [_chosen(group, over) for group in present]
        weights = _post_step.tentative_weights(
            "group_prox",
            updates,
            params,
            masks.Only(frozenset(m.path for members in chosen for m in members)),
        )
        now = {path: wide(leaf.after) for path, leaf in weights.items()}
        count = state.count if is_scheduled else None
        rate, force, power = (_hyperparams.at(v, count) for v in numbers.values())
        counts = [
            sum(_layout.weights_of_unit(m, jnp.shape(leaves[m.path])) for m in members)
            for members in chosen
        ]
        # A unit inside another has no more weights than that one, so units that lie
        # inside others go first; sorting keeps the given order of the rest.
        for n, group, members in sorted(
            zip(counts, present, chosen), key=lambda entry: entry[0]
        ):
            norms = side_norms(members, group.sizes, now)
            step = _hyperparams.product(rate, force, norms.dtype)
            factors = _factors(norms, n, step, power)
            if freeze_dead:
                before = {m.path: weights[m.path].before for m in members}
                was = side_norms(members, group.sizes, before)
                factors = jnp.where(was == 0, 0, factors)
            # Each use may be laid out as its parameter is, so pin what they share.
            factors = pinned(factors) if len(members) > 1 else factors
            for m in members:
                now[m.path] = _layout.scale(m, group.sizes, now[m.path], factors)
        targets = {path: _post_step.Target(t, keeps=False) for path, t in now.items()}
        if is_scheduled:
            state = GroupProxState(_hyperparams.next_count(state.count))
        return _post_step.deltas(updates, weights, targets), state

    return optax.GradientTransformationExtraArgs(init, update)


def _chosen(group: Group, over: str) -> tuple[Member, ...]:
    """The members that the penalty is about; a tied kernel once."""
    if over == "all":
        return _score.trained(group)
    return tuple({(m.path, m.axes): m for m in group.consumers}.values())


# Closed forms, where there are some, cost less than the roots of a general power.
_MAPS = {
    0: prox.hard_threshold, 0.5: prox.half_threshold, 2 / 3: prox.two_thirds_threshold,
}  # fmt: skip


def _factors(norms: jax.Array, n: int, step: Any, p: Any) -> jax.Array:
    """What the map multiplies units of n weights by, shape of their norms."""
    # In the root mean square the penalty of a unit has no n: see the docstring above.
    size = norms / math.sqrt(n)
    known = p if isinstance(p, int | float) else None
    if known == 1:
        return prox.group_shrinkage(size, step)
    kept = _MAPS[known](size, step) if known in _MAPS else prox.lp(size, step, p)
    usable = (size > 0) & jnp.isfinite(size)
    # Zero where all squares underflow, as at p = 1; one bad weight does not spread.
    at_zero = jnp.where((size == 0) & (jnp.asarray(step, size.dtype) > 0), 0, 1)
    return jnp.where(usable, kept / jnp.where(usable, size, 1), at_zero)
