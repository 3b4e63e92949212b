"""What a search returns: the groups that were found and what was refused, and why."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar, overload

from volax._text import aligned
from volax._types import Json
from volax.pairs import records
from volax.pairs._disjoint import heaviest
from volax.pairs.records import Axis, Group, Member, Written

# Operations that bend nothing, as ``Group.through`` names them.
_LINEAR = {
    "add", "add_any", "sub", "neg", "mul", "div", "reshape", "concatenate", "pad",
    "slice", "dynamic_slice", "split", "rev", "reduce_sum", "reduce_window_sum",
    "cumsum", "gather", "dot_general", "conv_general_dilated", "reduce_precision",
}  # fmt: skip

R = TypeVar("R", bound=Written, covariant=True)

ACTIVATIONS = "(activations)"  # in place of a key path


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
class Product:
    """What is multiplied and added in one run, of one weight or of two activations.

    Attributes:
      multiply_adds: how many there are.
      path: key path of the weight, to whose size they are proportional; or
        ``(activations)``.
      units: of two activations the numbers of the groups to whose units they are
        proportional, in the order of the search, one as often as its units occur.
    """

    multiply_adds: int
    path: str
    units: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Groups(Sequence[R]):
    """Groups in the order of the parameters: a sequence that prints as a table.

    Attributes:
      groups: the groups.
      refused: what was refused, one entry per unit axis.
      products: the multiply-adds of the program, none where no program is known.

    Example:
      >>> import volax
      >>> print(Groups((volax.pair("l1/kernel", "l2/kernel", bias="l1/bias"),)))
      units  producer   consumers  through
      ?      l1/kernel  l2/kernel
    """

    groups: tuple[R, ...]
    refused: tuple[Refusal, ...] = ()
    products: tuple[Product, ...] = dataclasses.field(default=(), compare=False)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "Groups[R]": ...
    def __getitem__(self, index: int | slice) -> "R | Groups[R]":
        if isinstance(index, slice):
            return self.chosen(range(len(self))[index])
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
        pairs = [k for k, g in enumerate(self.groups) if g.homogeneous]
        return dataclasses.replace(self.chosen(pairs), refused=self.refused + others)

    @property
    def multiply_adds(self) -> dict[str, int]:
        """Multiply-adds in one run by key path of the weight that takes part in them.

        Those of two activations, as in attention, stand under ``(activations)``. Empty
        where no program is known.
        """
        total: Counter[str] = Counter()
        for product in self.products:
            total[product.path] += product.multiply_adds
        return dict(total)

    def chosen(self, numbers: Sequence[int]) -> "Groups[R]":
        """Some of the groups, by their numbers.

        Args:
          numbers: which, in the order in which they will stand.

        Returns:
          These groups, and the multiply-adds of the program in which the units of the
          others are a given.
        """
        now = {old: new for new, old in enumerate(numbers)}
        return dataclasses.replace(
            self,
            groups=tuple(self.groups[k] for k in numbers),
            products=tuple(
                dataclasses.replace(p, units=tuple(now[k] for k in p.units if k in now))
                for p in self.products
            ),
        )

    def resized(
        self,
        groups: tuple[Group, ...],
        before: Mapping[str, tuple[int, ...]],
        after: Mapping[str, tuple[int, ...]],
    ) -> "Groups[Group]":
        """The records of a smaller model.

        Args:
          groups: the same groups with fewer units.
          before: shapes of the parameters by key path.
          after: those of the smaller model.

        Returns:
          The groups, with the multiply-adds that are left.
        """

        def left(product: Product) -> int:
            count = product.multiply_adds
            if product.path in before:
                old, new = (math.prod(s[product.path]) for s in (before, after))
                return count * new // max(old, 1)
            for k in product.units:
                count = count * groups[k].sizes[-1] // self.groups[k].sizes[-1]
            return count

        products = (
            dataclasses.replace(p, multiply_adds=left(p)) for p in self.products
        )
        return Groups(groups, self.refused, tuple(products))

    def disjoint(self) -> "Groups[R]":
        """The pairs for the algorithm of the paper: no weight in two of them.

        In a net of three layers or more the outgoing weights of one pair are the
        incoming weights of the next, and ``path_prox(normalize="project")`` may have
        only one of the two. Chosen are the pairs with the most units that an activation
        stands behind, beside them the most units of others; where several choices have
        as many, the pairs that come first. The choice is exact, unless so many pairs
        share weights with so many others that it would take minutes; then it is
        greedy, the largest pair first, and ``refused`` says so.

        Returns:
          The pairs that stay, in their order; the others are listed as refused.

        Raises:
          ValueError: a record of :func:`volax.pair` that was not fitted to a tree,
            whose units cannot be counted.

        Example:
          >>> import jax, jax.numpy as jnp, volax
          >>> def mlp(w, x):
          ...     for k in range(5):
          ...         x = jax.nn.relu(x @ w[k])
          ...     return x @ w[5]
          >>> weights = [jnp.ones((4, 4))] * 6
          >>> for pair in volax.find_pairs(mlp, weights, jnp.ones((1, 4))).disjoint():
          ...     print(pair.name)
          0 -> 1
          2 -> 3
          4 -> 5

        References:
          Yang et al., `A Better Way to Decay <https://arxiv.org/abs/2210.03069>`_,
          2022, take every second layer of a plain net.
        """
        pairs = self.pairs
        known = [g for g in pairs if isinstance(g, Group)]
        if unknown := [g.name for g in pairs if not isinstance(g, Group)]:
            raise ValueError(
                "disjoint: the number of units is not known of "
                f"{'; '.join(unknown)}: call its fit with the leaves of the tree, or "
                "take what volax.find_pairs finds"
            )
        weights = []
        for k, group in enumerate(pairs):
            size = math.prod(group.sizes)
            bent = bool(set(group.through) - _LINEAR)
            weights.append((size * bent, size * (not bent), -k))
        chosen, exact = heaviest(weights, records.conflicts(known))
        how = (
            "" if exact else "; the choice is greedy, an exact one would take too long"
        )
        left = tuple(
            Refusal(f"shares weights with pairs that stay{how}", m.path, _first_axis(m))
            for k, group in enumerate(pairs)
            if k not in chosen
            for m in group.producers
        )
        kept = pairs.chosen(sorted(chosen))
        return dataclasses.replace(kept, refused=pairs.refused + left)

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
            tuple(
                Product(p["multiply_adds"], p["path"], tuple(p["units"]))
                for p in data.get("products", ())
            ),
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


def _group(data: Json) -> Written:
    """A group from its plain form, or a record whose sizes are open."""
    fields = dict(data)
    for field in dataclasses.fields(Group):
        value = fields.get(field.name)
        if isinstance(value, list):
            fields[field.name] = tuple(
                _member(v) if isinstance(v, dict) else v for v in value
            )
    record = Written(**fields)
    return record if record.is_open else Group(**fields)


def _member(data: Json) -> Member:
    plain: list[Json] = data["axes"]
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
