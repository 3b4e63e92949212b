"""Volumization: a wall that clips, decays or reflects weights that leave [-V, V].

t = w inside, sign(w) * (V + alpha * (|w| - V)) outside (arXiv 2003.11243).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from volax import _numerics, _paths, masks, prox
from volax._numerics import Limit, wide
from volax._types import Leaf, Selection, Tree
from volax.transforms import _hyperparams, _post_step
from volax.transforms._hyperparams import Hyperparameter


class VolumizeState(NamedTuple):
    """State of :func:`volumize`; ``optax.EmptyState`` where neither field is needed."""

    count: jax.Array  # int32, shape ()
    initial: Tree  # max|w_0| a leaf, float32 or wider, shape (); None if not relative


@dataclasses.dataclass(frozen=True)
class RelativeToInit:
    """A volume relative to the initial weights, made by :func:`relative_to_init`."""

    scale: Hyperparameter


def relative_to_init(scale: Hyperparameter) -> RelativeToInit:
    r"""A volume of $V = \mathrm{scale} \cdot \max |w_0|$ for each leaf.

    This is the paper's "auto V". The authors' code takes $\max w_0$, which is wrong for
    a skewed leaf. A leaf that starts at all zeros (a bias of Flax) has no wall. Inside
    a ``shard_map`` the maximum is local, that of the part that a device holds; call
    ``init`` outside for that of the whole leaf.

    Args:
      scale: number $\ge 0$, array or schedule; the paper tries 0.1 to 4.

    Returns:
      A value for the ``volume`` of :func:`volax.volumize` and
      :func:`volax.volumized`. The optimizer's state keeps the maxima, one scalar for
      each leaf in the tree of the parameters; so ``optax.tree.map_params`` visits them
      as well, and a sharding made there is ``PartitionSpec()`` for them.

    Raises:
      ValueError: ``scale`` is negative, NaN or not a number.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = jnp.array([0.5, -2.0])
      >>> wall = volax.volumize(volax.relative_to_init(0.5), mask="all")
      >>> tx = optax.chain(optax.sgd(10.0), wall)
      >>> updates, _ = tx.update(jnp.array([-1.0, 1.0]), tx.init(params), params)
      >>> optax.apply_updates(params, updates).tolist()
      [1.0, -1.0]

    References:
      Ziyin et al., `Volumization as a Natural Generalization of Weight Decay
      <https://arxiv.org/abs/2003.11243>`_, 2020.
    """
    _hyperparams.check("relative_to_init", "scale", scale)
    return RelativeToInit(scale)


def volumize(
    volume: Tree, alpha: Hyperparameter = 0.0, *, mask: Selection = "matrices"
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps weights within a volume: a wall that clips, slows or reflects them.

    With $w$ the weight after the step,

    $$t = w \text{ if } |w| \le V, \quad
    t = \mathrm{sign}(w) (V + \alpha (|w| - V)) \text{ otherwise.}$$

    For $\alpha \le 0$ the result is kept within $[-V, V]$ also where the overshoot is
    larger than the box, and ``abs(weight) <= V`` holds without an ulp of slack after
    ``optax.apply_updates``. Stands last in the chain. The optimizer's momentum does not
    learn of the wall; :func:`volax.volumized` tells it.

    Args:
      volume: $V \ge 0$ (infinity means no wall): a number, an array that broadcasts to
        the leaves, a schedule, :func:`volax.relative_to_init`, or a pytree prefix of
        these, matched by key path, with ``None`` or infinity for what the mask leaves
        out. ``V = 0`` is weight decay by the factor ``alpha``.
      alpha: restitution of the wall in $[-1, 1]$, a number, array or schedule: 1 no
        wall, between 0 and 1 a soft wall, 0 clipping, -1 elastic reflection. The
        authors' classes ``Vadam2``, ``Vadamw``, ``VLaProp`` and ``VSGD`` have this
        sign; their ``Vadam`` has the opposite one (-1 no wall, 1 elastic).
      mask: the leaves to act on: ``"matrices"`` (two or more dimensions, and not called
        ``bias``, ``scale`` or ``offset``), ``"all"``, :func:`volax.path_matches`,
        :func:`volax.paired`, :func:`volax.unpaired`, or an Optax mask.

    Returns:
      A transformation for the end of an ``optax.chain``. NaN weights stay NaN; an
      infinite update stops at the wall for ``alpha <= 0``.

    Raises:
      ValueError: ``volume`` negative or NaN, ``alpha`` outside [-1, 1]; at ``init`` a
        wall for leaves that the mask leaves out; at ``update`` no ``params``, a leaf
        without a volume, a mask that selects nothing, a complex leaf.

    Example:
      >>> import jax.numpy as jnp, optax, volax
      >>> params = {"w": jnp.array([[0.25, 0.9]])}
      >>> tx = optax.chain(optax.sgd(0.5), volax.volumize(1.0))
      >>> updates, _ = tx.update({"w": -jnp.ones((1, 2))}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].tolist()
      [[0.75, 1.0]]

    References:
      Ziyin et al., `Volumization as a Natural Generalization of Weight Decay
      <https://arxiv.org/abs/2003.11243>`_, 2020. Theirs is one step of the optimizer
      followed by this map; ``volume`` per leaf and schedules are ours.
    """
    wall = make_wall("volumize", volume, alpha, mask)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        weights, targets, state = wall.targets(updates, state, params)
        return _post_step.deltas(updates, weights, targets), state

    return optax.GradientTransformationExtraArgs(wall.init, update)


class Wall(NamedTuple):
    """The state of a wall, and where it sends the weights at a step."""

    init: optax.TransformInitFn
    # (updates, state, params) -> (weights, targets, new state)
    targets: Callable[
        [optax.Updates, Tree, optax.Params | None],
        tuple[dict[str, _post_step.Weights], dict[str, _post_step.Target], Tree],
    ]


def make_wall(name: str, volume: Tree, alpha: Hyperparameter, mask: Selection) -> Wall:
    """Checks the arguments of :func:`volumize`; ``name`` stands in the errors."""
    volumes = jax.tree.leaves(volume)
    for value in volumes:
        if not isinstance(value, RelativeToInit):
            _hyperparams.check(name, "volume", value, finite=False, scalar=False)
    _hyperparams.check(name, "alpha", alpha, -1.0, 1.0)
    is_relative = any(isinstance(v, RelativeToInit) for v in volumes)
    numbers = [v.scale if isinstance(v, RelativeToInit) else v for v in volumes]
    is_stateful = is_relative or _hyperparams.is_scheduled(alpha, *numbers)

    def init(params: optax.Params) -> VolumizeState | optax.EmptyState:
        _refuse_idle_walls(name, volume, mask, params)
        if not is_stateful:
            return optax.EmptyState()
        initial = jax.tree.map(_largest, params) if is_relative else None
        return VolumizeState(jnp.zeros([], jnp.int32), initial)

    def make_targets(updates, state, params):
        weights = _post_step.tentative_weights(name, updates, params, mask)
        count = state.count if is_stateful else None
        initial = _paths.named_leaves(state.initial) if is_relative else {}
        spread = _paths.by_prefix(volume, params, f"{name}: volume")
        restitution = _hyperparams.at(alpha, count)
        targets = {}
        for path, leaf in weights.items():
            if path not in spread:
                raise ValueError(
                    f"{name}: volume has no entry for leaf {path!r}, only for "
                    f"{', '.join(spread)}; add one, or mask the leaf out"
                )
            value = _volume_at(spread[path], count, initial.get(path))
            targets[path] = _target(name, path, leaf, value, restitution)
        if is_stateful:
            state = state._replace(count=_hyperparams.next_count(state.count))
        return weights, targets, state

    return Wall(init, make_targets)


def _refuse_idle_walls(name: str, volume: Tree, mask: Selection, params: Tree) -> None:
    """Raises for walls in a tree of volumes that stand above no selected leaf."""
    leaves = _paths.named_leaves(params)
    if jax.tree_util.all_leaves([volume]) or not leaves:
        return
    walls = _paths.named_leaves(volume)
    keys = _paths.map_with_path(lambda path, _: _paths.key_path(path), volume)
    above = _paths.by_prefix(keys, params, f"{name}: volume")
    chosen = masks.selected(mask, params, name)
    used = {above[path] for path in above.keys() & chosen}
    # Leaves that are absent were left out by somebody else, such as optax.partition.
    left_out = {above[path] for path in above.keys() & leaves.keys()} - used
    idle = [key for key in walls if key in left_out and not _is_open(walls[key])]
    if idle:
        raise ValueError(
            f"{name}: volume has a wall for {', '.join(map(repr, idle[:3]))}"
            + (f" and {len(idle) - 3} more leaves" if len(idle) > 3 else "")
            + f", which the mask {mask!r} leaves out; choose a mask that takes them, "
            "such as mask='all', or give None or infinity there"
        )


def _is_open(volume: object) -> bool:
    """Whether a volume is known to be infinity, which is no wall."""
    if isinstance(volume, (RelativeToInit, Callable, Tracer)):
        return False
    return bool(np.all(np.isinf(np.asarray(volume, np.float64))))


def _largest(leaf: Leaf) -> jax.Array | jax.ShapeDtypeStruct:
    """``max|w_0|`` of one leaf, or its shape where only the leaf's shape is known."""

    def largest(x: jax.Array) -> jax.Array:
        return wide(jnp.max(jnp.abs(x), initial=0))

    if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact):
        return jnp.zeros([])  # to be masked out
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(largest, leaf)
    return largest(jnp.asarray(leaf))


def _volume_at(
    volume: Hyperparameter | RelativeToInit,
    count: jax.Array | None,
    initial: jax.Array | None,
) -> Limit:
    """The volume of one leaf at a step."""
    if isinstance(volume, RelativeToInit):
        assert initial is not None
        scale = jnp.asarray(_hyperparams.at(volume.scale, count), initial.dtype)
        return jnp.where(initial > 0, scale * initial, jnp.inf)
    return _hyperparams.at(volume, count)


def _target(
    name: str,
    path: str,
    leaf: _post_step.Weights,
    volume: Limit,
    alpha: float | jax.Array,
) -> _post_step.Target:
    p, w = leaf
    try:
        broadcast = np.broadcast_shapes(jnp.shape(volume), p.shape)
    except ValueError:
        broadcast = None
    if broadcast != p.shape:
        raise ValueError(
            f"{name}: volume of shape {jnp.shape(volume)} does not broadcast to leaf "
            f"{path!r} of shape {p.shape}"
        )
    limit = _numerics.floor_magnitude(volume, p.dtype)
    value = prox.wall(wide(w), limit, alpha)
    if isinstance(alpha, (int, float)):
        return _post_step.Target(value, limit if alpha <= 0 else None)
    return _post_step.Target(value, jnp.where(alpha <= 0, limit, jnp.inf))
