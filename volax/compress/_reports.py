"""What ``report`` returns: a row for each array and each group, and their sums."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from volax._types import Json
from volax.compress import _table
from volax.compress._kinds import PARAMETER, STATE

if TYPE_CHECKING:  # an extra, loaded where a figure is drawn
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class LeafReport:
    """One array.

    Attributes:
      path: key path.
      kind: ``"parameter"``, or ``"state"`` for what the model itself writes, such as
        running statistics.
      shape: of the array.
      dtype: of the array; ``1 bit`` or ``2 bit`` if packed.
      size: number of weights.
      zeros: how many are exactly zero.
      at_wall: how many are at the wall, or ``None`` without one.
      wall: V, its largest finite value where it differs, or ``None``.
      norm: Euclidean.
      largest: the largest size of a weight.
      stable_rank: squared Frobenius norm by squared spectral norm, of the matrix with
        the last axis as its columns; ``None`` for vectors.
      units: units that it makes, or ``None``; those that others are made of, if it
        makes both, as channels and heads.
      alive: units among them that are not dead.
      bytes: as stored.
      multiply_adds: in one run on the given inputs; without a model, one a weight of a
        matrix.
      left: weights that stay if the dead units are removed.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    zeros: int
    at_wall: int | None
    wall: float | None
    norm: float
    largest: float
    stable_rank: float | None
    units: int | None
    alive: int | None
    bytes: int
    multiply_adds: int
    left: int


@dataclasses.dataclass(frozen=True)
class GroupReport:
    """The units of one group.

    Attributes:
      name: producers and consumers, and the units where another group has the same.
      units: number of units.
      alive: units that are not dead.
      unread: dead units whose outgoing weights are all zero.
      unfed: dead units whose incoming weights and biases are all zero.
      path_norms: norm of the incoming times norm of the outgoing weights, sorted.
      composed: whether its units are made of those of another group, as heads are of
        channels; such a group is in no sum, where it would count twice.
    """

    name: str
    units: int
    alive: int
    unread: int
    unfed: int
    path_norms: tuple[float, ...]
    composed: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`report` counted; ``print`` it, or ask for a dict or a figure.

    Attributes:
      leaves: a row for each array of parameters or state.
      groups: a row for each group of units.
      multiply_adds: in one run, those between activations included.
      traced: whether they were counted on the model, not guessed from the shapes.
      histogram: edges and counts of the weights that are not zero.
      other: numbers in arrays that are neither parameters nor state: random keys,
        counters, integers.
    """

    leaves: tuple[LeafReport, ...]
    groups: tuple[GroupReport, ...]
    multiply_adds: int
    traced: bool
    histogram: tuple[tuple[float, ...], tuple[int, ...]]
    other: int = 0

    def to_dict(self) -> Json:
        """Everything as plain JSON values, totals too; NaN and inf are ``None``."""
        return _plain({**dataclasses.asdict(self), "total": self.total})

    @property
    def total(self) -> Json:
        """The sums over all parameters and groups; ``None`` where nothing was asked.

        State is summed apart, under ``state`` (numbers), ``state_left``,
        ``state_bytes`` and ``state_bytes_left``; ``other`` counts what is neither.
        """
        weights = [x for x in self.leaves if x.kind == PARAMETER]
        state = [x for x in self.leaves if x.kind == STATE]
        walls = [x.at_wall for x in weights if x.at_wall is not None]
        bounded = sum(x.size for x in weights if x.at_wall is not None)
        others = self.multiply_adds - sum(x.multiply_adds for x in self.leaves)
        groups = [g for g in self.groups if not g.composed]
        return {
            "size": sum(x.size for x in weights),
            "zeros": sum(x.zeros for x in weights),
            "at_wall": sum(walls) if walls else None,
            "bounded": bounded if walls else None,
            "norm": math.sqrt(sum(x.norm**2 for x in weights)),
            "path_norm": sum(sum(g.path_norms) for g in groups),
            "units": sum(g.units for g in groups),
            "alive": sum(g.alive for g in groups),
            "bytes": sum(x.bytes for x in weights),
            "multiply_adds": self.multiply_adds,
            "left": sum(x.left for x in weights),
            "bytes_left": sum(_share(x.bytes, x) for x in weights),
            "multiply_adds_left": others
            + sum(_share(x.multiply_adds, x) for x in self.leaves),
            "state": sum(x.size for x in state),
            "state_left": sum(x.left for x in state),
            "state_bytes": sum(x.bytes for x in state),
            "state_bytes_left": sum(_share(x.bytes, x) for x in state),
            "other": self.other,
        }

    def text(self, rows: int = 40) -> str:
        """An aligned table.

        Args:
          rows: above this many arrays, those whose paths differ in numbers alone share
            a row.

        Returns:
          The table and the totals.
        """
        return _table.text(self, rows)

    def figure(self) -> "Figure":
        """Weights, units and path norms as a Matplotlib ``Figure``.

        Returns:
          The figure, for ``savefig``.

        Raises:
          ImportError: Matplotlib is not installed.
        """
        from volax.compress import _figure

        return _figure.figure(self)

    def __str__(self) -> str:
        return self.text()


def _share(what: int, leaf: LeafReport) -> int:
    """What is left of a leaf's bytes or multiply-adds."""
    return what * leaf.left // leaf.size if leaf.size else 0


def _plain(value: Any) -> Any:
    """JSON has no word for a number that is not finite."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
