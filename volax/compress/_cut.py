"""Takes the removed units out of arrays: parameters, statistics, optimizer state."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from volax import _paths
from volax._sharding import put_like
from volax._types import KeyPath, Leaf, Tree
from volax.compress import _refit
from volax.pairs import _cuts, _layout
from volax.pairs.records import Group, Member


@dataclasses.dataclass(frozen=True)
class Gather:
    """What stays of some axes of an array, in its new order.

    Attributes:
      axes: numbers of the axes, ascending.
      index: where each entry of the new axes comes from: its flat index over the old
        ones, int of the new axes' shape.
    """

    axes: tuple[int, ...]
    index: np.ndarray


Cuts = Mapping[str, Sequence[Gather]]


@dataclasses.dataclass(frozen=True)
class Cutting:
    """What is cut, and what fits the smaller arrays.

    Attributes:
      cuts: for each parameter that becomes smaller what stays of it, step by step.
      shapes: of all parameters afterwards.
      groups: the groups as they fit the smaller parameters.
      left: for each group the numbers that its units had before, int of its ``sizes``.
    """

    cuts: Cuts
    shapes: dict[str, tuple[int, ...]]
    groups: tuple[Group, ...]
    left: tuple[np.ndarray, ...]


def cutting(
    groups: Sequence[Group],
    stay: Sequence[np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> Cutting:
    """What stays of each parameter, one group after another.

    Args:
      groups: fitted groups.
      stay: for each group the units that stay, the same count in every row.
      shapes: of the parameters.

    Returns:
      The cuts, and the groups that fit the smaller parameters.

    Raises:
      ValueError: two groups overlap.
    """
    groups, sizes = list(groups), dict(shapes)
    left = [np.arange(g.size).reshape(g.sizes) for g in groups]
    found: dict[str, list[Gather]] = defaultdict(list)
    for k in range(len(groups)):
        group = groups[k]
        staying = stay[k].reshape(-1)[left[k]]
        if staying.all():
            continue
        count = int(staying.sum(axis=-1).reshape(-1)[0])
        gone = _refit.drops(group, count, sizes)
        after = [_refit.refitted(g, group, gone) for g in groups]
        steps = _gathers(group, staying, gone, sizes)
        for j, other in enumerate(groups):
            if after[j].sizes != other.sizes:
                old = _came_from(other, after[j], steps, sizes)
                left[j] = left[j].reshape(-1)[old].reshape(after[j].sizes)
        for path, gathers in steps.items():
            found[path] += gathers
            sizes[path] = _shape_after(sizes[path], gathers)
        groups = after
    return Cutting(found, sizes, tuple(groups), tuple(left))


def _gathers(
    group: Group,
    staying: np.ndarray,
    gone: _refit.Drops,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, list[Gather]]:
    """What stays of each parameter of a group, bool of the group's ``sizes``."""
    count = int(staying.sum(axis=-1).reshape(-1)[0])
    numbers = np.arange(group.size).reshape(group.sizes)
    # The k-th unit that stays in a row takes the place of the row's unit number k.
    order = np.argsort(~staying, axis=-1, kind="stable")[..., :count]
    source = np.take_along_axis(numbers, order, -1).reshape(-1)
    target = numbers[..., :count].reshape(-1)
    alike: dict[tuple[str, int, tuple[int, ...]], list[Member]] = defaultdict(list)
    for member in group.carriers:
        axis = _cuts.cut_axis(member, group.sizes).axis
        alike[member.path, axis, _carrying(member)].append(member)
    found: dict[str, list[Gather]] = defaultdict(list)
    for (path, axis, carrying), members in alike.items():
        lengths = [shapes[path][a] for a in carrying]
        index = np.arange(math.prod(lengths))
        for member in members:
            where, _ = _layout.unit_indices(member, group.sizes, shapes[path])
            index[where[target]] = where[source]
        index = np.compress(
            ~gone[path][axis], index.reshape(lengths), axis=carrying.index(axis)
        )
        found[path].append(Gather(carrying, index))
    return found


def _carrying(member: Member) -> tuple[int, ...]:
    return tuple(sorted(a.axis for a in member.axes))


def _came_from(
    before: Group,
    after: Group,
    steps: Mapping[str, Sequence[Gather]],
    shapes: Mapping[str, tuple[int, ...]],
) -> np.ndarray:
    """The old number of each unit of a group that lost some, int ``[units]``."""
    old = next(
        m for m in before.carriers if m.path in steps and _cuts.carries_all(m, before)
    )
    shape, own = shapes[old.path], _carrying(old)
    wide = sorted({*own, *(a for s in steps[old.path] for a in s.axes)})
    ids = np.arange(math.prod(shape[a] for a in wide)).reshape([shape[a] for a in wide])
    for step in steps[old.path]:
        ids = _gathered(ids, tuple(wide.index(a) for a in step.axes), step.index)
    # Other axes than the units' own tell nothing: their first entry stands for all.
    ids = ids[tuple(slice(None) if a in own else 0 for a in wide)].reshape(-1)
    places = np.unravel_index(ids, [shape[a] for a in wide])
    mine = [places[wide.index(a)] for a in own]
    flat = np.ravel_multi_index(mine, [shape[a] for a in own])
    unit_of = np.zeros(math.prod(shape[a] for a in own), int)

    def alike(group: Group, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Places of the units in the same axes, ``[units, positions]`` each."""
        return [
            _layout.unit_indices(m, group.sizes, shape)[0]
            for m in group.carriers
            if m.path == old.path and _carrying(m) == own
        ]

    for where in alike(before, shape):
        unit_of[where] = np.arange(before.size)[:, None]
    where, *_ = alike(after, _shape_after(shape, steps[old.path]))
    return unit_of[flat[where[:, 0]]]


def _shape_after(shape: tuple[int, ...], gathers: Sequence[Gather]) -> tuple[int, ...]:
    after = list(shape)
    for gather in gathers:
        for axis, length in zip(gather.axes, gather.index.shape):
            after[axis] = length
    return tuple(after)


def cut(leaf: Leaf, gathers: Sequence[Gather]) -> Leaf:
    """An array of what stays, of the same kind."""
    whole = np.asarray(leaf)
    for gather in gathers:
        whole = _gathered(whole, gather.axes, gather.index)
    return whole if isinstance(leaf, np.ndarray) else put_like(whole, leaf)


def _gathered(x: np.ndarray, axes: tuple[int, ...], index: np.ndarray) -> np.ndarray:
    """Takes entries by their flat index over some axes."""
    if len(axes) == 1:
        return np.take(x, index, axis=axes[0])
    front = tuple(range(len(axes)))
    moved = np.moveaxis(x, axes, front)
    flat = moved.reshape(-1, *moved.shape[len(axes) :])
    return np.moveaxis(flat[index], front, axes)


def replaced(tree: Tree, new: Mapping[str, Leaf]) -> Tree:
    """A tree with other leaves at some key paths."""
    return _paths.map_with_path(
        lambda path, leaf: new.get(_paths.key_path(path), leaf), tree
    )


def cut_state(
    opt_state: Tree, plans: Cuts, shapes: Mapping[str, tuple[int, ...]]
) -> Tree:
    """The state of an optimizer, fitting the smaller parameters.

    Args:
      opt_state: the state; moments lie in trees of the parameters' key paths.
      plans: what stays of each parameter.
      shapes: the parameters' shapes before the cut.

    Returns:
      The state with every array of a parameter's shape cut like the parameter.

    Raises:
      ValueError: an array belongs to a cut parameter and has another shape, or may
        belong to several.
    """
    names = _owners(opt_state, shapes)
    matched = set()

    def small(path: KeyPath, leaf: Leaf) -> Leaf:
        if jnp.size(leaf) <= 1:
            return leaf
        found = names[path]
        fitting = [name for name in found if shapes[name] == jnp.shape(leaf)] or found
        matched.update(fitting or [None])
        if not any(name in plans for name in fitting):
            return leaf
        if len(fitting) > 1:
            raise ValueError(
                f"compact: opt_state: {_paths.key_path(path)!r} may belong to "
                f"{' or '.join(map(repr, fitting))}, so it is not known how to cut it; "
                "leave opt_state out and call tx.init on the smaller parameters"
            )
        (name,) = fitting
        if jnp.shape(leaf) != shapes[name]:
            raise ValueError(
                f"compact: opt_state: {_paths.key_path(path)!r} belongs to {name!r} of "
                f"shape {shapes[name]} but has shape {jnp.shape(leaf)}, so it is not "
                "known how to cut it; leave opt_state out and call tx.init on the "
                "smaller parameters"
            )
        return cut(leaf, plans[name])

    cut_down = _paths.map_with_path(small, opt_state)
    if plans and matched == {None}:
        raise ValueError(
            "compact: opt_state holds arrays, but none at the key path of a parameter, "
            "so it is not known how to cut it; leave opt_state out and call tx.init on "
            "the smaller parameters"
        )
    return cut_down


def _owners(
    opt_state: Tree, shapes: Mapping[str, tuple[int, ...]]
) -> dict[KeyPath, list[str]]:
    """The parameters that each leaf of an optimizer's state may belong to.

    A moment lies in a tree of parameters: below the step to that tree, all key paths
    are those of parameters. The first such tree counts. ``mu/l1/kernel`` in the state
    of a model with a submodule ``mu`` is the moment of ``l1/kernel``, since beside it
    lies ``mu/mu/l1/kernel``, which is no parameter. Where no tree is of this kind, any
    parameter at the end of the path may be meant.
    """
    paths = [path for path, _ in _paths.flatten_with_path(opt_state)]
    foreign = {
        path[:place]
        for path in paths
        for place in range(len(path))
        if _paths.key_path(path[place:]) not in shapes
    }
    found = {}
    for path in paths:
        below = {path[:k]: _paths.key_path(path[k:]) for k in range(len(path))}
        proven = [name for above, name in below.items() if above not in foreign]
        found[path] = proven[:1] or [name for name in below.values() if name in shapes]
    return found
