"""What a search returns: the groups that were found and what was refused, and why."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

from volax._text import aligned
from volax.pairs.records import OPEN, Axis, Group, Member, Written

R = TypeVar("R", bound=Written, covariant=True)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Units that are no group, or a group that is no pair.

    Attributes:
      reason: why.
      path: key path of the parameter that makes the units.
      axis: the axis of the parameter along which they lie, or None.
      source: ``file:line`` of the operation in the way, where known.
    """

    reason: str
    path: str
    axis: int | None = None
    source: str | None = None

    @property
    def where(self) -> str:
        """The parameter and its axis."""
        return self.path if self.axis is None else f"{self.path} axis {self.axis}"

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (
            f" ({self.source})" if self.source else ""
        )


@dataclasses.dataclass(frozen=True)
class Groups(Sequence[R]):
    """Groups in the order of the parameters: a sequence that prints as a table.

    Attributes:
      groups: the groups.
      refused: what was refused, one entry per unit axis.

    Example:
      >>> import volax
      >>> print(Groups((volax.pair("l1/kernel", "l2/kernel", bias="l1/bias"),)))
      units  producer   consumers  through
      ?      l1/kernel  l2/kernel
    """

    groups: tuple[R, ...]
    refused: tuple[Refusal, ...] = ()

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "Groups[R]": ...
    def __getitem__(self, index: int | slice) -> "R | Groups[R]":
        if isinstance(index, slice):
            return dataclasses.replace(self, groups=self.groups[index])
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[R]:
        return iter(self.groups)

    @property
    def pairs(self) -> "Groups[R]":
        """The groups that are pairs; the others are listed as refused."""
        others = tuple(
            Refusal(g.note or "not a pair", m.path, _first_axis(m), g.source)
            for g in self.groups
            if not g.homogeneous
            for m in g.producers
        )
        pairs = tuple(g for g in self.groups if g.homogeneous)
        return Groups(pairs, self.refused + others)

    def to_json(self) -> str:
        """The records as JSON text.

        Returns:
          Text for :meth:`from_json`.
        """
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Groups[Written]":
        """Reads what :meth:`to_json` wrote.

        Args:
          text: JSON text.

        Returns:
          An equal record.

        Example:
          >>> import volax
          >>> found = Groups((volax.pair("l1/kernel", "l2/kernel"),))
          >>> Groups.from_json(found.to_json()) == found
          True
        """
        data = json.loads(text)
        return Groups(
            tuple(_group(g) for g in data["groups"]),
            tuple(Refusal(**r) for r in data["refused"]),
        )

    def __str__(self) -> str:
        head = ("units", "producer", "consumers", "through")
        lines = aligned([head] + [row for g in self.groups for row in _rows(g)])
        if self.refused:
            lines += ["", "refused:", *_collected(self.refused)]
        return "\n".join(lines)


def _collected(refused: Sequence[Refusal]) -> Iterator[str]:
    """One line for each reason and place in the source."""
    alike: dict[tuple[str, str | None], list[Refusal]] = {}
    for entry in refused:
        alike.setdefault((entry.reason, entry.source), []).append(entry)
    for entries in alike.values():
        where = ", ".join(entry.where for entry in entries)
        yield f"  {dataclasses.replace(entries[0], path=where, axis=None)}"


def _first_axis(member: Member) -> int | None:
    return member.axes[-1].axis if member.axes else None


def _rows(group: Written) -> list[tuple[str, str, str, str]]:
    """A group's lines in the table: its first line, then further members."""
    known = isinstance(group, Group)
    units = " x ".join(map(str, group.sizes)) if known else "?"
    between = " ".join(group.through)
    if not group.homogeneous:
        between += f"  [{group.note}]"
    makers = [m.path for m in group.producers]
    takers = [m.path for m in group.consumers]
    rows = []
    for k in range(max(len(makers), len(takers))):
        rows.append(
            (
                units if k == 0 else "",
                makers[k] if k < len(makers) else "",
                takers[k] if k < len(takers) else "",
                between if k == 0 else "",
            )
        )
    return rows


def _group(data: dict[str, Any]) -> Written:
    """A group from its plain form, or a record whose sizes are open."""
    fields = dict(data)
    for field in dataclasses.fields(Group):
        value = fields.get(field.name)
        if isinstance(value, list):
            fields[field.name] = tuple(
                _member(v) if isinstance(v, dict) else v for v in value
            )
    return (Written if OPEN in fields["sizes"] else Group)(**fields)


def _member(data: dict[str, Any]) -> Member:
    plain: list[dict[str, Any]] = data["axes"]
    axes = tuple(
        Axis(
            a["axis"],
            a["offset"],
            tuple(a["sizes"]),
            tuple(a["strides"]),
            tuple(a["units"]),
        )
        for a in plain
    )
    return Member(data["path"], data["role"], data["degree"], axes)
