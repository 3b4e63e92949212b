"""What training left in the weights: ``report``."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from volax import _modules, _nnx, _paths, masks
from volax._numerics import inside
from volax._types import Function, Leaf, Selection, Tree
from volax.compress._cut import cutting
from volax.compress._fitted import fitted, is_composed
from volax.compress._kinds import OTHER, PARAMETER, STATE, kinds
from volax.compress._measure import histogram, measures, stable_rank, unit_norms
from volax.compress._plan import plan
from volax.compress._reports import GroupReport, LeafReport, Report
from volax.compress.packing import Packed, is_packed
from volax.compress.quantize import walls_of
from volax.pairs._trace.count import multiply_adds
from volax.pairs.records import Group, Written
from volax.pairs.result import ACTIVATIONS


def report(
    params: Tree,
    groups: Written | Iterable[Written] | None = None,
    *,
    volume: Tree = None,
    mask: Selection = "matrices",
    fn: Function | None = None,
    inputs: Tree = None,
) -> Report:
    r"""Counts what training left in the weights, by array and in total.

    Args:
      params: a tree of arrays, packed ones included, Linen variables, or an NNX or
        Equinox module.
      groups: from ``find_groups`` or :func:`volax.pair`; without them nothing is said
        about units.
      volume: the wall V of :func:`volax.volumize`: a number, an array that broadcasts
        to the leaves, or a pytree prefix of these; infinity means no wall. Of a
        schedule or ``relative_to_init`` give the numbers, which the optimizer's state
        tells. A weight is at the wall from four ulps below V on.
      mask: the leaves behind the wall, as in :func:`volax.volumize`.
      fn: the model, ``fn(params, *inputs)``, to count multiply-adds on; it is traced,
        not run. A module that holds its parameters needs ``inputs`` alone.
      inputs: a tuple of the model's other arguments, arrays or
        ``jax.ShapeDtypeStruct``.

    Returns:
      A :class:`Report`: ``print`` it for the table; ``to_dict()`` gives plain JSON
      values, ``figure()`` a figure of Matplotlib. What is "left" assumes that
      :func:`volax.compact` removes all dead units.

    Raises:
      ValueError: a group or an entry of ``volume`` does not fit the tree.

    Example:
      >>> import jax.numpy as jnp, volax
      >>> params = {"w1": jnp.eye(3), "w2": jnp.array([[1.0], [0.0], [2.0]])}
      >>> found = report(params, volax.pair("w1", "w2"))
      >>> found.total["alive"], found.total["left"], found.leaves[0].zeros
      (2, 8, 6)

    References:
      Path norm: Yang et al., `A Better Way to Decay <https://arxiv.org/abs/2210.03069>`_,
      2022. Stable rank: Rudelson and Vershynin, `Sampling from large matrices
      <https://arxiv.org/abs/math/0503442>`_, 2007.
    """
    tree, merge = _modules.split(params)
    runs = _modules.is_module(params)
    model = _modules.called if runs and fn is None else fn
    kind = kinds(tree)
    flat = _paths.flatten_with_path(tree, is_packed)
    named = {_paths.key_path(path): node for path, node in flat}
    nodes = {k: v for k, v in named.items() if kind[k] != OTHER}
    arrays = {k: _array(v) for k, v in nodes.items()}
    weights = {k: v for k, v in arrays.items() if kind[k] == PARAMETER}
    walls = {}
    if volume is not None:
        shapes = _unpacked(tree)
        behind = masks.selected(mask, shapes, "report") & weights.keys()
        walls = walls_of(volume, shapes, "report", behind, finite=False)
    if fn is not None and inputs is None and not runs:
        raise ValueError("report: fn needs inputs, a tuple of its other arguments")
    traced = model is not None and inputs is not None
    if model is not None and inputs is not None:
        given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        counts = multiply_adds(
            lambda tree, *xs: model(merge(tree), *xs), _unpacked(tree), given
        )
    else:
        counts = {k: v.size for k, v in weights.items() if v.ndim > 1}
    apart = {path for path, k in kind.items() if k == STATE and not runs}
    found = fitted(() if groups is None else groups, arrays, "report", apart)
    units, left = _units(found, arrays, _nnx.owners(params))
    rows, made = [], _made(found, units)
    for path, array in arrays.items():
        wall = walls.get(path) if _is_real(array) else None
        wall = None if wall is None or not np.isfinite(wall).any() else wall
        rows.append(
            _leaf(path, kind[path], nodes[path], array, wall)(
                units=made.get(path, (None, None))[0],
                alive=made.get(path, (None, None))[1],
                multiply_adds=counts.get(path, 0),
                left=left.get(path, array.size),
            )
        )
    total = sum(r.multiply_adds for r in rows) + counts.get(ACTIVATIONS, 0)
    # Of the matrices, if there are any.
    drawn = {k: v for k, v in weights.items() if v.ndim > 1} or weights
    largest = max((r.largest for r in rows if r.path in drawn), default=0.0)
    other = sum(int(np.size(named[k])) for k in named if kind[k] == OTHER)
    bars = histogram(drawn.values(), largest)
    return Report(tuple(rows), units, total, traced, bars, other)


def _is_real(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _array(node: Leaf) -> np.ndarray:
    return np.asarray(node.unpack() if is_packed(node) else node)


def _unpacked(tree: Tree) -> Tree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if is_packed(x) else x,
        tree,
        is_leaf=is_packed,
    )


def _units(
    groups: tuple[Group, ...], arrays: dict[str, np.ndarray], owners: dict[str, str]
) -> tuple[tuple[GroupReport, ...], dict[str, int]]:
    """The rows of the groups, and how many weights of each leaf stay."""
    planned = plan(
        groups,
        arrays,
        round_to=1,
        keep=None,
        proven=True,
        folding="counted",
        owners=owners,
    )
    shapes = {k: v.shape for k, v in arrays.items()}
    rows = []
    judged = zip(groups, planned.names, planned.gone, planned.unread)
    for group, name, gone, unread in judged:
        incoming = unit_norms(group.producers, group.sizes, arrays)
        outgoing = unit_norms(group.consumers, group.sizes, arrays)
        with np.errstate(invalid="ignore"):  # of a model that diverged, 0 times inf
            norms = incoming * outgoing
        rows.append(
            GroupReport(
                name=name,
                units=group.size,
                alive=int((~gone).sum()),
                unread=int(unread.sum()),
                unfed=int((gone & ~unread).sum()),
                path_norms=tuple(np.sort(norms.reshape(-1))[::-1].tolist()),
                composed=is_composed(group, groups, shapes),
            )
        )
    after = cutting(groups, planned.stay, shapes)
    left = {path: math.prod(after.shapes[path]) for path in after.cuts}
    return tuple(rows), left


def _made(
    groups: Sequence[Group], units: Sequence[GroupReport]
) -> dict[str, tuple[int, int]]:
    """How many units each producer makes, and how many of them are alive."""
    made: dict[str, tuple[int, int]] = {}
    for composed in (False, True):
        found: dict[str, tuple[int, int]] = {}
        for group, row in zip(groups, units):
            for member in group.producers if row.composed == composed else ():
                count, alive = found.get(member.path, (0, 0))
                found[member.path] = (count + row.units, alive + row.alive)
        made = found | made
    return made


def _leaf(
    path: str, kind: str, node: Leaf, array: np.ndarray, wall: np.ndarray | None
) -> Callable[..., LeafReport]:
    """All of a leaf's row that its own numbers tell."""
    found = measures(array, None if wall is None else inside(wall, array.dtype))
    is_matrix = array.ndim > 1 and _is_real(array)

    def row(**rest: Any) -> LeafReport:
        return LeafReport(
            path=path,
            kind=kind,
            shape=array.shape,
            dtype=f"{node.bits} bit" if isinstance(node, Packed) else str(array.dtype),
            size=array.size,
            zeros=found.zeros,
            at_wall=found.at_wall,
            wall=None if wall is None else float(wall[np.isfinite(wall)].max()),
            norm=found.norm,
            largest=found.largest,
            stable_rank=stable_rank(array, found.norm) if is_matrix else None,
            bytes=node.nbytes,
            **rest,
        )

    return row
