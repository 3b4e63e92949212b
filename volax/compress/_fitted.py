"""The groups of an argument, completed by the sizes of a tree, and their names."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np

from volax._types import Leaf
from volax.compress import _refit
from volax.pairs import _layout
from volax.pairs.records import Group, Written


def names_of(groups: Sequence[Group]) -> tuple[str, ...]:
    """A name for each group; the units of heads and of their channels tell them apart.

    Args:
      groups: fitted groups.

    Returns:
      Producers and consumers; where other groups have the same, the units too, and
      where these agree as well, a number.
    """
    names = [group.name for group in groups]
    shared = {name for name, count in Counter(names).items() if count > 1}
    for k, group in enumerate(groups):
        if names[k] in shared:
            names[k] += f" (units {' x '.join(map(str, group.sizes))})"
    alike, seen = Counter(names), Counter()
    for k, name in enumerate(names):
        if alike[name] > 1:
            seen[name] += 1
            names[k] = f"{name} number {seen[name]}"
    return tuple(names)


def fitted(
    groups: Written | Iterable[Written],
    leaves: Mapping[str, Leaf],
    what: str,
    apart: Set[str] = frozenset(),
) -> tuple[Group, ...]:
    """The groups of an argument, completed by the sizes of a tree.

    Args:
      groups: one group, or an iterable of them.
      leaves: arrays by key path; the running statistics too.
      what: who asks, for errors.
      apart: key paths of statistics that lie in trees of their own, beside that of the
        parameters.

    Returns:
      The groups, each once.

    Raises:
      ValueError: something else than groups, a group that does not fit the tree, or
        one weight in two groups.
    """
    listed = (groups,) if isinstance(groups, Written) else groups
    if not isinstance(listed, Iterable):
        raise ValueError(
            f"{what}: groups: expected records of volax.find_groups or volax.pair, "
            f"got {type(groups).__name__}"
        )
    found = []
    for group in dict.fromkeys(listed):
        if not isinstance(group, Written):
            raise ValueError(
                f"{what}: groups must hold records of volax.find_groups or volax.pair, "
                f"got {type(group).__name__}"
            )
        found.append(group.fit(leaves, f"{what}: group", leaves))
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}
    _refit.check_apart(found, shapes, what)
    for group in found:
        _check_complete(
            group, leaves, {m.path for g in found for m in g.carriers}, what, apart
        )
    return tuple(found)


def is_composed(
    group: Group, groups: Sequence[Group], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether the units of another group are parts of this one's in a producer.

    Heads ``[heads]`` and channels ``[heads, size]`` of one kernel are such groups: each
    channel's entries of the kernel are entries of one head.
    """
    for part in groups:
        for member in part.producers if part.size > group.size else ():
            shape = shapes[member.path]
            carrying = sorted(a.axis for a in member.axes)
            # The unit of this group at each entry of the part's axes, -1 for none.
            unit_of = np.full([shape[a] for a in carrying], -1)
            for whole in group.producers:
                axes = {a.axis for a in whole.axes}
                if whole.path != member.path or not axes <= set(carrying):
                    continue
                own = np.full(math.prod(shape[a] for a in axes), -1)
                own[_layout.unit_indices(whole, group.sizes, shape)[0]] = np.arange(
                    group.size
                )[:, None]
                own = own.reshape([shape[a] if a in axes else 1 for a in carrying])
                unit_of = np.maximum(unit_of, own)
            units = unit_of.reshape(-1)[
                _layout.unit_indices(member, part.sizes, shape)[0]
            ]
            if (units >= 0).all() and (units == units[:, :1]).all():
                return True
    return False


def _modules(leaves: Iterable[str], apart: Set[str]) -> dict[str, str]:
    """The module of each array: all steps of its key path but the last.

    Statistics that lie apart have more steps in front (a collection's name); theirs
    is the longest end of these steps that is the module of a parameter.
    """
    above = {path: path.split("/")[:-1] for path in leaves}
    known = {tuple(steps) for path, steps in above.items() if path not in apart}
    found = {}
    for path, steps in above.items():
        ends = (steps[k:] for k in range(len(steps)) if path in apart)
        found[path] = "/".join(next((e for e in ends if tuple(e) in known), steps))
    return found


def _check_complete(
    group: Group,
    leaves: Mapping[str, Leaf],
    listed: set[str],
    what: str,
    apart: Set[str],
) -> None:
    """Refuses a hand-written group that forgets a vector beside what it lists."""
    if group.keeps_zero is not None:
        return
    inside = _modules(leaves, apart)
    for member in group.carriers:
        parent = inside[member.path]
        if member in group.consumers or not parent:
            continue
        beside = [path for path, module in inside.items() if module == parent]
        for path in beside:
            shape = np.shape(leaves[path])
            if path not in listed and shape == group.sizes:
                raise ValueError(
                    f"{what}: {group.name}: {path!r} of shape {shape} stands beside "
                    f"{member.path!r} and seems to carry the units too; add it to the "
                    "group, as bias=..., scale=... or in states"
                )
