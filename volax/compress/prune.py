"""Chooses units of a trained model to remove: ``score`` and ``kill``."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from volax import _modules, _nnx, _paths
from volax._types import Leaf, Tree
from volax.compress._cut import replaced
from volax.pairs import _cost, _cuts, _layout, _score, _select, records
from volax.pairs.records import Group, Written

_HOW = ("magnitude", "taylor")


def score(
    params: Tree,
    groups: Written | Iterable[Written],
    how: str = "magnitude",
    *,
    grads: Tree = None,
) -> tuple[jax.Array, ...]:
    r"""How much each unit of a trained model matters.

    Args:
      params: a tree of parameters, Linen variables, or an NNX or Equinox module.
      groups: from ``find_groups``, ``find_pairs`` or :func:`volax.pair`.
      how: ``"magnitude"`` is the norm of a unit's incoming times that of its outgoing
        weights; of a group that is no pair, what stands between (the kernel before a
        batch norm, a gate) counts as incoming. ``"taylor"`` is $\lvert\sum g w\rvert$
        over the unit's weights, the change of the loss to first order.
      grads: for ``"taylor"`` the gradients of the loss, of the structure of ``params``.

    Returns:
      For each group an array of its ``sizes``, float32 or wider. Scores of different
      groups are not comparable as they are.

    Raises:
      ValueError: an unknown ``how``, ``"taylor"`` without ``grads``, or a group that
        does not fit the tree.

    Example:
      >>> import jax.numpy as jnp, volax
      >>> params = {"a": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "v": jnp.ones((2, 1))}
      >>> score(params, volax.pair("a", "v"))[0].tolist()
      [5.0, 1.0]

    References:
      Molchanov et al., `Importance estimation for neural network pruning
      <https://arxiv.org/abs/1906.10771>`_, 2019, with the sum inside the absolute
      value.
    """
    leaves = _paths.named_leaves(_modules.split(params)[0])
    return _scores("score", _fitted("score", groups, leaves), leaves, how, grads)


def kill(
    params: Tree,
    groups: Written | Iterable[Written],
    ratio: float = 0.5,
    *,
    scope: str = "layer",
    how: str = "magnitude",
    grads: Tree = None,
    round_to: int = 1,
    floor: int = 1,
) -> Tree:
    """Zeroes the units of a trained model that matter least.

    All weights of these units become zero, so that :func:`volax.compact` removes them.
    Fine-tuning recovers most of what is lost; more is won where the units go during the
    training, see :func:`volax.keep_units`.

    Args:
      params: a tree of parameters, Linen variables, or an NNX or Equinox module; it is
        left alone.
      groups: from ``find_groups``, ``find_pairs`` or :func:`volax.pair`. Those that
        ``compact`` cannot cut keep all units.
      ratio: in [0, 1), what goes. With ``scope="layer"`` of the units of each group,
        rounded down; with ``"global"`` of the multiply-adds of the whole model, rounded
        up.
      scope: ``"layer"`` compares units within their group. ``"global"`` takes units
        of all groups, as in :func:`volax.keep_units`.
      how: as in :func:`score`.
      grads: as in :func:`score`.
      round_to: as many units stay as a multiple of this, or all.
      floor: at least so many units stay in each row of a group.

    Returns:
      What was given, with zeros.

    Raises:
      ValueError: an argument out of range, no groups, a group that does not fit the
        tree, none that can be cut, or a ratio of the multiply-adds that ``floor`` and
        ``round_to`` do not reach.

    Example:
      >>> import jax.numpy as jnp, volax
      >>> params = {"a": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "v": jnp.ones((2, 1))}
      >>> pair = volax.pair("a", "v")
      >>> small = volax.compact(kill(params, pair), pair)
      >>> small.params["a"].tolist(), small.params["v"].tolist()
      ([[3.0], [4.0]], [[1.0]])

    References:
      Fang et al., `DepGraph <https://arxiv.org/abs/2301.12900>`_, 2023, normalise
      scores by the group's mean; the rule of ``"global"`` is ours.
    """
    if not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(f"kill: ratio must be a number in [0, 1), got {ratio!r}")
    if scope not in ("layer", "global"):
        raise ValueError(f"kill: scope must be 'layer' or 'global', got {scope!r}")
    for argument, number in (("round_to", round_to), ("floor", floor)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(
                f"kill: {argument} must be an integer of at least 1, got {number!r}"
            )
    tree, merge = _modules.split(params)
    leaves = _paths.named_leaves(tree)
    fitted = _fitted("kill", groups, leaves)
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}
    owners = _nnx.owners(params)
    found = _cuts.cuttable("kill", dict(enumerate(fitted)), shapes, owners)
    scores = _scores("kill", [*found.values()], leaves, how, grads)
    alive = [jnp.ones(g.sizes, bool) for g in found.values()]
    if scope == "layer":
        rows = [g.sizes[-1] for g in found.values()]
        left = [_select.count(1 - ratio, n, floor, round_to) for n in rows]
    else:
        cost = _cost.of_some(groups, found, leaves)
        _select.check_reachable(
            f"kill: ratio={ratio}", 1 - ratio, cost, floor, round_to
        )
        left = _select.counts_within(1 - ratio, scores, alive, cost, floor, round_to)
    new = {}
    for group, *each in zip(found.values(), scores, left, alive):
        stays = _select.largest(*each)
        for m in _score.trained(group):
            leaf = jnp.asarray(new.get(m.path, leaves[m.path]))
            new[m.path] = _layout.zero(m, group.sizes, leaf, stays)
    for path, leaf in new.items():
        if isinstance(leaves[path], np.ndarray):
            new[path] = np.asarray(leaf)
    return merge(replaced(tree, new))


def _fitted(
    what: str, groups: Written | Iterable[Written], leaves: dict[str, Leaf]
) -> list[Group]:
    """The groups with every size filled in; statistics may lie elsewhere."""
    bare = (dataclasses.replace(g, states=()) for g in records.listed(groups, what))
    return [g.fit(leaves, f"{what}: group") for g in bare]


def _scores(
    what: str,
    groups: Iterable[Group],
    leaves: dict[str, Leaf],
    how: str,
    grads: Tree,
) -> tuple[jax.Array, ...]:
    """The score of each unit of each group."""
    if how not in _HOW:
        listed = " or ".join(map(repr, _HOW))
        raise ValueError(f"{what}: how must be {listed}, got {how!r}")
    if how == "magnitude":
        return tuple(_score.path_norms(g, leaves) for g in groups)
    if grads is None:
        raise ValueError(f"{what}: how='taylor' needs grads, the gradients of the loss")
    named = _paths.named_leaves(_modules.split(grads)[0])
    for path in {m.path for g in groups for m in _score.trained(g)}:
        wanted = np.shape(leaves[path])
        got = np.shape(named[path]) if path in named else None
        if got != wanted:
            raise ValueError(
                f"{what}: grads must hold a gradient of shape {wanted} at {path!r}, "
                f"got {got}"
            )
    return tuple(_score.taylor(g, leaves, named) for g in groups)
