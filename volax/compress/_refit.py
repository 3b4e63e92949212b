"""Records for the smaller model: where each unit lies once others are gone.

The program numbers the entries of an axis by the sizes of what it joins there: behind
a reshape of ``[u, g]`` the entry of (u, g) is ``u * len(g) + g``. With m of n units
left it does the same with m, so the places in the smaller array are those of a model
from which the last n - m units were taken, whichever units really went.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from volax.pairs import _cuts
from volax.pairs.records import Axis, Group, Member

# For each path and axis the entries that the last units have, bool along the axis.
Drops = Mapping[str, Mapping[int, np.ndarray]]
_ROLES = ("producers", "consumers", "biases", "scales", "states", "fixed")


class Overlap(ValueError):
    """Two groups that cannot be cut apart."""


def drops(group: Group, count: int, shapes: Mapping[str, tuple[int, ...]]) -> Drops:
    """The entries that go if the first ``count`` units of every row stay.

    Args:
      group: a fitted group.
      count: how many units stay along the last of the group's indices.
      shapes: of the parameters.

    Returns:
      For each path and axis the entries that go.
    """
    found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for member in group.carriers:
        axis = _cuts.cut_axis(member, group.sizes)
        inside = axis.indices().swapaxes(0, axis.units.index(len(group.sizes) - 1))
        gone = found[member.path].setdefault(
            axis.axis, np.zeros(shapes[member.path][axis.axis], bool)
        )
        gone[inside[count:].reshape(-1)] = True
    return found


def refitted(group: Group, cut: Group, gone: Drops) -> Group:
    """A group as it fits the arrays that are left when ``cut`` has become smaller.

    Args:
      group: the group, which may be ``cut`` itself.
      cut: the group that lost units.
      gone: what went, of :func:`drops`.

    Returns:
      The group with the sizes, offsets and strides of the smaller arrays.

    Raises:
      Overlap: units of ``cut`` are units of ``group`` too, but not in all its arrays.
    """
    if not any(m.path in gone for role in _ROLES for m in getattr(group, role)):
        return group
    sizes: dict[int, int] = {}
    made = {
        role: tuple(
            new
            for member in getattr(group, role)
            for new in _member(member, gone.get(member.path, {}), group, cut, sizes)
        )
        for role in _ROLES
    }
    return dataclasses.replace(
        group,
        sizes=tuple(sizes.get(k, n) for k, n in enumerate(group.sizes)),
        **made,
    )


def check_apart(
    groups: Sequence[Group], shapes: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Refuses two groups that both have units of one axis, not as a factor each.

    Args:
      groups: fitted groups.
      shapes: of the parameters.
      what: who asks, for errors.

    Raises:
      ValueError: two groups overlap.
    """
    using: dict[str, set[int]] = defaultdict(set)
    for k, group in enumerate(groups):
        for member in group.carriers:
            using[member.path].add(k)
    for k, group in enumerate(groups):
        if _cuts.uncuttable(group, {}, shapes) is not None:
            continue
        beside = sorted(set().union(*(using[m.path] for m in group.carriers)) - {k})
        gone = drops(group, 1, shapes)
        for other in beside:
            try:
                refitted(groups[other], group, gone)
            except Overlap as error:
                raise ValueError(f"{what}: {error}") from error


def _member(
    member: Member,
    gone: Mapping[int, np.ndarray],
    group: Group,
    cut: Group,
    sizes: dict[int, int],
) -> Iterable[Member]:
    """A member along the shorter axes, and the new sizes of its units.

    Several members, where the places of the units are no longer evenly spaced.
    """
    found: list[list[Axis]] = []
    for axis in member.axes:
        dropped = gone.get(axis.axis)
        if dropped is None:
            found.append([axis])
        else:
            parts = _parts(axis, dropped)
            if not parts:
                raise Overlap(
                    f"{member.path!r} has units of two groups that overlap and cannot "
                    f"be cut apart: {cut.name} and {group.name}"
                )
            rank = np.cumsum(~dropped) - 1
            fitted = [_fitted(part, rank[places]) for part, places in parts]
            found.append([new for several in fitted for new in several])
        for new in found[-1]:
            for unit, count in zip(new.units, new.sizes):
                if unit is not None and sizes.setdefault(unit, count) != count:
                    raise Overlap(
                        f"{member.path!r} shares units with {cut.name}, but not all "
                        f"of {group.name} does, so the two overlap and cannot be cut "
                        "apart"
                    )
    for axes in itertools.product(*found):
        yield dataclasses.replace(member, axes=axes)


def _parts(axis: Axis, gone: np.ndarray) -> list[tuple[Axis, np.ndarray]]:
    """What stays of an axis, as axes of their own with the indices of their entries.

    One, where the entries that stay are a product over the factors. Else those of each
    index of a factor that no unit is; nothing, where there is no such factor.
    """
    places = axis.indices()
    alive = ~gone[places]
    factors = range(alive.ndim)
    keeps = [
        np.flatnonzero(alive.any(axis=tuple(j for j in factors if j != k)))
        for k in factors
    ]
    if alive[np.ix_(*keeps)].all():
        return [(axis, places[np.ix_(*keeps)])] if alive.any() else []
    free = _free(axis)
    if free is None:
        return []
    split = [
        _parts(one, gone) for one in _split(axis, free) if (~gone[one.indices()]).any()
    ]
    return [part for parts in split for part in parts] if all(split) else []


def _free(axis: Axis) -> int | None:
    """The first factor that no unit is, and that has several indices."""
    factors = enumerate(zip(axis.sizes, axis.units))
    return next((k for k, (n, u) in factors if u is None and n > 1), None)


def _split(axis: Axis, factor: int) -> list[Axis]:
    """An axis for each index of a factor."""

    def rest(of: tuple) -> tuple:
        return of[:factor] + of[factor + 1 :]

    step, left = axis.strides[factor], rest(axis.sizes)
    return [
        Axis(
            axis.axis,
            axis.offset + step * k,
            left,
            rest(axis.strides),
            rest(axis.units),
        )
        for k in range(axis.sizes[factor])
    ]


def _fitted(axis: Axis, places: np.ndarray) -> list[Axis]:
    """The axis whose factors run through the given places; several if one cannot."""
    origin = (0,) * places.ndim
    first = int(places[origin])
    strides = tuple(
        int(places[*origin[:k], 1, *origin[k + 1 :]]) - first if n > 1 else 1
        for k, n in enumerate(places.shape)
    )
    whole = Axis(axis.axis, first, places.shape, strides, axis.units)
    if (whole.indices() == places).all():
        return [whole]
    free = _free(whole)
    assert free is not None, "units of one group are evenly spaced"
    return [
        new
        for one, row in zip(_split(whole, free), np.moveaxis(places, free, 0))
        for new in _fitted(one, row)
    ]
