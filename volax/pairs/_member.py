"""Where units lie in one parameter: axes and members, open or fitted to a shape.

What they mean stands in ``volax.pairs.records``, by which they are imported. A record
that is written by hand leaves sizes open (:data:`OPEN`) until the shape is known.
"""

import dataclasses
import math

import numpy as np

OPEN = -1  # a size, stride or offset that only the tree tells


@dataclasses.dataclass(frozen=True)
class Axis:
    """Where units lie along one axis of a parameter.

    Attributes:
      axis: the number of the axis.
      offset: index of the first unit at the first free position; -1 in a hand-written
        record says that the units fill the axis.
      sizes: extent of each factor of the index; in a hand-written record that was not
        yet fitted to a tree, -1 is the number of units, which only the tree tells.
      strides: stride of each factor; -1 is the number of units likewise.
      units: for each factor the unit index that it is, or ``None`` if it runs freely.
    """

    axis: int
    offset: int = 0
    sizes: tuple[int, ...] = (OPEN,)
    strides: tuple[int, ...] = (1,)
    units: tuple[int | None, ...] = (0,)

    @property
    def is_open(self) -> bool:
        """Whether the layout leaves something to the sizes of a tree."""
        return OPEN in (self.offset, *self.sizes, *self.strides)

    def fill(self, sizes: tuple[int, ...], ndim: int) -> "Axis":
        """Replaces what a hand-written record leaves open by the sizes of the units."""
        own = [1 if u is None else sizes[u] for u in self.units]
        return dataclasses.replace(
            self,
            axis=self.axis % ndim if -ndim <= self.axis < ndim else self.axis,
            offset=max(self.offset, 0),
            sizes=tuple(o if s == OPEN else s for s, o in zip(self.sizes, own)),
            strides=tuple(sizes[-1] if s == OPEN else s for s in self.strides),
        )

    def indices(self) -> np.ndarray:
        """The indices along the axis, int array of shape ``sizes``."""
        grids = np.meshgrid(*map(np.arange, self.sizes), indexing="ij")
        return np.asarray(sum(s * g for s, g in zip(self.strides, grids)), int) + (
            self.offset
        )


@dataclasses.dataclass(frozen=True)
class Member:
    """A parameter that carries the units of a group.

    Attributes:
      path: key path of the parameter, such as ``l1/kernel``.
      role: ``producer``, ``bias``, ``scale``, ``state``, ``consumer``, or
        ``output_bias`` (behind the consumers; it scales with the whole pair).
      degree: how the parameter scales when the units' incoming side is scaled by c:
        by ``c ** degree``.
      axes: the axes along which the units lie.
    """

    path: str
    role: str
    degree: int
    axes: tuple[Axis, ...]

    @property
    def axis(self) -> int | tuple[int, ...]:
        """The number of the axis that carries the units, or of all such axes."""
        numbers = tuple(a.axis for a in self.axes)
        return numbers[0] if len(numbers) == 1 else numbers

    @property
    def is_open(self) -> bool:
        """Whether its layout leaves something to the sizes of a tree."""
        return any(axis.is_open for axis in self.axes)


def unit_sizes(producer: Member, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Reads the unit sizes off the axes of the first producer."""
    sizes = {}
    for axis in producer.axes:
        if -len(shape) <= axis.axis < len(shape):
            for size, unit in zip(axis.sizes, axis.units):
                if unit is not None:
                    sizes[unit] = shape[axis.axis] if size == OPEN else size
    return tuple(sizes.get(k, 1) for k in range(len(producer.axes)))


def fit(
    member: Member, sizes: tuple[int, ...], shape: tuple[int, ...], where: str
) -> Member:
    """Fills one member's open sizes and checks that it lies inside its parameter."""
    axes = tuple(a.fill(sizes, len(shape)) for a in member.axes)
    if len({a.axis for a in axes}) < len(axes):
        raise ValueError(
            f"{where}: {member.role} {member.path!r} has two records for one axis, "
            f"got axes {', '.join(str(a.axis) for a in axes)}"
        )
    for axis, written in zip(axes, member.axes):
        if not 0 <= axis.axis < len(shape):
            raise ValueError(
                f"{where}: {member.role} {member.path!r} has shape {shape}, "
                f"which has no axis {written.axis}"
            )
        length, extent = shape[axis.axis], math.prod(axis.sizes)
        last = int(axis.indices().max(initial=0))
        counts = [s for s, u in zip(axis.sizes, axis.units) if u is not None]
        units = [sizes[u] for u in axis.units if u is not None]
        covers = extent == length or written.offset != OPEN
        if last >= length or counts != units or not covers:
            positions = extent // max(math.prod(units), 1)
            raise ValueError(
                f"{where}: {member.role} {member.path!r} has {length} entries along "
                f"axis {axis.axis}, expected {math.prod(units)} units"
                + (f" x {positions} positions" if positions > 1 else "")
                + (f" from offset {axis.offset}" if axis.offset else "")
                + _hint(written)
            )
    return dataclasses.replace(member, axes=axes)


def _hint(written: Axis) -> str:
    """What to do where an axis does not fit its parameter."""
    if written.is_open:
        return (
            "; volax.member(path, axis, offset=..., positions=...) describes a "
            "flattened or concatenated axis"
        )
    return (
        "; the record belongs to other shapes: after compact, make the transformation "
        "anew with its Compacted.groups"
    )
