"""The proximal step of the path penalty: it removes whole ReLU units, exactly.

For incoming weights a and outgoing weights v of a unit the penalty is ||a|| ||v||, and
in the form of the paper (arXiv 2210.03069), with its bias b,

a <- a / ||a||, b <- b / ||a||, v <- v max(0, 1 - learning_rate * strength / ||v||).
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from volax import _paths, masks
from volax._numerics import wide
from volax._sharding import alike, pinned, whole
from volax.pairs import _layout, records
from volax.pairs._path_norm import side_norms
from volax.pairs.records import Group, Member, Written
from volax.prox._path_shrinkage import is_usable, path_shrinkage, power, shrinkage
from volax.transforms import _hyperparams, _post_step, _units
from volax.transforms._balance import UNBALANCED, Factors, Scales, balanced, behind
from volax.transforms._hyperparams import Hyperparameter


class PathProxState(NamedTuple):
    """State of :func:`path_prox` where something is scheduled."""

    count: jax.Array  # int32, shape ()


def path_prox(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    pairs: Written | Iterable[Written],
    *,
    normalize: str = "rescale",
    p: Hyperparameter = 1.0,
    scale_by_size: bool = False,
    regularize_bias: bool = False,
    balance: bool = False,
    freeze_dead: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the proximal step of $\lambda \sum \lVert a \rVert \lVert v \rVert$.

    For a ReLU unit with incoming weights $a$, bias $b$ and outgoing weights $v$, weight
    decay has the same minima as this path penalty, whose proximal step removes whole
    units: one whose $v$ reaches exactly zero is dead, and ``compact`` removes it.

    Stands last in the chain, after an optimizer of learning rate $\eta$. Weights in no
    pair are not touched; give those ordinary decay by :func:`volax.unpaired`.

    *Strength.* Under SGD, and for pairs that share no weight, all modes rest where the
    loss plus $\lambda \sum \lVert a \rVert \lVert v \rVert$ is stationary: a unit stays
    if it lowers the loss by more than $\lambda$ for each unit of path norm, whatever
    $\eta$ is. Start at the strength of the weight decay that you would use and go up by
    factors of three. Adam divides the gradient by its own size, so there the loss has
    no weight against $\lambda$: what counts is how far the penalty goes alone, which is
    $\lambda \sum \eta$ over the steps (at $\lVert a \rVert = 1$). Where that sum
    reaches the norms $\lVert v \rVert$ of the units, most of them die, those that the
    loss needs among them. :func:`volax.path_prox_adam` divides the threshold by what
    Adam divides the gradient by, and left far better nets of several layers
    (``benchmarks/RESULTS.md``); for another optimizer give its unbiased second moments
    to ``update``, as ``second_moments``.

    *Dead units come back* where a gradient moves their outgoing weights further in one
    step than $\eta \lambda$. With momentum they go on moving for the steps that are
    still in the buffer, and under Adam a group of n weights moves by about
    $\eta \sqrt{n}$ in each, however small its gradient has become. ``freeze_dead``
    keeps them at zero. It costs the units that the loss would want back later, so turn
    it on where few units die because many come back, and at the end of training, where
    a learning rate that falls to zero takes the threshold along.

    On a mesh every weight keeps its sharding, and the devices exchange vectors with a
    number a unit. Inside a ``shard_map`` norms are local, those of the parts that a
    device holds: right where each unit lies whole on one device (experts, ensembles).

    Args:
      learning_rate: $\eta \ge 0$, the same number, array or schedule that the optimizer
        in the chain has; :func:`volax.path_prox_sgd` and :func:`volax.path_prox_adam`
        give one to both.
      strength: $\lambda \ge 0$, number, array or schedule.
      pairs: which weights belong to one unit, from ``find_pairs`` or
        :func:`volax.pair`, in the order of the network.
      normalize: what happens to the units' scale, which the function does not see.

        ``"rescale"`` first divides every $a$ (and $b$) by $\lVert a \rVert$ and
        multiplies $v$ by it, which leaves the function as it is. Then it shrinks the
        path norms $t = \lVert v \rVert$ to the $z$ with
        $t = (z + \eta \lambda) (1 + \eta \lambda z)$, zero for $t \le \eta \lambda$:
        one factor for the penalty on $v$, one for that on $a$. The result does not
        depend on the scale that the units had.

        ``"none"`` leaves the scale alone. $a$ takes a gradient step and $v$ a proximal
        one, $v \leftarrow v \max(0, 1 - \eta \lambda \lVert a \rVert / \lVert v
        \rVert)$ and $a \leftarrow a - \eta \lambda \lVert v \rVert a / \lVert a
        \rVert$, with the norms before the step on the right.

        ``"project"`` is the algorithm of the paper, with nothing to make up for the
        division: $a \leftarrow a / \lVert a \rVert$, $b \leftarrow b / \lVert a
        \rVert$, $v \leftarrow v \max(0, 1 - \eta \lambda / \lVert v \rVert)$.

        Pairs that share weights (the outgoing weights of one are the incoming weights
        of the next, in every net of three layers) are refused by ``"project"``, for
        which ``pairs.disjoint()`` chooses. The sum of their path norms depends on the
        units' scale. ``"none"`` minimises it as it is: with weights $x, y, z$ in a row,
        $|xy| + |yz|$ falls as $y$ does, so the middle layers become small and the outer
        ones large, and few units die. ``"rescale"`` shrinks each path norm where all
        incoming norms are one.
      p: in (0, 1]; below one the penalty is
        $\lambda \sum (\lVert a \rVert \lVert v \rVert)^p$, which spares large units and
        removes more of the small ones.
      scale_by_size: multiplies the penalty of a unit with $n$ outgoing weights by
        $n^{1 - p/2}$, which makes it one of their root mean square, as in
        :func:`volax.group_prox`. One strength then suits layers of all widths: without
        it the last layer of a net, where a unit has as many outgoing weights as there
        are classes, loses its units first.
      regularize_bias: counts the bias of a unit among its incoming weights.
      balance: first equalises the total path norm of the pairs (to their geometric
        mean) by scaling outgoing weights and, along the network, the ``biases`` and
        ``output_biases`` of the pairs. The function stays as it is where the pairs
        follow one another, in this order, through layers without other biases; needs
        pairs that share no weight. A pair whose units are all dead keeps its scale.
      freeze_dead: keeps dead units dead; otherwise a gradient may revive them.

    Returns:
      A transformation for the end of an ``optax.chain``. A unit whose incoming norm is
      zero or not finite is not normalised, one whose outgoing norm is not finite not
      shrunk. ``update`` takes ``second_moments``, a tree of the parameters' structure
      with the mean squares of their gradients: what shrinks a side of a unit is then
      divided by the root of their mean over the weights of that side, but by no less
      than a tenth of what that is in its layer.

    Raises:
      ValueError: a hyperparameter out of range, an unknown ``normalize``, no pairs,
        something that is no pair; at ``update`` no ``params``, a pair that does not fit
        the tree or is masked out by half, two pairs that overlap on one side, or under
        ``"project"`` on any, ``second_moments`` that do not fit the tree.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"a": jnp.array([[2.0, 1.0]]), "v": jnp.array([[1.0], [0.25]])}
      >>> prox = volax.path_prox(0.5, 0.5, volax.pair("a", "v"), normalize="project")
      >>> tx = optax.chain(optax.sgd(0.5), prox)
      >>> grads = {"a": jnp.zeros((1, 2)), "v": jnp.zeros((2, 1))}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> new = optax.apply_updates(params, updates)
      >>> new["a"].tolist(), new["v"].tolist()
      ([[1.0, 1.0]], [[0.75], [0.0]])

    References:
      Yang et al., `A Better Way to Decay <https://arxiv.org/abs/2210.03069>`_, 2022,
      the PathProx algorithm (``"project"``; the other two modes are ours); Nakhleh and
      Nowak, `A New Perspective on Sparse ReLU Networks
      <https://arxiv.org/abs/2505.21791>`_, 2025, for p below 1.
    """
    numbers = {"learning_rate": learning_rate, "strength": strength, "p": p}
    for argument, value in numbers.items():
        low, high = (_LEAST_P, 1.0) if argument == "p" else (0.0, np.inf)
        _hyperparams.check("path_prox", argument, value, low, high)
    if normalize not in _MODES:
        raise ValueError(
            f"path_prox: normalize must be one of {', '.join(map(repr, _MODES))}, "
            f"got {normalize!r}"
        )
    written = records.as_groups(pairs, "path_prox")
    is_scheduled = _hyperparams.is_scheduled(*numbers.values())

    def init(params: optax.Params) -> PathProxState | optax.EmptyState:
        del params
        if not is_scheduled:
            return optax.EmptyState()
        return PathProxState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        _post_step.require_params("path_prox", params)
        groups, _ = _units.present("path_prox", written, params)
        records.check_sides(groups)
        if normalize == "project":
            records.check_disjoint(groups, _APART)
        paths = {m.path for g in groups for m in g.members}
        if balance:
            paths |= {path for g in groups for path in behind(g)}
        weights = _post_step.tentative_weights(
            "path_prox", updates, params, masks.Only(frozenset(paths))
        )
        now = {path: wide(leaf.after) for path, leaf in weights.items()}
        before = {path: wide(leaf.before) for path, leaf in weights.items()}
        count = state.count if is_scheduled else None
        rate, force, power = (_hyperparams.at(v, count) for v in numbers.values())
        squares = _squares(extra_args.get("second_moments"), groups, now)
        balances = balanced(now, groups) if balance else [UNBALANCED] * len(groups)
        steps = []
        for group, scales in zip(groups, balances):
            dtype = now[group.producers[0].path].dtype
            step = _hyperparams.product(rate, force, dtype)
            if scale_by_size:
                step = step * _outgoing(group, now) ** (1 - power / 2)
            incoming = group.producers + (group.biases if regularize_bias else ())
            size = pull = step
            if squares is not None:
                size = step / _gradients(group.consumers, group, squares)
                pull = step / _gradients(incoming, group, squares)
            steps.append(_Step(group, incoming, size, pull, power, scales))
        if freeze_dead:  # before any norm is taken: momentum still moves dead units
            now = _frozen(now, before, groups)
        now = _MODES[normalize](now, before, steps)
        for scales in balances:
            now |= {path: now[path] * factor for path, factor in scales.leaves.items()}
        targets = {path: _post_step.Target(t, keeps=False) for path, t in now.items()}
        if is_scheduled:
            state = PathProxState(_hyperparams.next_count(state.count))
        return _post_step.deltas(updates, weights, targets), state

    return optax.GradientTransformationExtraArgs(init, update)


_LEAST_P = 0.01
_LEAST_GRADIENT = 1e-8  # Adam's own; it keeps the threshold finite
_APART = (
    "path_prox: normalize='project' would normalise what it has shrunk where pairs "
    "share weights; take pairs.disjoint(), or normalize='rescale' or 'none'"
)
Leaves = dict[str, jax.Array]


class _Step(NamedTuple):
    """The step of one pair."""

    group: Group
    incoming: tuple[Member, ...]  # whose norm is that of a
    size: Factors  # learning rate times strength, for v
    pull: Factors  # the same for a; numbers, or arrays of the group's sizes
    p: Factors
    scales: Scales

    @property
    def sizes(self) -> tuple[Factors, Factors, Factors]:
        """What :func:`path_shrinkage` takes beside the path norms."""
        return self.size, self.p, self.pull

    def norm(self, members: tuple[Member, ...], leaves: Leaves) -> jax.Array:
        """The norm of one side of each unit, which several parameters use."""
        return side_norms(members, self.group.sizes, leaves, shared=True)

    def scaled(
        self, members: Iterable[Member], leaves: Leaves, factors: jax.Array
    ) -> Leaves:
        """The leaves with some members of each unit multiplied."""
        after = dict(leaves)
        for m in members:
            after[m.path] = _layout.scale(m, self.group.sizes, after[m.path], factors)
        return after


def _projected(now: Leaves, before: Leaves, steps: Sequence[_Step]) -> Leaves:
    """The paper's step: a to the unit sphere, v shrunk, nothing made up for."""
    del before
    for step in steps:
        group, scales = step.group, step.scales
        is_shared = len(step.incoming) > 1 or bool(group.biases)
        incoming = side_norms(step.incoming, group.sizes, now, shared=is_shared)
        incoming = jnp.where(is_usable(incoming), incoming, 1)
        # Each use of the norms may be laid out as its parameter is.
        incoming = pinned(incoming) if is_shared else incoming
        # Of the unscaled weights: the norm is at hand, and no pass over them is spent.
        outgoing = scales.consumers * side_norms(group.consumers, group.sizes, now)
        factor = scales.consumers * shrinkage(outgoing, step.size, step.p)
        now = step.scaled(group.producers, now, 1 / incoming)
        now = step.scaled(group.biases, now, scales.biases / incoming)
        now = step.scaled(group.consumers, now, factor)
    return now


def _rescaled(now: Leaves, before: Leaves, steps: Sequence[_Step]) -> Leaves:
    """First all units to ||a|| = 1, then all path norms shrunk.

    The order of the pairs matters to the first part alone, and there it is that of the
    network: what one pair hands to its consumers, the next one takes off them again.
    """
    del before
    apart = not any(records.conflicts([step.group for step in steps]))
    norms = []
    for step in steps:
        group, scales = step.group, step.scales
        incoming, outgoing = alike(
            step.norm(step.incoming, now), step.norm(group.consumers, now)
        )
        outgoing = outgoing * scales.consumers
        # The incoming weights of a unit that dies below are not normalised: no unit
        # needs them, and as outgoing weights of the pair before they shrink to nothing.
        lives = path_shrinkage(incoming * outgoing, *step.sizes) > 0
        taken = pinned(jnp.where(is_usable(incoming) & lives, incoming, 1))
        now = step.scaled(group.producers, now, 1 / taken)
        now = step.scaled(group.biases, now, scales.biases / taken)
        now = step.scaled(group.consumers, now, scales.consumers * taken)
        norms.append((incoming / taken, outgoing * taken))
    factors = []
    for step, (incoming, outgoing) in zip(steps, norms):
        if not apart:  # a later pair has taken some of the outgoing norm
            (outgoing,) = alike(step.norm(step.group.consumers, now))
        factors.append(path_shrinkage(incoming * outgoing, *step.sizes))
    for step, factor in zip(steps, factors):
        now = step.scaled(step.group.consumers, now, factor)
    return now


def _descended(now: Leaves, before: Leaves, steps: Sequence[_Step]) -> Leaves:
    """A gradient step on a, a proximal step on v, from the norms before the step.

    Every part is that of the penalty at the weights before the step, or their proximal
    map, so that a weight that belongs to several pairs gets the sum of all.
    """
    thresholds = []
    for step in steps:
        group, p = step.group, step.p
        incoming, outgoing = alike(
            step.norm(step.incoming, before), step.norm(group.consumers, before)
        )
        outgoing = outgoing * step.scales.consumers
        # The gradient of ||a||^p ||v||^p in a is p ||a||^(p-2) ||v||^p a.
        usable = is_usable(incoming)
        size = jnp.where(usable, incoming, 1)
        pull = step.pull * p * power(outgoing, p) * power(size, p - 2)
        pull = jnp.where(usable & jnp.isfinite(pull), jnp.minimum(pull, 1), 0)
        for m in step.incoming:
            part = _layout.scale(m, group.sizes, before[m.path], pinned(pull), others=0)
            now = now | {m.path: now[m.path] - part}
        threshold = step.size * power(jnp.where(usable, incoming, 0), p)
        thresholds.append(jnp.where(jnp.isfinite(threshold), threshold, 0))
    factors = []
    for step, threshold in zip(steps, thresholds):
        outgoing = step.norm(step.group.consumers, now)
        outgoing, threshold = alike(outgoing * step.scales.consumers, threshold)
        factors.append(step.scales.consumers * shrinkage(outgoing, threshold, step.p))
    for step, factor in zip(steps, factors):
        now = step.scaled(step.group.consumers, now, factor)
        if step.scales is not UNBALANCED:
            along = jnp.broadcast_to(step.scales.biases, step.group.sizes)
            now = step.scaled(step.group.biases, now, along)
    return now


def _outgoing(group: Group, leaves: Leaves) -> int:
    """How many outgoing weights a unit has."""
    shapes = [(m, leaves[m.path].shape) for m in group.consumers]
    return sum(_layout.weights_of_unit(m, shape) for m, shape in shapes)


def _squares(tree: Any, groups: Iterable[Group], leaves: Leaves) -> Leaves | None:
    """The second moments by key path, if they were given."""
    if tree is None:
        return None
    named, found = _paths.named_leaves(tree, absent=True), {}
    for path in {m.path: None for g in groups for m in g.members}:
        shape = leaves[path].shape
        given = getattr(named.get(path), "shape", None)
        if given != shape:
            raise ValueError(
                f"path_prox: second_moments must hold an array of shape {shape} at "
                f"{path!r}, as params does, got {given}"
            )
        found[path] = wide(named[path]).astype(leaves[path].dtype)
    return found


def _gradients(members: tuple[Member, ...], group: Group, squares: Leaves) -> jax.Array:
    """Root mean square of the gradients of some weights of each unit, of its sizes.

    A unit that no example of the first steps reaches has no gradient yet, and an
    infinite threshold would remove it: so none has less than a tenth of its layer's.
    """
    leaves = [(m, squares[m.path]) for m in members]
    parts = [pinned(_layout.sums(m, group.sizes, leaf)) for m, leaf in leaves]
    count = sum(_layout.weights_of_unit(m, leaf.shape) for m, leaf in leaves)
    mean = functools.reduce(jnp.add, alike(*parts)) / count
    size = jnp.sqrt(jnp.maximum(mean, jnp.mean(mean) / 100))
    return whole(jnp.maximum(size, _LEAST_GRADIENT))


_MODES = {"rescale": _rescaled, "project": _projected, "none": _descended}


def _frozen(now: Leaves, before: Leaves, groups: Iterable[Group]) -> Leaves:
    """The leaves with the units dead that were so before."""
    for group in groups:
        was = {m.path: before[m.path] for m in group.consumers}
        alive = side_norms(group.consumers, group.sizes, was, shared=True) > 0
        for m in group.consumers:
            kept = _layout.scale(
                m, group.sizes, now[m.path], alive.astype(now[m.path].dtype)
            )
            now = now | {m.path: kept}
    return now
