"""Which weights a transformation acts on, by key paths that mean the same everywhere.

A key path is the text of a leaf's place in the parameter tree, such as
``l1/kernel``. Libraries spell the raw path differently, and Flax NNX spells it
differently at ``init`` and at ``update``, so two things are dropped: the step
``value`` into a box around a parameter (``nnx.Variable``, ``nn.Partitioned``) and a
leading Linen collection ``params/``. A parameter that is itself called ``value`` keeps
its name: the box is known by its class, not by the name of the step. Equinox and Haiku
trees keep their own spelling.

Everything of ours that selects is a plain object, never a callable:
``optax.inject_hyperparams`` takes every callable argument for a schedule.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax

_VALUE = jax.tree_util.GetAttrKey("value")


def is_absent(node: Any) -> bool:
    """Whether a node of a tree stands for a leaf that is not there."""
    return node is None or isinstance(node, optax.MaskedNode)


def flatten_with_path(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[tuple[Any, ...], Any]]:
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
    fn: Callable[[tuple[Any, ...], Any], Any],
    tree: Any,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
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
    tree: Any, boxes: tuple[type, ...], is_leaf: Any, root: Any
) -> list[tuple[tuple[Any, ...], Any]]:
    """Leaves with their paths; ``root`` is the box around them, if there is one."""

    def stops(node: Any) -> bool:
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


def key_path(path: tuple[Any, ...]) -> str:
    """The text of a key path.

    Args:
      path: a key path as :func:`flatten_with_path` gives it.

    Returns:
      The names joined by ``/``.
    """
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    return text.removeprefix("params/")


def named_leaves(tree: Any, *, absent: bool = False) -> dict[str, Any]:
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


def by_prefix(prefix: Any, tree: Any, what: str) -> dict[str, Any]:
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


class Mask:
    """A selection of weights by key path and shape; a plain object, not a callable."""

    def selects(self, path: str, leaf: Any) -> bool:
        """Whether the leaf of this key path is selected."""
        raise NotImplementedError

    def tree(self, params: optax.Params) -> Any:
        """The selection as a tree of bools, for the ``mask`` argument of Optax.

        Args:
          params: the parameters.

        Returns:
          A tree of the same structure with a bool at each leaf.
        """
        return map_with_path(
            lambda path, leaf: self.selects(key_path(path), leaf), params
        )


@dataclasses.dataclass(frozen=True)
class _PathMatches(Mask):
    regex: str

    def selects(self, path: str, leaf: Any) -> bool:
        return re.search(self.regex, path) is not None


# What Flax (bias, scale), Haiku (scale, offset) and Equinox (bias) call the parameters
# that are added to units or multiply them. These have several axes in places: the bias
# of an attention projection in Flax is [heads, size], that of a convolution in Equinox
# [channels, 1, 1], the scale of a batch norm in Haiku [1, 1, 1, channels].
_NO_MATRICES = {"bias", "scale", "offset"}


def is_matrix(path: str, leaf: Any) -> bool:
    """Whether ``"matrices"`` selects a leaf: two or more axes, not called a bias."""
    return getattr(leaf, "ndim", 0) >= 2 and path.rpartition("/")[2] not in _NO_MATRICES


@dataclasses.dataclass(frozen=True)
class _Paired(Mask):
    paths: frozenset[str]
    inside: bool

    def selects(self, path: str, leaf: Any) -> bool:
        return is_matrix(path, leaf) and (path in self.paths) == self.inside


@dataclasses.dataclass(frozen=True)
class Only(Mask):
    """The leaves of given key paths."""

    paths: frozenset[str]

    def selects(self, path: str, leaf: Any) -> bool:
        """Whether the key path is one of the given ones."""
        return path in self.paths


def path_matches(regex: str) -> Mask:
    """A mask of the leaves whose key path matches a regular expression.

    Args:
      regex: searched (``re.search``) in key paths such as ``encoder/l1/kernel``.

    Returns:
      A mask for any transformation of volax; ``.tree`` is the same mask as a
      function for Optax's own ``mask`` arguments.

    Raises:
      ValueError: ``regex`` is not a regular expression.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"l1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> path_matches("kernel$").tree(params)
      {'l1': {'bias': False, 'kernel': True}}
    """
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"path_matches: regex must be a regular expression, got {regex!r}: {error}"
        ) from error
    return _PathMatches(regex)


def unpaired(pairs: Any) -> Mask:
    """A mask of the matrices that belong to no pair: those get ordinary weight decay.

    The path penalty replaces weight decay on the weights of a pair; decaying them
    as well would count them twice. Biases and other vectors are not selected.

    Args:
      pairs: one pair, or an iterable of pairs.

    Returns:
      A mask; ``.tree`` is the same mask as a function for Optax's own arguments.

    Example:
      >>> import optax, volax
      >>> pairs = [volax.pair("l1/kernel", "l2/kernel", bias="l1/bias")]
      >>> decay = optax.add_decayed_weights(1e-4, mask=volax.unpaired(pairs).tree)
    """
    return _Paired(_members(pairs), inside=False)


def paired(pairs: Any) -> Mask:
    """A mask of the matrices that belong to a pair, the others than :func:`unpaired`.

    Together the two select what ``mask="matrices"`` does.

    Args:
      pairs: one pair, or an iterable of pairs.

    Returns:
      A mask; ``.tree`` is the same mask as a function for Optax's own arguments.

    Example:
      >>> import volax
      >>> pairs = [volax.pair("l1/kernel", "l2/kernel", bias="l1/bias")]
      >>> wall = volax.volumize(0.5, mask=volax.paired(pairs))
    """
    return _Paired(_members(pairs), inside=True)


def _members(pairs: Any) -> frozenset[str]:
    pairs = [pairs] if hasattr(pairs, "members") else pairs
    return frozenset(m.path for pair in pairs for m in pair.members)


def selected(mask: Any, tree: Any, name: str) -> set[str]:
    """The key paths of the leaves that a mask selects.

    Args:
      mask: ``"matrices"`` (see :func:`is_matrix`), ``None`` or ``"all"``, a
        :class:`Mask`, or an Optax mask (a tree of bools, a prefix of one, or a function
        of the parameters).
      tree: the parameters; absent leaves are never selected.
      name: the transformation, for errors.

    Returns:
      The selected key paths.

    Raises:
      ValueError: the mask is of no known kind, resolves to one bare bool, or selects
        nothing of a tree that has leaves.
    """
    leaves = named_leaves(tree)
    if mask is None:
        return set(leaves)
    if isinstance(mask, str):
        if mask == "all":
            return set(leaves)
        if mask != "matrices":
            raise ValueError(
                f"{name}: mask must be 'matrices', 'all', volax.path_matches(...), "
                f"volax.paired(...), volax.unpaired(...) or an Optax mask, got {mask!r}"
            )
        chosen = {path for path, leaf in leaves.items() if is_matrix(path, leaf)}
    elif isinstance(mask, Mask):
        chosen = {path for path, leaf in leaves.items() if mask.selects(path, leaf)}
    else:
        chosen = _optax_mask(mask, tree, name) & leaves.keys()
    if leaves and not chosen:
        raise ValueError(
            f"{name}: mask {mask!r} selects none of the {len(leaves)} leaves, "
            f"such as {', '.join(list(leaves)[:3])}"
            + ("; mask='all' takes vectors too" if mask == "matrices" else "")
        )
    return chosen


def _optax_mask(mask: Any, tree: Any, name: str) -> set[str]:
    bools = mask(tree) if isinstance(mask, Callable) else mask
    if jax.tree_util.all_leaves([bools]):
        raise ValueError(
            f"{name}: mask resolved to the single value {bools!r}, expected a tree "
            "of bools; under optax.inject_hyperparams a mask function is taken for a "
            "schedule unless static_args names it"
        )
    values = by_prefix(bools, tree, f"{name}: mask")
    for path, value in values.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(
                f"{name}: mask at {path!r} must be a bool, got {type(value).__name__}"
            )
    return {path for path, value in values.items() if value}
