"""The proximal step of the path penalty: it removes whole ReLU units, exactly.

a <- a / ||a||, b <- b / ||a||, v <- v max(0, 1 - learning_rate * strength / ||v||)
for incoming weights a, bias b and outgoing weights v of a unit (arXiv 2210.03069).
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from volax import masks, prox
from volax._numerics import wide
from volax._sharding import alike, pinned
from volax.pairs import _layout, records
from volax.pairs._path_norm import path_norms, side_norms
from volax.pairs.records import Group, Written
from volax.transforms import _hyperparams, _post_step, _units
from volax.transforms._hyperparams import Hyperparameter


class PathProxState(NamedTuple):
    """State of :func:`path_prox` where something is scheduled."""

    count: jax.Array  # int32, shape ()


def path_prox(
    learning_rate: Hyperparameter,
    strength: Hyperparameter,
    pairs: Written | Iterable[Written],
    *,
    normalize: str = "project",
    balance: bool = False,
    freeze_dead: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the proximal step of $\lambda \sum \lVert a \rVert \lVert v \rVert$.

    For a ReLU unit with incoming weights $a$, bias $b$ and outgoing weights $v$, weight
    decay has the same minima as this path penalty, whose proximal step removes whole
    units. After the step of the optimizer, with learning rate $\eta$,

    $$a \leftarrow \frac{a}{\lVert a \rVert}, \quad
      b \leftarrow \frac{b}{\lVert a \rVert}, \quad
      v \leftarrow v \max\Bigl(0, 1 - \frac{\eta \lambda}{\lVert v \rVert}\Bigr).$$

    A unit whose $v$ reaches exactly zero is dead; ``compact`` removes it. Stands last
    in the chain. Weights outside the pairs are not touched; give those ordinary decay
    by :func:`volax.unpaired`. Momentum is best left out, as in the paper.

    On a mesh every weight keeps its sharding, and the devices exchange vectors with a
    number a unit. Inside a ``shard_map`` norms are local, those of the parts that a
    device holds: right where each unit lies whole on one device (experts, ensembles).

    Args:
      learning_rate: $\eta \ge 0$, the same number, array or schedule that the optimizer
        in the chain has; :func:`volax.path_prox_sgd` gives one to both.
      strength: $\lambda \ge 0$, number, array or schedule.
      pairs: which weights belong to one unit, from ``find_pairs`` or
        :func:`volax.pair`; applied in the given order, each to what the one before
        left, where one leaf is the outgoing side of one pair and the incoming side of
        another.
      normalize: ``"project"`` is the reference, whose fixed points are those of the
        loss plus $\lambda \sum \lVert a \rVert \lVert v \rVert$. ``"rescale"``
        multiplies $v$ by the old $\lVert a \rVert$ before the threshold, so that
        normalising leaves the function as it is; this keeps the radial part of $a$'s
        step, which turns the penalty into $\lambda \sum \arctan \lVert a \rVert
        \lVert v \rVert$ and lets noise grow $v$: more units die, and training diverges
        at smaller learning rates.
      balance: first equalises the total path norm of the pairs (to their geometric
        mean) by scaling outgoing weights and, along the network, the ``biases`` and
        ``output_biases`` of the pairs. The function stays as it is where the pairs
        follow one another, in this order, through layers without other biases; needs
        pairs of :func:`volax.pair`, which name them.
      freeze_dead: keeps dead units dead; otherwise a gradient may revive them.

    Returns:
      A transformation for the end of an ``optax.chain``. A unit whose incoming norm is
      zero or not finite is not normalised, one whose outgoing norm is not finite not
      shrunk.

    Raises:
      ValueError: a hyperparameter negative or not finite, an unknown ``normalize``, no
        pairs, something that is no pair; at ``update`` no ``params``, a pair that does
        not fit the tree or is masked out by half, two pairs that overlap on one side.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"a": jnp.array([[2.0, 1.0]]), "v": jnp.array([[1.0], [0.25]])}
      >>> tx = optax.chain(
      ...     optax.sgd(0.5), volax.path_prox(0.5, 0.5, volax.pair("a", "v")))
      >>> grads = {"a": jnp.zeros((1, 2)), "v": jnp.zeros((2, 1))}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> new = optax.apply_updates(params, updates)
      >>> new["a"].tolist(), new["v"].tolist()
      ([[1.0, 1.0]], [[0.75], [0.0]])

    References:
      Yang et al., `A Better Way to Decay <https://arxiv.org/abs/2210.03069>`_, 2022,
      the PathProx algorithm; ``normalize="rescale"`` is ours.
    """
    numbers = {"learning_rate": learning_rate, "strength": strength}
    for argument, value in numbers.items():
        _hyperparams.check("path_prox", argument, value)
    if normalize not in ("project", "rescale"):
        raise ValueError(
            f"path_prox: normalize must be 'project' or 'rescale', got {normalize!r}"
        )
    written = records.as_groups(pairs, "path_prox")
    is_scheduled = _hyperparams.is_scheduled(*numbers.values())

    def init(params: optax.Params) -> PathProxState | optax.EmptyState:
        del params
        if not is_scheduled:
            return optax.EmptyState()
        return PathProxState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _post_step.require_params("path_prox", params)
        groups, _ = _units.present("path_prox", written, params)
        records.check_sides(groups)
        paths = {m.path for g in groups for m in g.members}
        if balance:
            paths |= {m.path for g in groups for m in g.output_biases or ()}
        weights = _post_step.tentative_weights(
            "path_prox", updates, params, masks.Only(frozenset(paths))
        )
        now = {path: wide(leaf.after) for path, leaf in weights.items()}
        count = state.count if is_scheduled else None
        rates = [_hyperparams.at(value, count) for value in numbers.values()]
        balances = _balances(now, groups) if balance else [_UNBALANCED] * len(groups)
        for group, scales in zip(groups, balances):
            dtype = now[group.producers[0].path].dtype
            step = _hyperparams.product(rates[0], rates[1], dtype)
            before = {m.path: weights[m.path].before for m in group.consumers}
            now = _proximal(
                now, group, step, normalize, before if freeze_dead else {}, scales
            )
        targets = {path: _post_step.Target(t, keeps=False) for path, t in now.items()}
        if is_scheduled:
            state = PathProxState(_hyperparams.next_count(state.count))
        return _post_step.deltas(updates, weights, targets), state

    return optax.GradientTransformationExtraArgs(init, update)


class _Scales(NamedTuple):
    """What balancing multiplies a pair by; the biases behind it by the product."""

    biases: float | jax.Array
    consumers: float | jax.Array


_UNBALANCED = _Scales(1, 1)


def _proximal(
    now: dict[str, jax.Array],
    group: Group,
    threshold: float | jax.Array,
    normalize: str,
    before: dict[str, jax.Array],
    scales: _Scales,
) -> dict[str, jax.Array]:
    """The weights by key path after the proximal step of one pair."""
    is_shared = bool(group.biases) or normalize == "rescale"
    incoming = side_norms(group.producers, group.sizes, now, shared=is_shared)
    usable = (incoming > 0) & jnp.isfinite(incoming)
    incoming = jnp.where(usable, incoming, 1)
    # Each use of the norms may be laid out as its parameter is, so pin what they share.
    incoming = pinned(incoming) if is_shared else incoming
    # Of the unscaled weights: the norm is at hand, and no pass over them is spent.
    outgoing = side_norms(group.consumers, group.sizes, now)
    carried = scales.consumers
    if normalize == "rescale":
        incoming, outgoing = alike(incoming, outgoing)
        carried = carried * incoming
    factor = carried * prox.group_shrinkage(carried * outgoing, threshold)
    if before:
        factor = jnp.where(
            side_norms(group.consumers, group.sizes, before) == 0, 0, factor
        )
    factors = {
        "producer": 1 / incoming, "bias": scales.biases / incoming, "consumer": factor,
    }  # fmt: skip
    after = dict(now)
    for m in group.output_biases or ():
        if m.path in now:
            after[m.path] = after[m.path] * (scales.biases * scales.consumers)
    for m in (*group.producers, *group.biases, *group.consumers):
        after[m.path] = _layout.scale(m, group.sizes, after[m.path], factors[m.role])
    return after


def _balances(now: dict[str, jax.Array], groups: tuple[Group, ...]) -> list[_Scales]:
    """The scales after which all pairs have the same total path norm.

    Each pair's output is then scaled by a known product of factors, and so are the
    biases along the network; the product over all pairs is one.
    """
    sides = [
        {m.path for m in side} for g in groups for side in (g.producers, g.consumers)
    ]
    if sum(map(len, sides)) != len(set().union(*sides)):
        raise ValueError(
            "path_prox: balance needs pairs that share no parameter, got "
            + "; ".join(g.name for g in groups)
        )
    unknown = [g.name for g in groups if g.output_biases is None]
    if unknown:
        raise ValueError(
            "path_prox: balance has to scale the biases behind the consumers, which a "
            f"search does not tell for {'; '.join(unknown)}; write the pairs down with "
            "volax.pair(..., output_bias=...)"
        )
    totals = jnp.stack([jnp.sum(path_norms(g, now)) for g in groups])
    logs = jnp.log(totals)
    usable = jnp.all((totals > 0) & jnp.isfinite(totals))
    logs = jnp.where(usable, jnp.mean(logs) - logs, 0)
    along = jnp.exp(jnp.cumsum(logs) - logs)
    return [_Scales(along[k], jnp.exp(logs[k])) for k in range(len(groups))]
