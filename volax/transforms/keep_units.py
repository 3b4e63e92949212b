"""The projection onto nets of few units: those of the largest score stay.

w <- w where the unit is among the k of the largest score, else 0, for every weight w of
a unit; k follows from a share that may be a schedule.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from volax import _paths, masks
from volax._numerics import wide
from volax._sharding import whole
from volax.pairs import _cost, _cuts, _layout, _score, _select, records
from volax.pairs.records import OPEN, Group, Written
from volax.transforms import _hyperparams, _post_step, _units
from volax.transforms._hyperparams import Hyperparameter

_SCORES = ("path_norm", "consumers", "taylor")


class KeepUnitsState(NamedTuple):
    """State of :func:`keep_units`."""

    count: jax.Array  # int32, shape ()
    alive: tuple[jax.Array, ...]  # of each group which units stay, bool of its sizes
    scores: tuple[jax.Array, ...]  # running means, float32, of "taylor" alone


def cubic_ramp(start: float, stop: float, begin: int, end: int) -> optax.Schedule:
    r"""A share that falls from one number to another, fast at first.

    $$s_t = s_1 + (s_0 - s_1) \Bigl(1 - \frac{t - t_0}{t_1 - t_0}\Bigr)^3$$

    between the steps $t_0$ and $t_1$, $s_0$ before and $s_1$ after. Most units go while
    there are many that nobody needs, and the last few have the time to be replaced.

    Args:
      start: $s_0$, the share before.
      stop: $s_1$, the share after.
      begin: $t_0 \ge 0$, the first step of the ramp.
      end: $t_1 > t_0$, the step at which it ends.

    Returns:
      A schedule for :func:`volax.keep_units`.

    Raises:
      ValueError: numbers that are not finite, or an end that is not behind the
        beginning.

    Example:
      >>> share = cubic_ramp(1.0, 0.2, begin=10, end=20)
      >>> [round(float(share(step)), 2) for step in (0, 10, 15, 20, 30)]
      [1.0, 1.0, 0.3, 0.2, 0.2]

    References:
      Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_,
      2017, equation 1, where $s$ is what is removed.
    """
    for argument, value in (("start", start), ("stop", stop), ("begin", begin)):
        _hyperparams.check("cubic_ramp", argument, value)
    _hyperparams.check("cubic_ramp", "end", end)
    if end <= begin:
        raise ValueError(f"cubic_ramp: end must be behind begin={begin}, got {end}")

    def schedule(count: Any) -> Any:
        left = 1 - (jnp.asarray(count, float) - begin) / (end - begin)
        return stop + (start - stop) * jnp.clip(left, 0, 1) ** 3

    return schedule


def keep_units(
    share: Hyperparameter,
    groups: Written | Iterable[Written],
    *,
    scope: str = "layer",
    score: str = "path_norm",
    every: int = 1,
    round_to: int = 1,
    floor: int = 1,
    freeze: bool = True,
    score_decay: Hyperparameter = 0.9,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps a share of the units, those of the largest score; the others are zero.

    The projection onto nets of at most so many units, the $\ell_0$ counterpart of
    :func:`volax.path_prox`: it needs no strength, works behind any optimizer, and the
    target is met at every step. On a ramp (:func:`volax.cubic_ramp`), at a learning
    rate that is constant until its end and falls after it, it left nets about as good
    as those of any strength or better; on MNIST and Fashion-MNIST better than the same
    size trained from the start, on a small transformer worse
    (``benchmarks/RESULTS.md``). Stands last in the chain; ``compact`` then removes what
    is zero, at the end or between phases of the training.

    With ``freeze`` a unit that was removed never comes back: all its weights are zero
    from then on, whatever momentum says, and training is exactly that of the compacted
    model with an optimizer that acts on each weight by itself. The units are ranked by
    their weights before the step. Without it only the outgoing weights are zero: a
    gradient may bring them back, and each selection starts from all units, ranked by
    their weights after the step.

    Units of a group with several indices (layers of a stack, channels of heads) are
    chosen row by row, as many in each, as ``compact`` cuts them. Groups that cannot be
    cut are left alone.

    On a mesh every weight keeps its sharding, and the devices exchange vectors with a
    number a unit.

    Args:
      share: in [0, 1], what stays: number, array or schedule. With ``scope="layer"`` of
        the units of each group, rounded up; with ``"global"`` of the multiply-adds of
        the whole model.
      groups: from ``find_groups``, ``find_pairs`` or :func:`volax.pair`. They may
        overlap, as a head and its channels.
      scope: ``"layer"`` compares units within their group. ``"global"`` takes units
        of all groups, until so many multiply-adds are left: first those whose score is
        the least part of the sum over the unit and all of its group that rank above it,
        so that no layer is emptied (but a wide dense layer behind convolutions
        kept 3 of 64 units, too few: give a ``floor``, or cut by layer, where layers
        differ as much). The multiply-adds are those that the search counted; of
        groups written by hand one for each weight of a matrix.
      score: ``"path_norm"`` is the norm of a unit's incoming times that of its outgoing
        weights; of a group that is no pair, what stands between (the kernel before a
        batch norm, a gate) counts as incoming. ``"consumers"`` is the norm of the
        outgoing weights. ``"taylor"`` is $\lvert\sum g w\rvert$ over the unit's
        weights, the change of the loss to first order, averaged over the steps; it
        needs ``tx.update(updates, state, params, grad=grads)``.
      every: selects at every so many steps, the first included; between them the units
        that are zero stay zero.
      round_to: counts are rounded up to a multiple of this, or to all units.
      floor: at least so many units stay in each row.
      freeze: whether a removed unit stays removed.
      score_decay: of the running mean of ``"taylor"``, in [0, 1).

    Returns:
      A transformation for the end of an ``optax.chain``. A unit whose score is NaN goes
      first; of equal scores the first unit stays.

    Raises:
      ValueError: a share outside [0, 1], another argument out of range, no groups; at
        ``update`` no ``params`` (for ``"taylor"`` no ``grad``), a group that does not
        fit the tree or is masked out by half, none that can be cut, or a share of the
        multiply-adds that ``floor`` and ``round_to`` do not reach.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"a": jnp.array([[2.0, 1.0]]), "v": jnp.array([[1.0], [0.25]])}
      >>> tx = optax.chain(
      ...     optax.adam(0.1), volax.keep_units(0.5, volax.pair("a", "v")))
      >>> grads = {"a": jnp.ones((1, 2)), "v": jnp.ones((2, 1))}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> new = optax.apply_updates(params, updates)
      >>> (new["a"] == 0).tolist(), (new["v"] == 0).tolist()
      ([[False, True]], [[False], [True]])

    References:
      Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_,
      2017, for the ramp. Molchanov et al., `Importance estimation for neural network
      pruning <https://arxiv.org/abs/1906.10771>`_, 2019, for ``"taylor"``. Fang et al.,
      `DepGraph <https://arxiv.org/abs/2301.12900>`_, 2023, normalise scores by the
      group's mean, which empties layers; the rule of ``"global"`` is ours.
    """
    _hyperparams.check("keep_units", "share", share, high=1.0)
    _hyperparams.check("keep_units", "score_decay", score_decay, high=1.0, below=True)
    for argument, value, known in (
        ("scope", scope, ("layer", "global")),
        ("score", score, _SCORES),
    ):
        if value not in known:
            listed = " or ".join(map(repr, known))
            raise ValueError(f"keep_units: {argument} must be {listed}, got {value!r}")
    integers = {"every": every, "round_to": round_to, "floor": floor}
    for argument, number in integers.items():
        _check_integer(argument, number)
    if score == "taylor" and not freeze:
        raise ValueError(
            "keep_units: the score 'taylor' of a removed unit is zero, so that it "
            "would never come back; freeze must be True"
        )
    written = records.listed(groups, "keep_units")
    rank = _score.path_norms if score == "path_norm" else _score.outgoing_norms

    def init(params: optax.Params) -> KeepUnitsState:
        leaves = _paths.named_leaves(params, absent=True)
        alive = tuple(_everything(group, leaves) for group in written)
        running = alive if score == "taylor" else ()
        scores = tuple(jnp.zeros_like(a, jnp.float32) for a in running)
        return KeepUnitsState(jnp.zeros([], jnp.int32), alive, scores)

    def update(updates, state, params=None, **extra_args):
        _post_step.require_params("keep_units", params)
        found, leaves = _present(written, params)
        paths = {m.path for g in found.values() for m in _score.trained(g)}
        weights = _post_step.tentative_weights(
            "keep_units", updates, params, masks.Only(frozenset(paths))
        )
        after = {path: leaf.after for path, leaf in weights.items()}
        wanted = _hyperparams.at(share, state.count)
        period, multiple, least = map(_integer, integers.values())
        cost = None
        if scope == "global":
            cost = _cost.of_some(groups, found, leaves)
            known = isinstance(least, int) and isinstance(multiple, int)
            if known and isinstance(share, int | float):
                what = f"keep_units: share={share}"
                _select.check_reachable(what, share, cost, least, multiple)
        scores = list(state.scores)
        if score == "taylor":
            grads = _gradients(extra_args, weights)
            decay = _hyperparams.at(score_decay, state.count)
            for k, group in found.items():
                change = _score.taylor(group, leaves, grads)
                scores[k] = decay * scores[k] + (1 - decay) * change

        def selected(alive: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            # What was removed is zero before the step as well, and these arrays are in
            # memory already: those after the step would have to be written for it.
            now = {
                path: wide(leaf.before if freeze else leaf.after)
                for path, leaf in weights.items()
            }
            choice = [alive[k] if freeze else alive[k] | True for k in found]
            worth = [
                scores[k] if score == "taylor" else rank(g, now)
                for k, g in found.items()
            ]
            if cost is None:
                rows = [g.sizes[-1] for g in found.values()]
                left = [_select.count(wanted, n, least, multiple) for n in rows]
            else:
                left = _select.counts_within(
                    wanted, worth, choice, cost, least, multiple
                )
            new = list(alive)
            for k, *each in zip(found, worth, left, choice):
                new[k] = _select.largest(*each)
            return tuple(new)

        alive = state.alive
        if isinstance(period, int) and period == 1:
            alive = selected(alive)
        else:
            is_due = state.count % period == 0
            alive = jax.lax.cond(is_due, selected, lambda alive: alive, alive)
        new = _zeroed(after, found, alive, everywhere=freeze)
        targets = {path: _post_step.Target(t) for path, t in new.items()}
        count = _hyperparams.next_count(state.count)
        state = KeepUnitsState(count, alive, tuple(scores))
        return _post_step.deltas(updates, weights, targets), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_integer(argument: str, number: Any) -> None:
    """Refuses what is no positive integer; ``inject_hyperparams`` makes arrays."""
    if isinstance(number, Tracer | jax.Array) and jnp.ndim(number) == 0:
        return
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(
            f"keep_units: {argument} must be an integer of at least 1, got {number!r}"
        )


def _integer(number: Any) -> Any:
    return number if isinstance(number, int) else jnp.asarray(number).astype(jnp.int32)


def _everything(group: Written, leaves: dict[str, Any]) -> jax.Array:
    """All units alive; one entry for those of a pair that is not in the tree yet."""
    sizes = group.sizes
    if OPEN in sizes:
        there = [hasattr(leaves.get(m.path), "shape") for m in group.members]
        fits = all(there)
        bare = dataclasses.replace(group, fixed=(), states=())
        sizes = bare.fit(leaves, "keep_units").sizes if fits else (1,) * len(sizes)
    return _select.everything(sizes, leaves.get(group.producers[0].path))


def _present(
    written: tuple[Written, ...], params: Any
) -> tuple[dict[int, Group], dict[str, Any]]:
    """The groups that are in a tree and can be cut, by number, and its leaves."""
    groups, leaves = _units.numbered(
        "keep_units", written, params, kind="group", side=_score.trained
    )
    shapes = {k: x.shape for k, x in leaves.items() if hasattr(x, "shape")}
    return _cuts.cuttable("keep_units", groups, shapes), leaves


def _zeroed(
    leaves: dict[str, jax.Array],
    groups: dict[int, Group],
    alive: Sequence[jax.Array],
    *,
    everywhere: bool = True,
) -> dict[str, jax.Array]:
    """Weights with exact zeros for dead units, or for their outgoing weights alone."""
    new = dict(leaves)
    for k, group in groups.items():
        # All weights of a unit share the vector, and none its sharding through it.
        stays = whole(alive[k])
        only = () if everywhere else group.consumers
        for m in only or _score.trained(group):
            new[m.path] = _layout.zero(m, group.sizes, new[m.path], stays)
    return new


def _gradients(
    extra_args: dict[str, Any], weights: dict[str, _post_step.Weights]
) -> dict[str, Any]:
    """The gradients by key path, of the argument that Optax's line searches take."""
    grads = extra_args.get("grad")
    if grads is None:
        raise ValueError(
            "keep_units: the score 'taylor' needs the gradients: pass grad to update, "
            "as in tx.update(updates, state, params, grad=grads)"
        )
    named = _paths.named_leaves(grads, absent=True)
    for path, leaf in weights.items():
        shape = jnp.shape(leaf.before)
        if not hasattr(named.get(path), "shape") or named[path].shape != shape:
            raise ValueError(
                f"keep_units: grad must hold a gradient of shape {shape} at {path!r}, "
                f"as params does, got {getattr(named.get(path), 'shape', None)}"
            )
    return named
