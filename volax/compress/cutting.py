"""Takes the removed units out of arrays: parameters, statistics, optimizer state."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from volax import masks
from volax.compress import units
from volax.pairs.records import Group

# For each path and axis the entries that go, bool, broadcasting against the array.
Cuts = Mapping[str, Mapping[int, np.ndarray]]


def cuts(
    groups: Sequence[Group],
    stay: Sequence[np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> Cuts:
    """What goes from each parameter.

    Args:
      groups: fitted groups.
      stay: for each group the units that stay.
      shapes: of the parameters.

    Returns:
      The cuts; parameters that stay as they are have none.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    for group, staying in zip(groups, stay):
        if staying.all():
            continue
        for member in group.carriers:
            shape = shapes[member.path]
            axis = units.cut_axis(member, group.sizes)
            gone = units.positions(member, ~staying, shape)
            axes = found.setdefault(member.path, {})
            axes[axis] = axes[axis] | gone if axis in axes else gone
    return found


def cut(leaf: Any, axes: Mapping[int, np.ndarray]) -> Any:
    """An array without the entries that go, of the same kind."""
    whole = np.asarray(leaf)
    left = dict(axes)
    while left:
        axis, gone = left.popitem()
        whole, before = _without(whole, gone, axis), whole.shape
        left = {
            other: mask
            if mask.shape[axis] == 1
            else _without(np.broadcast_to(mask, before), gone, axis)
            for other, mask in left.items()
        }
    return whole if isinstance(leaf, np.ndarray) else jnp.asarray(whole)


def _without(x: np.ndarray, gone: np.ndarray, axis: int) -> np.ndarray:
    """Drops entries along one axis; which ones may differ along the other axes."""
    if gone.size == gone.shape[axis]:
        return np.compress(~gone.reshape(-1), x, axis=axis)
    stay = ~np.moveaxis(np.broadcast_to(gone, x.shape), axis, -1)
    moved = np.moveaxis(x, axis, -1)
    lead, counts = moved.shape[:-1], stay.sum(axis=-1)
    return np.moveaxis(moved[stay].reshape(*lead, counts.flat[0]), -1, axis)


def replaced(tree: Any, new: Mapping[str, Any]) -> Any:
    """A tree with other leaves at some key paths."""
    return masks.map_with_path(
        lambda path, leaf: new.get(masks.key_path(path), leaf), tree
    )


def cut_state(
    opt_state: Any, plans: Cuts, shapes: Mapping[str, tuple[int, ...]]
) -> Any:
    """The state of an optimizer, fitting the smaller parameters.

    Args:
      opt_state: the state; moments are known by the key path of their parameter at
        the end of their own.
      plans: what goes from each parameter.
      shapes: the parameters' shapes before the cut.

    Returns:
      The state with every array of a parameter's shape cut like the parameter.

    Raises:
      ValueError: an array belongs to a cut parameter and has another shape.
    """
    matched = set()

    def small(path: tuple[Any, ...], leaf: Any) -> Any:
        names = (masks.key_path(path[place:]) for place in range(len(path)))
        name = next((name for name in names if name in shapes), None)
        if jnp.size(leaf) > 1:
            matched.add(name)
        if name is None or name not in plans or jnp.size(leaf) <= 1:
            return leaf
        if jnp.shape(leaf) != shapes[name]:
            raise ValueError(
                f"compact: opt_state: {masks.key_path(path)!r} belongs to {name!r} of "
                f"shape {shapes[name]} but has shape {jnp.shape(leaf)}, so it is not "
                "known how to cut it; leave opt_state out and call tx.init on the "
                "smaller parameters"
            )
        return cut(leaf, plans[name])

    cut_down = masks.map_with_path(small, opt_state)
    if plans and matched == {None}:
        raise ValueError(
            "compact: opt_state holds arrays, but none at the key path of a parameter, "
            "so it is not known how to cut it; leave opt_state out and call tx.init on "
            "the smaller parameters"
        )
    return cut_down
