"""Records of units beside the parameters that an update gets."""

import dataclasses
from collections.abc import Callable, Iterable

from volax import _paths
from volax._types import Leaf, Tree
from volax.pairs import _judge
from volax.pairs.records import Group, Member, Written, cannot_cut

Side = Callable[[Written], Iterable[Member]]


def present(
    name: str,
    written: Iterable[Written],
    params: Tree,
    *,
    kind: str = "pair",
    side: Side = lambda record: record.members,
) -> tuple[tuple[Group, ...], dict[str, Leaf]]:
    """The records that are in a tree, fitted to it.

    ``optax.masked`` and ``optax.partition`` take leaves out of the tree. A record of
    which all are out is left out as well.

    Args:
      name: the transformation, for errors.
      written: pairs or groups.
      params: the parameters, of which some may be absent.
      kind: how errors call a record.
      side: the members that the transformation reads or changes.

    Returns:
      The records with those of their members that may be read, and the leaves of the
      tree by key path.

    Raises:
      ValueError: a record does not fit the tree, or is masked out by half.
    """
    found, leaves = numbered(name, written, params, kind=kind, side=side)
    return tuple(found.values()), leaves


def numbered(
    name: str,
    written: Iterable[Written],
    params: Tree,
    *,
    kind: str = "pair",
    side: Side = lambda record: record.members,
) -> tuple[dict[int, Group], dict[str, Leaf]]:
    """The same with the number that each record has among those given."""
    leaves = _paths.named_leaves(params, absent=True)
    absent = [path for path, leaf in leaves.items() if _paths.is_absent(leaf)]
    groups = {}
    for k, group in enumerate(written):
        touched = set(side(group))
        paths = list(dict.fromkeys(m.path for m in side(group)))
        gone = [path for path in paths if any(_paths.is_above(a, path) for a in absent)]
        if len(gone) == len(paths):
            continue
        if gone:
            kept = [path for path in paths if path not in gone]
            raise ValueError(
                f"{name}: the {kind} {group.name} is masked out by half: "
                f"{', '.join(gone)} masked, {', '.join(kept)} not"
            )
        # What it leaves alone, statistics above all, may lie in other trees. Whether
        # zero stays zero depends on these statistics.
        rest = {
            "fixed": tuple(m for m in group.fixed if m in touched),
            "states": tuple(m for m in group.states if m in touched),
            "keeps_zero": _judge.keeps_zero(group),
        }
        bare = dataclasses.replace(group, **rest)
        groups[k] = bare.fit(leaves, f"{name}: {kind}")
    return groups, leaves


def separable(name: str, written: tuple[Written, ...]) -> tuple[Written, ...]:
    """The groups whose units have entries of their own, to shrink one by one.

    Args:
      name: the transformation, for errors.
      written: the groups.

    Returns:
      Those in whose carriers every unit has entries of its own, and which carry
      nothing that is no parameter.

    Raises:
      ValueError: none is left; the message has the reasons.
    """
    reasons = {g.name: _why_whole(g) for g in written}
    found = tuple(g for g in written if not _why_whole(g))
    if not found:
        listed = "; ".join(f"{group}: {why}" for group, why in reasons.items())
        raise ValueError(
            f"{name}: none of the groups has units that can be cut: {listed}"
        )
    return found


def _why_whole(group: Written) -> str | None:
    """Why single units of a group cannot be cut, if that is so."""
    if group.carries:
        return cannot_cut(group.carries)
    for member in group.carriers:
        carried = {unit for axis in member.axes for unit in axis.units}
        if not carried.issuperset(range(len(group.sizes))):
            return f"entries of {member.path!r} are shared by several units"
    return None
