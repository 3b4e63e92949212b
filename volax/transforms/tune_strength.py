"""A target in place of a strength: a controller around any regularizer.

While the share removed is behind its course the regularizer acts, with a strength that
grows by the logarithm; while it is ahead the strength is 0 and what is dead stays dead.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from volax import _paths, masks
from volax._numerics import wide
from volax.pairs import _cost, _cuts, _judge, _layout, _score, records
from volax.pairs.records import Group, Written
from volax.pairs.result import Product
from volax.transforms import _hyperparams, _post_step, _units
from volax.transforms._hyperparams import Hyperparameter

NAME = "tune_strength"
MEASURES = ("weights", "units", *_cost.MEASURES)

# The share follows a cubic from 0 at a tenth of `steps`, when the sizes of the weights
# say something, to the target at its end: steep first, flat where it is to be met.
_START, _POWER = 0.1, 3
# Where the share is behind its course by `_FAR` or more, the strength grows at its full
# rate, which takes it from 1e-4 to 10 in 0.4 of `steps`. Nearly on course it grows, and
# ahead it falls, at a tenth of that, so that it has not to be found again.
_FAR, _SLOWEST, _RATE = 0.1, 0.1, 11.5 / 0.4
# A step may remove what makes twice the pace of the course, or what catches up in a
# twentieth of `steps`, or this share. What removes more reduces the strength.
_PACE, _CATCH_UP, _LEAST = 2.0, 0.05, 2.5e-3


class TuneStrengthState(NamedTuple):
    """State of :func:`tune_strength`."""

    count: jax.Array  # int32, shape ()
    strength: jax.Array  # float32, shape (); acts while the share is behind its course
    share: jax.Array  # float32, shape (); removed from the weights before the update
    inner_state: optax.OptState  # of what `make` built


class _Removed(NamedTuple):
    """What a measure says of the weights."""

    share: jax.Array  # float32, shape ()
    half: float  # half of what the smallest removal adds to the share
    dead: tuple[tuple[Group, jax.Array], ...]  # bools of the group's sizes


def tune_strength(
    make: Callable[[Any], optax.GradientTransformation],
    target: Hyperparameter,
    *,
    measure: str = "units",
    groups: Written | Iterable[Written] | None = None,
    steps: Any = 1000,
    mask: Any = "matrices",
    initial: jax.typing.ArrayLike = 1e-4,
    largest: jax.typing.ArrayLike = 100.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Finds the strength of a regularizer that removes a given share, and holds it.

    A strength has to be guessed over decades, and the same one removes a tenth under
    one optimizer and everything under another. Here the share is given, and the
    strength follows: before each update the share removed is measured and compared with
    its course, a cubic that reaches the target after ``steps`` updates. While the share
    is behind, the regularizer acts and its strength grows exponentially, faster the
    further behind; where a step removes more than the course asks for, it falls. While
    the share is ahead, the regularizer gets strength 0 and what is dead stays dead. So
    the share comes from below and stays where it first meets the target, while the
    weights that are left go on training without shrinkage.

    Args:
      make: ``make(strength)`` builds the regularizer, for the end of a chain, or a
        whole optimizer. It is called at every trace, with a float32 array of shape
        ``()``, and must put it into nothing that the state keeps (as
        ``inject_hyperparams`` does with its arguments).
      target: the share removed, in [0, 1): a number, or a schedule, which is then the
        course itself and should move in small steps, from after the first updates on.
      measure: what the share is one of. ``"units"``: of the units of ``groups`` the
        dead ones, judged as :func:`volax.compact` does; of groups that cannot be cut
        nothing is counted. ``"multiply_adds"``, ``"bytes"``: of the model what
        compacting ``groups`` removes; the former is counted by ``find_groups``, and
        for groups of another origin every entry of a matrix counts one.
        ``"weights"``: of the leaves of ``mask`` the exact zeros (of
        :func:`volax.lp_decay` with ``snap_below``).
      groups: from ``find_groups``, ``find_pairs`` or :func:`volax.pair`.
      steps: the updates after which the target is to be met, the time scale of the
        controller. About half of a training leaves the other half to recover in, and
        under a learning rate that falls to zero the target has to be met while a step
        can still remove something.
      mask: the leaves whose zeros ``measure="weights"`` counts, as in
        :func:`volax.lp_decay`.
      initial: the strength to start from and never to go below; too small is safe.
      largest: the strength never to go above.

    Returns:
      A transformation in place of ``make(strength)``. The strength and the share are
      in its state: ``optax.tree.get(state, "strength")`` and ``"share"``. Under
      ``inject_hyperparams`` name ``make`` and ``groups`` in ``static_args``, and
      ``target`` where it is a schedule. Left out there, a schedule arrives as the
      number that it has at each step, and a number is followed on the cubic: the
      course is then the product of the two, and never ahead of the cubic.

    Raises:
      ValueError: a ``make`` that builds no transformation, an unknown ``measure``, no
        groups to measure on, a number out of range; at ``init`` a transformation that
        keeps the strength in its state; at ``update`` no ``params``, a group that does
        not fit the tree or is masked out by half, groups that cannot be cut.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> make = lambda s: volax.proximal(0.1, s, volax.prox.soft_threshold)
      >>> tx = volax.tune_strength(make, 0.5, measure="weights", steps=100)
      >>> state, grads = tx.init(params), {"w": jnp.zeros((1, 4))}
      >>> for _ in range(120):
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> float(optax.tree.get(state, "share"))
      0.5

    References:
      The course is that of Zhu and Gupta, `To prune, or not to prune
      <https://arxiv.org/abs/1710.01878>`_, 2017; the controller is ours.
    """
    if not callable(make):
        raise ValueError(
            f"{NAME}: make must be a function of the strength that builds a "
            f"transformation, got {make!r}; under optax.inject_hyperparams name it in "
            "static_args"
        )
    if measure not in MEASURES:
        raise ValueError(
            f"{NAME}: measure must be one of {', '.join(map(repr, MEASURES))}, got "
            f"{measure!r}"
        )
    _hyperparams.check(NAME, "target", target, high=1.0, below=True)
    _hyperparams.check(NAME, "steps", steps, 1.0)
    _hyperparams.check(NAME, "initial", initial)
    _hyperparams.check(NAME, "largest", largest)
    written, products = _groups(measure, groups, mask), _cost.products_of(groups)

    def removed(params: Any) -> _Removed:
        if measure == "weights":
            return _Removed(_zeros(params, mask), 0.0, ())
        return _units_removed(written, params, measure, products)

    def course(count: jax.Array) -> jax.Array:
        if _hyperparams.is_scheduled(target):
            return jnp.asarray(_hyperparams.at(target, count), jnp.float32)
        passed = count.astype(jnp.float32) / jnp.asarray(steps, jnp.float32)
        rest = 1 - jnp.clip((passed - _START) / (1 - _START), 0, 1)
        return jnp.asarray(target, jnp.float32) * (1 - rest**_POWER)

    def init(params: optax.Params) -> TuneStrengthState:
        strength = jnp.asarray(initial, jnp.float32)
        inner_state = _built(make, strength).init(params)
        _refuse_kept_strength(lambda s: _built(make, s).init(params), strength)
        share = jnp.zeros([], jnp.float32)
        return TuneStrengthState(jnp.zeros([], jnp.int32), strength, share, inner_state)

    def update(updates, state, params=None, **extra_args):
        _post_step.require_params(NAME, params)
        share, half, dead = removed(params)
        # Of two numbers of units the one nearer to the target is met.
        now, then = (course(state.count + k) - half for k in (0, 1))
        inner = _built(make, jnp.where(share < now, state.strength, 0))
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        holds = now + half > 0
        if measure == "weights":
            gone = _zero_entries(params, mask, holds)
        else:
            gone = _unread_entries(params, dead, holds)
        updates = _post_step.emptied(updates, params, gone)
        step = _log_step(share, state.share, now, then, steps)
        strength = state.strength * jnp.exp(step)
        strength = jnp.clip(strength, initial, largest).astype(jnp.float32)
        count = _hyperparams.next_count(state.count)
        return updates, TuneStrengthState(count, strength, share, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _log_step(
    share: jax.Array,
    share_before: jax.Array,
    now: jax.Array,
    then: jax.Array,
    steps: Any,
) -> jax.Array:
    """What is added to the logarithm of the strength; all of shape ``()``.

    ``now`` and ``then`` are the course at this update and at the next.
    """
    steps = jnp.asarray(steps, jnp.float32)
    rate, behind = jnp.minimum(_RATE / steps, 1), now - share  # at most e a step
    allowed = _PACE * (then - now) + jnp.maximum(behind, 0) / (_CATCH_UP * steps)
    burst = (share - share_before) / jnp.maximum(allowed, _LEAST)
    # Where the course has come to its end the strength stays as it was found, or grows
    # until the rest is gone too.
    moves = then > now
    least = jnp.where(moves, _SLOWEST, 1)
    grown = rate * (jnp.clip(behind / _FAR, least, 1) - burst)
    ahead = jnp.where(moves, -_SLOWEST * rate, 0)
    return jnp.where(behind > 0, jnp.clip(grown, -1, rate), ahead)


def _built(make: Callable[[Any], Any], strength: jax.Array) -> Any:
    """The transformation for a strength."""
    tx = make(strength)
    if not (callable(getattr(tx, "init", None)) and hasattr(tx, "update")):
        raise ValueError(
            f"{NAME}: make must build an optax.GradientTransformation, got "
            f"{type(tx).__name__}"
        )
    return optax.with_extra_args_support(tx)


def _refuse_kept_strength(init: Callable[[Any], Any], strength: jax.Array) -> None:
    """Raises where the first strength would stay in the state, and be used for ever."""
    closed, shapes = jax.make_jaxpr(init, return_shape=True)(strength)
    known = {id(v) for v in closed.jaxpr.invars}
    for eqn in closed.jaxpr.eqns:
        if any(id(v) in known for v in eqn.invars):
            known.update(map(id, eqn.outvars))
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    for (path, _), v in zip(leaves, closed.jaxpr.outvars):
        if id(v) in known:
            raise ValueError(
                f"{NAME}: what make builds keeps the strength in its state, at "
                f"{jax.tree_util.keystr(path)}, and would never use another; put "
                "inject_hyperparams around arguments other than the strength, or "
                f"around {NAME}"
            )


def _groups(measure: str, groups: Any, mask: Any) -> tuple[Written, ...]:
    """The records to measure on, none for zeros."""
    if measure == "weights":
        if groups is not None:
            raise ValueError(
                f"{NAME}: measure='weights' counts the zeros of mask and knows no "
                "groups, got groups; give measure='units', or no groups"
            )
        return ()
    if groups is None:
        raise ValueError(
            f"{NAME}: measure={measure!r} needs groups, from volax.find_groups or "
            "volax.pair; measure='weights' counts zeros without them"
        )
    if not (isinstance(mask, str) and mask == "matrices"):
        raise ValueError(
            f"{NAME}: mask is for measure='weights', got {mask!r} with "
            f"measure={measure!r}"
        )
    return records.listed(groups, NAME)


def _zeros(params: optax.Params, mask: Any) -> jax.Array:
    """The share of exact zeros in the leaves of a mask."""
    leaves = _paths.named_leaves(params)
    chosen = [jnp.asarray(leaves[k]) for k in masks.selected(mask, params, NAME)]
    zeros = [_count_zeros(leaf).astype(jnp.float32) for leaf in chosen]
    total = sum(leaf.size for leaf in chosen)
    return sum(zeros, jnp.zeros([], jnp.float32)) / max(total, 1)


def _count_zeros(leaf: jax.Array) -> jax.Array:
    """How many entries are zero, int32, shape ``()``; none in a row that has a NaN.

    XLA fuses a sum of floats with what is summed. A sum of bools it makes of integers,
    which it writes to memory first, as many bytes as the leaf has. But float32 does not
    count beyond 2^24, so floats count along rows, and integers the rows.
    """
    rows = wide(leaf) if leaf.ndim else wide(leaf)[None]
    used = jnp.sum(jnp.abs(jnp.sign(rows)), axis=-1)
    used = jnp.where(jnp.isnan(used), rows.shape[-1], used)
    return leaf.size - jnp.sum(used.astype(jnp.int32))


def _units_removed(
    written: tuple[Written, ...],
    params: optax.Params,
    measure: str,
    products: tuple[Product, ...],
) -> _Removed:
    """The share that compacting removes, and the dead units of all groups."""
    groups, leaves = _units.present(
        NAME, written, params, kind="group", side=_score.trained
    )
    known = {k: leaf for k, leaf in leaves.items() if not _paths.is_absent(leaf)}
    dead = _judge.dead_units(groups, known)
    shapes = {k: jax.ShapeDtypeStruct(*_kind(leaf)) for k, leaf in known.items()}
    sizes = {k: s.shape for k, s in shapes.items()}
    found = _cuts.cuttable(NAME, dict(enumerate(groups)), sizes)
    paired = tuple(zip(groups, dead))
    if measure in _cost.MEASURES:
        if len(groups) < len(written):
            raise ValueError(
                f"{NAME}: measure={measure!r} is of the whole model, but groups are "
                f"masked out; put the mask inside make, around what it builds"
            )
        of = _cost_of(groups, tuple(shapes.items()), measure, products)
        left = of.share([_cost.units_left(~gone) for gone in dead])
        return _Removed(1 - left.astype(jnp.float32), 0.0, paired)
    counted = [dead[k] for k in found]
    gone = [jnp.sum(d).astype(jnp.float32) for d in counted]
    total = max(sum(d.size for d in counted), 1)
    share = sum(gone, jnp.zeros([], jnp.float32)) / total
    return _Removed(share, 0.5 / total, paired)


def _kind(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of an array."""
    return jnp.shape(leaf), jnp.asarray(leaf).dtype


@functools.lru_cache(maxsize=64)  # an eager update asks at every step
def _cost_of(groups: Any, shapes: Any, measure: str, products: Any) -> _cost.Cost:
    return _cost.cost(groups, dict(shapes), measure, products)


def _zero_entries(params: Any, mask: Any, holds: jax.Array) -> dict[str, jax.Array]:
    """The entries that are zero, where ``holds``, by key path."""
    leaves = _paths.named_leaves(params)
    chosen = masks.selected(mask, params, NAME)
    return {k: (jnp.asarray(leaves[k]) == 0) & holds for k in leaves if k in chosen}


def _unread_entries(
    params: Any, dead: tuple[tuple[Group, jax.Array], ...], holds: jax.Array
) -> dict[str, jax.Array]:
    """The outgoing weights of the dead units, where ``holds``, by key path."""
    leaves = _paths.named_leaves(params)
    alive: dict[str, jax.Array] = {}
    for group, gone in dead:
        for m in group.consumers:
            if _cuts.carries_all(m, group):
                # All true, and on a mesh it lies as the leaf does.
                before = alive.get(m.path, (jnp.asarray(leaves[m.path]) == 0) | True)
                alive[m.path] = _layout.scale(m, group.sizes, before, ~(gone & holds))
    return {path: ~entries for path, entries in alive.items()}
