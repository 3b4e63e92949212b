"""What a model costs as a function of how many units of its groups are left.

Cutting units shortens axes: of n entries of an axis that belong to a group of u units,
n * c / u are left with c units. Entries may belong to several groups (a flattened
[heads * size] to heads and to channels), and other entries of the same axis to others
(a concatenation). So the length of an axis is a sum over sets of groups, each of
entries times the shares left of these groups' units; the size of a parameter is the
product of its axes, and the whole cost a polynomial in the shares. It is kept as such:
a few hundred numbers, evaluated by one gather and one dot product.
"""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from volax.pairs._cuts import cut_axis, uncuttable
from volax.pairs.records import Group
from volax.pairs.result import ACTIVATIONS, Groups, Product

MEASURES = ("multiply_adds", "bytes")


@dataclasses.dataclass(frozen=True)
class Cost:
    """A polynomial in the shares of units that are left, one for each group.

    Attributes:
      total: the cost with all units.
      rows: for each group the number of units in a row of its last index.
      weights: of each term its part of the total, float64 ``[terms]``.
      units: of each term the groups whose shares it is multiplied by, int ``[terms,
        factors]``; the number of groups stands for none.
    """

    total: float
    rows: tuple[int, ...]
    weights: np.ndarray
    units: np.ndarray

    def share(self, left: Sequence[Any]) -> Any:
        """The share of the total that is left, float, shape ``()``.

        Args:
          left: for each group how many units stay in each row, Python integers or
            arrays that may be traced; :func:`units_left` counts them.
        """
        xp = np if all(isinstance(c, int) for c in left) else jnp
        shares = [xp.asarray(c, float) / n for c, n in zip(left, self.rows)]
        shares = xp.stack([*shares, xp.ones((), float)])
        terms = xp.prod(shares[self.units], axis=1)
        return xp.sum(xp.asarray(self.weights, float) * terms)


def units_left(alive: Any) -> jax.Array:
    """How many units stay in each row if these are alive, int, shape ``()``.

    All rows (layers of a stack, heads of a projection) are cut to one size, and
    ``compact`` leaves at least one unit.
    """
    return jnp.maximum(jnp.sum(alive, axis=-1).max(), 1)


def cost(
    groups: Sequence[Group],
    shapes: Mapping[str, Any],
    measure: str = "multiply_adds",
    products: Iterable[Product] = (),
) -> Cost:
    """The cost of a model as a function of the units that are left.

    Args:
      groups: fitted groups; those that cannot be cut keep all units whatever is left.
      shapes: all parameters by key path, arrays or ``jax.ShapeDtypeStruct``.
      measure: ``"multiply_adds"`` or ``"bytes"``.
      products: ``Groups.products`` of the same groups. Without them every weight of a
        matrix counts as one multiply-add. What is multiplied by a part of a weight
        alone is counted as if it were by all of it, alike.

    Returns:
      The cost.
    """
    sizes = {path: tuple(jnp.shape(leaf)) for path, leaf in shapes.items()}
    if measure == "bytes":
        products = [
            Product(math.prod(s) * jnp.dtype(shapes[path].dtype).itemsize, path)
            for path, s in sizes.items()
        ]
    elif not products:
        products = [Product(math.prod(s), path) for path, s in sizes.items() if s[1:]]
    lengths = _lengths(groups, sizes)
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for product in products:
        if product.path == ACTIVATIONS:
            cut = (k for k in product.units if k in lengths.cuttable)
            found[tuple(cut)] += product.multiply_adds
            continue
        shape = sizes.get(product.path, ())
        axes = [lengths.of(product.path, k, n) for k, n in enumerate(shape)]
        entries = max(math.prod(shape), 1)
        for chosen in itertools.product(*(axis.items() for axis in axes)):
            owners = tuple(sorted(k for ks, _ in chosen for k in ks))
            part = math.prod(n for _, n in chosen)
            found[owners] += product.multiply_adds * part / entries
    terms = {owners: weight for owners, weight in found.items() if weight}
    total = sum(terms.values())
    width = max(map(len, terms), default=0)
    padded = [(*owners, *[len(groups)] * (width - len(owners))) for owners in terms]
    return Cost(
        total=total,
        rows=tuple(g.sizes[-1] for g in groups),
        weights=np.array([*terms.values()], float) / max(total, 1),
        units=np.array(padded, int).reshape(len(terms), width),
    )


@dataclasses.dataclass
class _Lengths:
    """Which groups the entries of axes belong to."""

    cuttable: set[int]
    owned: dict[tuple[str, int], dict[int, np.ndarray]]

    def of(self, path: str, axis: int, length: int) -> Counter[tuple[int, ...]]:
        """The entries of an axis, counted by the groups whose units they are."""
        owned = self.owned.get((path, axis), {})
        masks = np.array([*owned.values()], bool).reshape(len(owned), length)
        found: Counter[tuple[int, ...]] = Counter()
        kinds, counts = np.unique(masks, axis=1, return_counts=True)
        for kind, count in zip(kinds.T, counts.tolist()):
            found[tuple(k for k, is_in in zip(owned, kind) if is_in)] += count
        return found


def _lengths(groups: Sequence[Group], sizes: Mapping[str, tuple[int, ...]]) -> _Lengths:
    """For each axis the groups that shorten it, with their entries as bools."""
    found = _Lengths(set(), {})
    for k, group in enumerate(groups):
        there = tuple(m for m in group.states if m.path in sizes)
        here = dataclasses.replace(group, states=there)
        if any(m.path not in sizes for m in here.carriers):
            continue
        if uncuttable(here, {}, sizes) is not None:
            continue
        found.cuttable.add(k)
        for member in here.carriers:
            axis = cut_axis(member, group.sizes)
            owned = found.owned.setdefault((member.path, axis.axis), {})
            length = sizes[member.path][axis.axis]
            mask = owned.setdefault(k, np.zeros(length, bool))
            mask[axis.indices().reshape(-1)] = True
    return found


def products_of(groups: Any) -> tuple[Product, ...]:
    """The multiply-adds that a user's ``groups`` carry; only a search counts them."""
    return groups.products if isinstance(groups, Groups) else ()


def of_some(
    groups: Any,
    found: Mapping[int, Group],
    leaves: Mapping[str, Any],
    measure: str = "multiply_adds",
) -> Cost:
    """What a model costs by the units of some of a user's ``groups``.

    Args:
      groups: as the user gave them.
      found: some of them, fitted, by their number.
      leaves: all parameters by key path, some of which may be absent.
      measure: as in :func:`cost`.

    Returns:
      The cost as a function of the units left of each group that was found.
    """
    some = groups.chosen([*found]) if isinstance(groups, Groups) else ()
    there = {path: leaf for path, leaf in leaves.items() if hasattr(leaf, "shape")}
    return cost([*found.values()], there, measure, products_of(some))
