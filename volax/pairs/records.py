"""Records of what belongs to one neuron: axes of parameters that share their units.

A *unit* is one neuron or channel. It is numbered by one index, or by several where
one is not enough (layer x channel of stacked layers): ``Group.sizes``. A *member* is
a parameter that carries the units, and an :class:`Axis` says where along one of its
axes they lie, in the mixed-radix form that reshapes and concatenations produce:

    index = offset + sum_k strides[k] * i[k],      0 <= i[k] < sizes[k]

where ``units[k]`` names the unit index that ``i[k]`` is, or ``None`` where ``i[k]``
runs freely (the positions of a flattened image). A dense kernel ``[in, 128]`` that
produces 128 units has one axis, ``Axis(1, 0, (128,), (1,), (0,))``.

Records are plain frozen data: hashable, comparable, and never callable.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp

from volax import _paths
from volax._types import Leaf
from volax.pairs._member import OPEN as OPEN
from volax.pairs._member import Axis as Axis
from volax.pairs._member import Member as Member
from volax.pairs._member import fit, unit_sizes

# Names of what no caller handed in and still may lie along units.
CAPTURED, RANDOM = "a captured array", "random numbers"

# The fields of a record that hold members, but for the statistics.
_PARAMETERS = (
    "producers", "consumers", "biases", "scales", "fixed", "output_biases"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Written:
    """A record as :func:`volax.pair` writes it, with sizes that only a tree tells.

    A dense pair says that the units lie along the last axis of one kernel and the last
    but one of another, ``[in, units]`` and ``[units, out]``, and not how many they are:
    ``sizes`` is then ``(-1,)``. What computes with units takes the :class:`Group` that
    :meth:`fit` makes of it. The attributes are those of a group.

    Example:
      >>> import jax.numpy as jnp, volax
      >>> pair = volax.pair("w1", "w2")
      >>> pair.fit({"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}).sizes
      (8,)
    """

    sizes: tuple[int, ...]
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    biases: tuple[Member, ...] = ()
    scales: tuple[Member, ...] = ()
    states: tuple[Member, ...] = dataclasses.field(default=(), compare=False)
    output_biases: tuple[Member, ...] | None = dataclasses.field(
        default=None, compare=False
    )
    downstream: tuple[str, ...] | None = dataclasses.field(default=None, compare=False)
    unbalanced: str = dataclasses.field(default="", compare=False)
    homogeneous: bool = True
    through: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    fixed: tuple[Member, ...] = dataclasses.field(default=(), compare=False)
    constants: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    keeps_zero: bool | None = dataclasses.field(default=None, compare=False)
    carries: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    note: str = dataclasses.field(default="", compare=False)
    source: str | None = dataclasses.field(default=None, compare=False)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members that a rescaling of the units is about."""
        return self.producers + self.biases + self.scales + self.consumers

    @property
    def carriers(self) -> tuple[Member, ...]:
        """Everything that has to be cut together, statistics included."""
        return self.members + self.fixed + self.states

    @property
    def name(self) -> str:
        """Producers and consumers in one line, for messages."""
        sides = (self.producers, self.consumers)
        return " -> ".join(", ".join(m.path for m in side) for side in sides)

    @property
    def is_open(self) -> bool:
        """Whether the record leaves something to the sizes of a tree."""
        return OPEN in self.sizes or self._open_member() is not None

    def _open_member(self) -> Member | None:
        """The first member whose layout is open."""
        every = (*self.carriers, *(self.output_biases or ()))
        return next((m for m in every if m.is_open), None)

    def fit(
        self,
        leaves: Mapping[str, Leaf],
        what: str = "pair",
        states: Mapping[str, Leaf] | None = None,
    ) -> "Group":
        """Completes and checks the record against the parameters of a tree.

        Args:
          leaves: arrays (or their shapes as ``jax.ShapeDtypeStruct``) by key path.
          what: how to call the record in errors.
          states: the same of the running statistics. By default they are looked up in
            ``leaves``, and those that are not there, as in the tree of an optimizer,
            stay as they are written; the record must tell their layout.

        Returns:
          The record with every size filled in; of a group, an equal one.

        Raises:
          ValueError: a path is not in the tree, an axis does not exist, or the number
            of units differs between members.
        """
        where = f"{what} {self.name}"

        def shape(member: Member, tree: Mapping[str, Leaf] = leaves) -> tuple[int, ...]:
            if member.path not in tree:
                hint = "; pass the running statistics too"
                raise ValueError(
                    f"{where}: {member.role} {member.path!r} is not in the tree; "
                    f"{_paths.nearest(member.path, tree)}"
                    + (hint if member in self.states else "")
                )
            return jnp.shape(tree[member.path])

        def state(member: Member) -> Member:
            if states is None and member.path not in leaves and not member.is_open:
                return member
            tree = leaves if states is None else states
            return fit(member, sizes, shape(member, tree), where)

        sizes = self.sizes
        if OPEN in sizes:
            sizes = unit_sizes(self.producers[0], shape(self.producers[0]))
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for side in _PARAMETERS:
            if given[side] is not None:
                given[side] = tuple(fit(m, sizes, shape(m), where) for m in given[side])
        given |= {"sizes": sizes, "states": tuple(map(state, self.states))}
        return Group(**given)


@dataclasses.dataclass(frozen=True)
class Group(Written):
    """Parameter axes that share their units and can only be cut together.

    Attributes:
      sizes: extent of each unit index; their product is the number of units.
      producers: members whose contraction makes the units.
      biases: members added to the units.
      scales: members that multiply the units.
      states: values that are not trained but carry the units (running statistics).
      consumers: members that contract the units away.
      output_biases: biases behind the consumers and before the next pair, which scale
        with the whole pair (for ``balance``); ``None`` where they were not written.
      downstream: key paths of all biases behind the consumers, as a search finds them:
        scaled together with the consumers, they scale every output of the function.
        ``None`` where there is no such set, or no search.
      unbalanced: why ``downstream`` is not known: what the pair's output passes, such
        as a residual connection or a softmax.
      homogeneous: whether this is a pair: scaling the incoming side by c > 0 and the
        outgoing side by 1/c leaves the function as it is.
      through: the operations between producers and consumers.
      fixed: further members that carry the units and stay as they are when the units
        are rescaled: the kernel before a batch norm, the gate of a gated unit.
      constants: what in the program depends on the number of these units, and where
        it stands: found by tracing it with fewer units, none where it is the same.
      keeps_zero: whether units whose incoming weights and biases are zero are still
        zero where they are consumed.
      carries: names of what else lies along the units and cannot be cut: inputs,
        captured arrays, random numbers. Rescaling leaves it alone; ``volax.compact``
        keeps all units of such a group.
      note: why a group is no pair, or what else a reader should know.
      source: ``file:line`` of the operation that the note is about, where known.

    Records are equal if they rescale the same weights in the same way; what else the
    tracer found out (``states``, ``through`` and all after it) is not compared.
    """

    @property
    def size(self) -> int:
        """The number of units."""
        return math.prod(self.sizes)

    def __post_init__(self):
        if OPEN in self.sizes:
            raise ValueError(
                f"group {self.name}: the number of units has to be given, got sizes "
                f"{self.sizes}; volax.pairs.Written leaves it to the tree"
            )
        if (member := self._open_member()) is not None:
            raise ValueError(
                f"group {self.name}: the layout of {member.role} {member.path!r} has "
                f"to be given, got {', '.join(map(str, member.axes))}; "
                "volax.pairs.Written leaves it to the tree"
            )


def cannot_cut(carries: Sequence[str]) -> str:
    """The reason that the arrays of ``Group.carries`` give against cutting."""
    if RANDOM in carries:
        return (
            "random numbers are drawn along the units, and fewer units would get "
            "others; trace the model in evaluation mode"
        )
    verb = "lies" if len(carries) == 1 else "lie"
    why = f"{', '.join(carries)} {verb} along the units and cannot be cut"
    return why + ("; pass it as an input" if CAPTURED in carries else "")


def listed(
    records: Written | Iterable[Written],
    what: str,
    argument: str = "groups",
    searches: str = "volax.find_groups",
) -> tuple[Written, ...]:
    """The records of an argument as a tuple.

    Args:
      records: one record, or an iterable of them.
      what: who asks, for errors.
      argument: what it is called there.
      searches: what finds such records, for errors.

    Returns:
      The records.

    Raises:
      ValueError: something else than a record, or nothing at all.
    """
    found = (records,) if isinstance(records, Written) else records
    found = tuple(found) if isinstance(found, Iterable) else (found,)
    if not found:
        raise ValueError(
            f"{what}: {argument} is empty, expected at least one "
            f"{argument.removesuffix('s')}"
        )
    for record in found:
        if not isinstance(record, Written):
            raise ValueError(
                f"{what}: {argument} must hold records of volax.pair or {searches}, "
                f"got {type(record).__name__}"
            )
    return found


def as_groups(pairs: Written | Iterable[Written], what: str) -> tuple[Written, ...]:
    """The pairs of an argument as a tuple, checked to be homogeneous.

    Args:
      pairs: one record, or an iterable of them.
      what: who asks, for errors.

    Returns:
      The records.

    Raises:
      ValueError: something else than a pair, or nothing at all.
    """
    groups = listed(pairs, what, "pairs", "volax.find_pairs")
    for group in groups:
        if not group.homogeneous:
            raise ValueError(
                f"{what}: the group {group.name} is no pair: rescaling its units "
                "changes the function" + (f" ({group.note})" if group.note else "")
            )
    return groups


def check_sides(groups: Sequence[Group]) -> None:
    """Refuses a weight that belongs to two pairs on the same side.

    Args:
      groups: fitted groups.

    Raises:
      ValueError: two producers, or two consumers, share elements of a parameter.
    """
    for one, m, other, n in _shared(groups):
        if m.role == n.role and m.role != "bias":
            raise ValueError(
                f"{m.path!r} is a {m.role} of two pairs whose units "
                f"overlap: {one.name} and {other.name}"
            )


def check_disjoint(groups: Sequence[Group], what: str) -> None:
    """Refuses a weight that belongs to two pairs on any side.

    Args:
      groups: fitted groups.
      what: what needs them apart, for errors.

    Raises:
      ValueError: two pairs share elements of a parameter.
    """
    for one, m, other, n in _shared(groups):
        raise ValueError(
            f"{what}, but {m.path!r} is a {m.role} of {one.name} and a {n.role} of "
            f"{other.name}"
        )


def conflicts(groups: Sequence[Group]) -> list[frozenset[int]]:
    """For each fitted pair the places of those that it shares weights with."""
    place = {id(g): k for k, g in enumerate(groups)}
    found: list[set[int]] = [set() for _ in groups]
    for one, _, other, _ in _shared(groups):
        found[place[id(one)]].add(place[id(other)])
        found[place[id(other)]].add(place[id(one)])
    return [frozenset(places) for places in found]


def _shared(
    groups: Iterable[Group],
) -> Iterator[tuple[Group, Member, Group, Member]]:
    """Two pairs and the members with which they rescale the same entries."""
    owners: dict[str, list[tuple[Group, Member]]] = {}
    for group in groups:
        for m in (*group.producers, *group.biases, *group.consumers):
            owners.setdefault(m.path, []).append((group, m))
    for listed in owners.values():
        for (one, m), (other, n) in itertools.combinations(listed, 2):
            if one is not other and _overlap(m, n):
                yield one, m, other, n


@functools.lru_cache(maxsize=4096)  # the records are the same at every step
def _overlap(one: Member, other: Member) -> bool:
    """Whether two fitted members of one parameter share entries.

    They do unless they lie along one axis at different indices.
    """
    along = {a.axis: a for a in other.axes}
    both = [(a, along[a.axis]) for a in one.axes if a.axis in along]
    return not any(
        frozenset(a.indices().ravel()).isdisjoint(b.indices().ravel()) for a, b in both
    )
