"""Numerical proof of pairs and groups, on the program itself."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from volax._types import Leaf, Model, Tree
from volax.pairs import _layout, _program
from volax.pairs._trace.models import traceable
from volax.pairs.records import Group, Member, Written

_ROUNDINGS = 10  # how often the effect of rounding errors a difference may be


def check_groups(
    groups: Written | Iterable[Written],
    fn: Model,
    *args: Tree,
    state_outputs: int | tuple[int, ...] = (),
    tolerance: float | None = None,
    seed: int = 0,
    **keywords: object,
) -> tuple[float, ...]:
    r"""Proves by running the program that what was found holds.

    The outputs have to stay when, for random units of a group,

    - the outgoing weights are zero, and the incoming weights, biases, scales and
      statistics are replaced;
    - the units change places in all members at once, which shows a member that is
      missing and a layout that is wrong;
    - the incoming weights and biases are zero, and the outgoing weights are replaced
      (where zero is known to stay zero);
    - the incoming side of each unit is scaled by its own $c$ and the outgoing
      side by $1/c$, $c$ or $1/c$ from 3 to 10 (pairs).

    None of this proves anything where the outputs do not depend on the units at all, as
    behind a head of zeros, and a bias that is zero hides that it was forgotten. So the
    given numbers are varied, zeros included, and the tests are repeated with random
    parameters of the same shapes. With one of the two, replacing the incoming side of
    units that are read must change the outputs.

    Args:
      groups: groups or pairs, found or written by hand.
      fn: as in :func:`find_groups`.
      *args: as in :func:`find_groups`; what is given as ``jax.ShapeDtypeStruct`` is
        drawn at random.
      state_outputs: as in :func:`find_groups`; these outputs are not compared.
      tolerance: largest relative difference; by default the square root of the
        coarsest machine epsilon of the floats that the program computes with, or
        where that is more, ten times the difference that rounding errors in the
        parameters make.
      seed: of all random numbers.
      **keywords: as in :func:`find_groups`.

    Returns:
      For each group the largest relative difference.

    Raises:
      ValueError: a difference above the tolerance, outputs that are not finite, or
        outputs that do not depend on the units; the message names the group and what
        was done to it.

    Example:
      >>> import jax, jax.numpy as jnp, volax
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w1"]) @ params["w2"]
      >>> shapes = {"w1": (3, 8), "w2": (8, 2)}
      >>> params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
      >>> pairs = [volax.pair("w1", "w2")]
      >>> max(check_groups(pairs, mlp, params, jnp.ones((4, 3)))) < 1e-3
      True
    """
    given = traceable(fn, args, (), state_outputs, "check_groups", keywords)
    program = _program.Program(given)
    rng = np.random.default_rng(seed)
    listed = (groups,) if isinstance(groups, Written) else tuple(groups)
    fitted = [program.fit(group) for group in listed]
    for group in fitted:
        if group.homogeneous:
            _check_degrees(group)
    least = program.tolerance()
    worst, seen = [0.0] * len(fitted), [False] * len(fitted)
    for number, (arrays, plain) in enumerate(_program.points(rng, program)):
        if number > 1 and all(seen):
            break
        limit = tolerance
        if limit is None:
            limit = max(
                least, _ROUNDINGS * _program.rounding(rng, program, arrays, plain)
            )
        for k, group in enumerate(fitted):
            for test, before, after in _tests(rng, program, arrays, plain, group):
                difference = _program.difference(before, after)
                if not difference <= limit:
                    raise ValueError(
                        f"check_groups: {group.name}: {test} changes the outputs by "
                        f"{difference:.2g}, more than {limit:.2g}"
                    )
                worst[k] = max(worst[k], difference)
            seen[k] |= _effect(rng, program, arrays, plain, group) > limit
    for group, is_seen in zip(fitted, seen):
        if not is_seen:
            raise ValueError(
                f"check_groups: {group.name}: the outputs do not depend on the units, "
                "neither with the given parameters nor with random ones, so that "
                "nothing is proven"
            )
    return tuple(worst)


def _check_degrees(group: Group) -> None:
    """Refuses a pair that leaves a side as it is, or scales entries twice."""
    makers = [m for m in group.producers if m.degree == 1]
    if not makers or any(m.degree != -1 for m in group.consumers):
        degrees = ", ".join(
            f"{m.path} {m.degree}" for m in (*group.producers, *group.consumers)
        )
        raise ValueError(
            f"check_groups: {group.name}: a pair needs a producer of degree 1 and "
            f"consumers of degree -1, got {degrees}"
        )
    for member in group.members:
        carried = {u for axis in member.axes for u in axis.units}
        if member.degree and not carried.issuperset(range(len(group.sizes))):
            raise ValueError(
                f"check_groups: {group.name}: entries of {member.path} are shared by "
                f"several units; one that is rescaled needs all {len(group.sizes)} "
                "unit indices among its axes"
            )


class _Changed:
    """Arrays of which those of a group's members are changed, one after the other."""

    def __init__(self, program: _program.Program, arrays: Sequence[Leaf], group: Group):
        self._program, self._arrays, self._sizes = program, list(arrays), group.sizes

    def outputs(self) -> list[np.ndarray]:
        """What the program returns now."""
        return self._program.run(self._arrays)

    def scale(self, member: Member, factors: np.ndarray) -> None:
        """Multiplies the numbers of each unit by its factor, ``[units]``."""
        x, where = self._get(member)
        spread = np.ones(_extent(x, member), np.float64)
        spread[where] = factors.reshape(-1, 1)
        self._set(member, x * _beside(spread, x, member).astype(x.dtype))

    def clear(self, members: Iterable[Member], units: np.ndarray) -> None:
        """Sets the numbers of some units, bool ``[units]``, to zero."""
        for member in members:
            self.scale(member, np.where(units, 0.0, 1.0))

    def replace(
        self, members: Iterable[Member], units: np.ndarray, rng: np.random.Generator
    ) -> None:
        """Replaces the numbers that belong to some units, bool ``[units]``, alone."""
        for member in members:
            x, where = self._get(member)
            if not _program.is_float(x):
                continue
            own = np.zeros(_extent(x, member), bool)
            own[where[units]] = True
            own[where[~units]] = False
            factors = np.exp(rng.standard_normal(x.shape, np.float32))
            if (x < 0).any():
                factors *= rng.choice([-1, 1], x.shape)
            new = x * factors.astype(x.dtype)
            self._set(member, np.where(_beside(own, x, member), new, x))

    def move(self, member: Member, order: np.ndarray) -> None:
        """Gives every unit the numbers of another one, ``[units]``."""
        x, where = self._get(member)
        axes = _carrying(member)
        front = np.moveaxis(x, axes, range(len(axes)))
        rows = front.reshape(_extent(x, member), -1).copy()
        rows[where] = rows[where[order]]
        self._set(
            member, np.moveaxis(rows.reshape(front.shape), range(len(axes)), axes)
        )

    def _get(self, member: Member) -> tuple[np.ndarray, np.ndarray]:
        """The array, and the flat indices ``[units, positions]`` over its unit axes."""
        x = np.asarray(self._arrays[self._program.place(member)])
        return x, _layout.unit_indices(member, self._sizes, x.shape)[0]

    def _set(self, member: Member, values: np.ndarray) -> None:
        place = self._program.place(member)
        self._arrays[place] = _program.like(self._arrays[place], values)


def _carrying(member: Member) -> list[int]:
    return sorted({a.axis for a in member.axes})


def _extent(x: np.ndarray, member: Member) -> int:
    """How many indices the axes have that carry the units."""
    return math.prod(x.shape[i] for i in _carrying(member))


def _beside(flat: np.ndarray, x: np.ndarray, member: Member) -> np.ndarray:
    """Brings one number for each index of the unit axes into the array's shape."""
    axes = _carrying(member)
    return flat.reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])


def _incoming(group: Group) -> tuple[Member, ...]:
    """What makes the units, statistics included."""
    return (
        *group.producers, *group.biases, *group.scales, *group.fixed, *group.states
    )  # fmt: skip


def _some(rng: np.random.Generator, group: Group) -> np.ndarray:
    """About half of the units, one at least: bool ``[units]``."""
    units = rng.random(group.size) < 0.5
    units[rng.integers(group.size)] = True
    return units


def _tests(
    rng: np.random.Generator,
    program: _program.Program,
    arrays: Sequence[Leaf],
    plain: list[np.ndarray],
    group: Group,
) -> Iterator[tuple[str, list[np.ndarray], list[np.ndarray]]]:
    """What is done to a group, and the outputs before and after."""
    incoming, units = _incoming(group), _some(rng, group)
    names = ", ".join(m.path for m in incoming)

    changed = _Changed(program, arrays, group)
    changed.clear(group.consumers, units)
    before = changed.outputs()
    changed.replace(incoming, units, rng)
    changed.clear(group.consumers, units)  # one of them may be a producer as well
    yield f"replacing {names} of units that nothing reads", before, changed.outputs()

    if (order := _order(rng, group)) is not None:
        changed = _Changed(program, arrays, group)
        # A tied kernel is a member twice, with the same axes: it moves once.
        once = {(program.place(m), m.axes): m for m in group.carriers}
        for member in once.values():
            changed.move(member, order)
        yield "permuting the units in all its members", plain, changed.outputs()

    if _keeps_zero(group):
        made = (*group.producers, *group.biases)
        changed = _Changed(program, arrays, group)
        changed.clear(made, units)
        before = changed.outputs()
        changed.replace(group.consumers, units, rng)
        changed.clear(made, units)
        names = ", ".join(m.path for m in group.consumers)
        yield (
            f"replacing {names} of units that nothing feeds",
            before,
            changed.outputs(),
        )

    if group.homogeneous:
        powers = rng.uniform(0.5, 1, group.size) * rng.choice([-1, 1], group.size)
        for factors in (10.0**powers, 10.0**-powers):
            changed = _Changed(program, arrays, group)
            for member in group.members:
                if member.degree:
                    changed.scale(member, factors**member.degree)
            yield "rescaling", plain, changed.outputs()


def _effect(
    rng: np.random.Generator,
    program: _program.Program,
    arrays: Sequence[Leaf],
    plain: list[np.ndarray],
    group: Group,
) -> float:
    """How far the outputs depend on the incoming side of the units."""
    changed = _Changed(program, arrays, group)
    changed.replace(_incoming(group), np.ones(group.size, bool), rng)
    return _program.difference(plain, changed.outputs())


def _keeps_zero(group: Group) -> bool:
    """Whether the group says that a unit is zero where nothing feeds it."""
    if group.states and not group.homogeneous:
        return False  # a running mean is subtracted from what is zero
    if group.keeps_zero is None:
        return group.homogeneous and not group.states
    return group.keeps_zero


def _order(rng: np.random.Generator, group: Group) -> np.ndarray | None:
    """Which unit takes whose place: another one in the same layer, where it can be.

    Only the last index of a unit is ever cut, and in every layer other entries of it.
    Where the units carry an array that is no member, they are told apart by it.
    """
    last = len(group.sizes) - 1
    if group.carries or group.sizes[last] < 2:
        return None
    shared = False
    for member in group.carriers:
        carried = [u for a in member.axes for u in a.units if u is not None]
        if carried.count(last) != 1:
            return None
        shared |= len(carried) < len(group.sizes)
    layers = np.arange(group.size).reshape(-1, group.sizes[last])
    cycles = rng.permuted(np.broadcast_to(layers[0], layers.shape), axis=-1)
    if shared:
        cycles[:] = cycles[0]
    order = np.empty_like(layers)
    np.put_along_axis(order, cycles, np.roll(cycles, 1, axis=-1), axis=-1)
    return (order + layers[:, :1]).reshape(-1)
