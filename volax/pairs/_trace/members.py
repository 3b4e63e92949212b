"""Writes a leaf's places in a parameter down as members of a record."""

import itertools
from collections.abc import Sequence

from volax.pairs._trace.degrees import Degrees
from volax.pairs._trace.facts import Place
from volax.pairs._trace.terms import Piece, Term
from volax.pairs.records import Axis, Member


def members(
    places: Sequence[Place],
    role: str,
    degree: int,
    units: tuple[Term, ...],
    degrees: Degrees,
) -> list[Member]:
    """The members of one parameter's places on one axis.

    Several places along one axis (a concatenation of the same units) become one member
    where their offsets are evenly spaced, else one member each.

    Args:
      places: places of one leaf in one parameter, along one axis.
      role: their role.
      degree: their degree.
      units: the leaves that number the units, in order.
      degrees: where the other axes of the parameter are looked up.

    Returns:
      The members.
    """
    found = []
    for axis in _axes(places, units):
        others = _others(places[0], units, degrees)
        axes = tuple(sorted([axis, *others], key=lambda a: a.axis))
        found.append(Member(places[0].path, role, degree, axes))
    return found


def _others(place: Place, units: tuple[Term, ...], degrees: Degrees) -> list[Axis]:
    """The axes of the parameter that carry the unit's other leaves."""
    found = []
    for axis, _, piece in degrees.occurrences(place.value):
        # An axis that carries the leaf itself is another member: a recurrent kernel.
        own = axis == place.axis or place.leaf in piece.leaves
        if not own and any(leaf in units for leaf in piece.leaves):
            found.append(_axis(axis, piece, units))
    return found


def _axes(places: Sequence[Place], units: tuple[Term, ...]) -> list[Axis]:
    """One axis record for all places if their offsets are evenly spaced, else each."""
    axes = [_axis(p.axis, p.piece, units) for p in places]
    first, offsets = axes[0], [a.offset for a in axes]
    gaps = {b - a for a, b in itertools.pairwise(offsets)}
    layouts = {(a.sizes, a.strides, a.units) for a in axes}
    if len(axes) == 1 or len(gaps) > 1 or len(layouts) > 1:
        return axes
    sizes = (len(axes), *first.sizes)
    return [
        _merged(
            first.axis,
            first.offset,
            sizes,
            (gaps.pop(), *first.strides),
            (None, *first.units),
        )
    ]


def _axis(axis: int, piece: Piece, units: tuple[Term, ...]) -> Axis:
    """A piece of an axis as a record; leaves that number no unit run freely."""
    numbers = tuple(units.index(t) if t in units else None for t in piece.leaves)
    sizes = tuple(t.size for t in piece.leaves)
    return _merged(axis, piece.offset, sizes, piece.strides, numbers)


def _merged(
    axis: int,
    offset: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    units: tuple[int | None, ...],
) -> Axis:
    """Joins free factors that run on into each other."""
    factors: list[tuple[int, int, int | None]] = []
    for size, stride, unit in zip(sizes, strides, units):
        if factors and unit is None:
            before, step, kind = factors[-1]
            if kind is None and step == stride * size:
                factors[-1] = (before * size, stride, None)
                continue
        factors.append((size, stride, unit))
    return Axis(axis, offset, *zip(*factors))  # pyright: ignore
