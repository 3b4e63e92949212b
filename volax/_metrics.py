"""What a training loop logs of its weights, inside the compiled step: ``metrics``."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from volax import _modules, _nnx, _paths, masks
from volax._numerics import inside, wide
from volax._types import Leaf, Selection, Tree
from volax.compress._fitted import is_composed
from volax.compress._kinds import PARAMETER, kinds
from volax.compress.packing import is_packed
from volax.compress.quantize import walls_of
from volax.pairs import _cost, _cuts, _judge, _score, records
from volax.pairs._path_norm import path_norms
from volax.pairs.records import Written
from volax.transforms import _units
from volax.transforms.keep_units import KeepUnitsState
from volax.transforms.tune_strength import TuneStrengthState

Metrics = dict[str, jax.Array]


def metrics(
    params: Tree,
    groups: Written | Iterable[Written] | None = None,
    opt_state: Tree = None,
    *,
    volume: Tree = None,
    mask: Selection = "matrices",
) -> Metrics:
    r"""Counts what a regularizer has done so far, as scalars for a user's own log.

    The numbers are those of :func:`volax.report`, which reads weights on the host; here
    they are computed where the weights are, so that the call may stand inside ``jit``
    and ``scan``. On a mesh the devices exchange numbers and vectors with an entry a
    unit, never weights.

    Which keys are there depends on the arguments alone, not on the weights:

    - always: ``zeros`` (weights that are exactly zero) and ``zero_share`` (the same as
      a share of all weights), ``norm`` (Euclidean, of all weights), ``largest`` (the
      largest size of a weight);
    - with ``volume``: ``at_wall`` (weights from four ulps below V on) and
      ``wall_share`` (the same as a share of the weights that have a wall);
    - with ``groups``: ``units`` (all of them; where a group's units are made of those
      of another, as heads of channels, the parts alone), ``alive`` (those that
      :func:`volax.compact` would not remove) and ``alive_share``, ``path_norm`` (its
      sum over the units, see :func:`volax.path_norm`), ``multiply_adds_share`` and
      ``bytes_share`` (of the whole model what compacting would leave);
    - where ``opt_state`` holds :func:`volax.tune_strength`: ``strength`` (as found so
      far) and ``removed_share`` (before its last update);
    - where it holds :func:`volax.keep_units`: ``kept_share`` (the part of the units
      that its last selection keeps).

    Where the state holds several such transformations (under ``optax.partition``) their
    keys end in ``/0``, ``/1`` and so on, in the order of the state.

    Args:
      params: a tree of parameters, Linen variables, an NNX or Equinox module, or the
        state of one. Statistics and random keys are left out. Leaves that a mask has
        taken out may be absent; of groups that are absent as a whole nothing is said.
      groups: from ``find_groups``, ``find_pairs`` or :func:`volax.pair`.
      opt_state: the optimizer's state, or an ``nnx.Optimizer``.
      volume: the wall V of :func:`volax.volumize`, as in :func:`volax.report`; the
        numbers may be traced.
      mask: the leaves behind the wall, as in :func:`volax.volumize`.

    Returns:
      A flat dictionary of arrays of shape ``()``: counts are int32 (float32 in a tree
      of 2^31 weights or more), everything else float32.

    Raises:
      ValueError: a group or an entry of ``volume`` does not fit the tree, a group is
        masked out by half, none of the groups can be cut, or a leaf is packed.

    Example:
      >>> import jax, jax.numpy as jnp, volax
      >>> params = {"w1": jnp.eye(3), "w2": jnp.array([[1.0], [0.0], [2.0]])}
      >>> pair = volax.pair("w1", "w2")
      >>> found = jax.jit(lambda p: volax.metrics(p, pair, volume=1.0))(params)
      >>> int(found["alive"]), int(found["zeros"]), float(found["path_norm"])
      (2, 7, 3.0)
    """
    tree, _ = _modules.split(params)
    for path, node in _paths.flatten_with_path(tree, is_packed):
        if is_packed(node):
            raise ValueError(
                f"metrics: {_paths.key_path(path)!r} is packed, and metrics are of "
                "weights in training; volax.report takes packed ones"
            )
    kind = kinds(tree)
    weights = {
        path: jnp.asarray(leaf)
        for path, leaf in _paths.named_leaves(tree).items()
        if kind[path] == PARAMETER
    }
    found = _of_weights(weights)
    if volume is not None:
        behind = masks.selected(mask, tree, "metrics") & weights.keys()
        walls = walls_of(volume, tree, "metrics", behind, finite=False)
        found |= _of_walls(weights, walls)
    if groups is not None:
        found |= _of_units(groups, tree, weights, _nnx.owners(params))
    return found | _of_state(opt_state)


def _count_dtype(weights: dict[str, jax.Array]) -> type:
    total = sum(leaf.size for leaf in weights.values())
    return jnp.int32 if total < 2**31 else jnp.float32


def _counted(which: jax.Array, dtype: type) -> jax.Array:
    """How many entries are true, shape ``()``; by rows first, so that int32 holds."""
    rows = jnp.sum(which, axis=-1, dtype=jnp.int32) if which.ndim else which
    return jnp.sum(rows, dtype=dtype)


def _total(parts: Iterable[jax.Array], dtype: type = jnp.float32) -> jax.Array:
    return sum(parts, jnp.zeros([], dtype))


def _share(count: jax.Array, total: Leaf) -> jax.Array:
    """A part of a total, 0 of nothing, float32 of shape ``()``."""
    total = jnp.asarray(total, jnp.float32)
    return count.astype(jnp.float32) / jnp.where(total > 0, total, 1)


def _of_weights(weights: dict[str, jax.Array]) -> Metrics:
    dtype = _count_dtype(weights)
    leaves = [*weights.values()]
    zeros = _total((_counted(x == 0, dtype) for x in leaves), dtype)
    squares = _total(jnp.sum(jnp.square(jnp.abs(wide(x)))) for x in leaves)
    most = [jnp.max(jnp.abs(x), initial=0).astype(jnp.float32) for x in leaves]
    return {
        "zeros": zeros,
        "zero_share": _share(zeros, sum(x.size for x in leaves)),
        "norm": jnp.sqrt(squares).astype(jnp.float32),
        "largest": jnp.max(jnp.stack([jnp.zeros([], jnp.float32), *most])),
    }


def _of_walls(weights: dict[str, jax.Array], walls: dict[str, Leaf]) -> Metrics:
    dtype = _count_dtype(weights)
    at_wall, bounded = _total((), dtype), _total((), dtype)
    for path, wall in walls.items():
        leaf = weights[path]
        wall = jnp.asarray(wall, wide(leaf).dtype)
        has_wall = jnp.broadcast_to(jnp.isfinite(wall), leaf.shape)
        reached = jnp.abs(wide(leaf)) >= inside(wall, leaf.dtype)
        at_wall += _counted(reached & has_wall, dtype)
        bounded += _counted(has_wall, dtype)
    return {"at_wall": at_wall, "wall_share": _share(at_wall, bounded)}


def _of_units(
    given: Written | Iterable[Written],
    tree: Tree,
    weights: dict[str, jax.Array],
    owners: dict[str, str],
) -> Metrics:
    written = records.listed(given, "metrics")
    fitted, _ = _units.numbered(
        "metrics",
        written,
        tree,
        kind="group",
        side=lambda g: (
            *_score.trained(g),
            *(m for m in g.states if m.path in weights),
        ),
    )
    shapes = {path: leaf.shape for path, leaf in weights.items()}
    known = _cuts.cuttable("metrics", fitted, shapes, owners)
    groups = [*fitted.values()]
    dead = dict(zip(fitted, _judge.dead_units(groups, weights)))
    # The units of a group that cannot be cut stay, whatever their weights say.
    alive = {k: ~dead[k] if k in known else ~dead[k] | True for k in fitted}
    summed = [k for k, g in fitted.items() if not is_composed(g, groups, shapes)]
    units = sum(fitted[k].size for k in summed)
    count = _total((_counted(alive[k], jnp.int32) for k in summed), jnp.int32)
    norms = _total(jnp.sum(path_norms(fitted[k], weights)) for k in summed)
    left = [_cost.units_left(a) for a in alive.values()]
    shares = {
        f"{measure}_share": _cost.of_some(given, fitted, weights, measure).share(left)
        for measure in _cost.MEASURES
    }
    return {
        "units": jnp.asarray(units, jnp.int32),
        "alive": count,
        "alive_share": _share(count, units),
        "path_norm": norms.astype(jnp.float32),
    } | {name: share.astype(jnp.float32) for name, share in shares.items()}


def _of_state(opt_state: Tree) -> Metrics:
    def states(kind: type) -> list[Tree]:
        nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
        return [node for node in nodes if isinstance(node, kind)]

    def scalars(of: str, values: list[Tree]) -> Metrics:
        # An NNX optimizer holds each array in a variable.
        arrays = [jax.tree.leaves(value)[0] for value in values]
        if len(arrays) == 1:
            return {of: arrays[0]}
        return {f"{of}/{k}": array for k, array in enumerate(arrays)}

    def kept(state: KeepUnitsState) -> jax.Array:
        alive = jax.tree.leaves(state.alive)
        count = _total((_counted(a, jnp.int32) for a in alive), jnp.int32)
        return _share(count, sum(a.size for a in alive))

    tuned = states(TuneStrengthState)
    return (
        scalars("strength", [state.strength for state in tuned])
        | scalars("removed_share", [state.share for state in tuned])
        | scalars("kept_share", [kept(state) for state in states(KeepUnitsState)])
    )
