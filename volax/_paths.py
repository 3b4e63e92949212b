"""Key paths: the text of a leaf's place in a tree, the same in all frameworks.

A key path is a text such as ``l1/kernel``. Libraries spell the raw path differently,
and Flax NNX spells it differently at ``init`` and at ``update``, so two things are
dropped: the step ``value`` into a box around a parameter (``nnx.Variable``,
``nn.Partitioned``) and a leading Linen collection ``params/``. A parameter that is
itself called ``value`` keeps its name: the box is known by its class, not by the name
of the step. Equinox and Haiku trees keep their own spelling.
"""

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from volax._types import KeyPath, Leaf, Tree

IsLeaf = Callable[[Any], bool]

_VALUE = jax.tree_util.GetAttrKey("value")


def is_absent(node: object) -> bool:
    """Whether a node of a tree stands for a leaf that is not there."""
    return node is None or isinstance(node, optax.MaskedNode)


def flatten_with_path(
    tree: Tree, is_leaf: IsLeaf | None = None
) -> list[tuple[KeyPath, Leaf]]:
    """The leaves of a tree and their key paths, without the steps into boxes.

    Args:
      tree: a pytree.
      is_leaf: as in ``jax.tree_util.tree_flatten_with_path``.

    Returns:
      Key path and leaf of each leaf, in the tree's order.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    boxes = _boxes()
    if not boxes or not any(_VALUE in path for path, _ in flat):
        return flat
    return _without_boxes(tree, boxes, is_leaf, None)


def map_with_path(
    fn: Callable[[KeyPath, Leaf], Leaf],
    tree: Tree,
    is_leaf: IsLeaf | None = None,
) -> Tree:
    """``tree_map_with_path`` with the key paths of :func:`flatten_with_path`."""
    structure = jax.tree.structure(tree, is_leaf=is_leaf)
    return structure.unflatten(
        fn(path, leaf) for path, leaf in flatten_with_path(tree, is_leaf)
    )


def _boxes() -> tuple[type, ...]:
    """The classes of Flax that hold one parameter as ``value``, if Flax is loaded."""
    places = (("flax.nnx", "Variable"), ("flax.core.meta", "AxisMetadata"))
    found = (getattr(sys.modules.get(room), name, None) for room, name in places)
    return tuple(kind for kind in found if kind is not None)


def _without_boxes(
    tree: Tree, boxes: tuple[type, ...], is_leaf: IsLeaf | None, root: object
) -> list[tuple[KeyPath, Leaf]]:
    """Leaves with their paths; ``root`` is the box around them, if there is one."""

    def stops(node: object) -> bool:
        is_box = node is not root and isinstance(node, boxes)
        return is_box or (is_leaf is not None and is_leaf(node))

    found = []
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=stops)[0]:
        if node is root or not isinstance(node, boxes):
            found.append((path, node))
            continue
        for below, leaf in _without_boxes(node, boxes, is_leaf, node):
            found.append((path + below[below[:1] == (_VALUE,) :], leaf))
    return found


def key_path(path: KeyPath) -> str:
    """The text of a key path.

    Args:
      path: a key path as :func:`flatten_with_path` gives it.

    Returns:
      The names joined by ``/``.
    """
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    return text.removeprefix("params/")


def named_leaves(tree: Tree, *, absent: bool = False) -> dict[str, Leaf]:
    """The leaves of a tree by key path, in the tree's order.

    Args:
      tree: a pytree.
      absent: whether ``None`` and ``optax.MaskedNode`` count as leaves.

    Returns:
      A dictionary from key path to leaf.

    Raises:
      ValueError: two leaves share one key path.
    """
    is_leaf = is_absent if absent else None
    named = {}
    for path, leaf in flatten_with_path(tree, is_leaf):
        name = key_path(path)
        if name in named:
            raise ValueError(f"two leaves of the tree share the key path {name!r}")
        named[name] = leaf
    return named


def nearest(name: str, names: Iterable[str]) -> str:
    """The hint that ends an error about a key path which is not in the tree."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    return f"the tree has {len(names)} leaves, the nearest: {', '.join(close)}"


def by_prefix(prefix: Tree, tree: Tree, what: str) -> dict[str, Leaf]:
    """Gives each leaf the value of a prefix tree that stands at or above it.

    Matching goes by key path, so the prefix may be a plain dictionary whatever
    container the parameters use.

    Args:
      prefix: a value for all leaves, or a tree of values.
      tree: the parameters.
      what: the argument's name, for errors.

    Returns:
      A dictionary from key path to value; leaves under no entry are left out.

    Raises:
      ValueError: an entry stands above no leaf.
    """
    entries = {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for path, value in flatten_with_path(prefix)
    }
    values, used, names = {}, set(), []
    for path, _ in flatten_with_path(tree, is_absent):
        raw = jax.tree_util.keystr(path, simple=True, separator="/")
        name = key_path(path)
        names.append(name)
        above = [k for k in {*_places(raw), *_places(name)} if k in entries]
        used.update(above)
        if above:
            values[name] = entries[max(above, key=len)]
    for key in entries.keys() - used - {""}:
        raise ValueError(
            f"{what}: the entry {key!r} stands above no leaf; {nearest(key, names)}"
        )
    return values


def _places(path: str) -> list[str]:
    """The key paths at or above one, the root ``""`` among them."""
    ends = [i for i, letter in enumerate(path) if letter == "/"]
    return ["", *(path[:end] for end in ends), path]


def is_above(key: str, path: str) -> bool:
    """Whether a key path is another one, or stands above it in the tree."""
    return not key or path == key or path.startswith(key + "/")
