"""Which weights a transformation acts on, by their key paths.

Everything of ours that selects is a plain object, never a callable:
``optax.inject_hyperparams`` takes every callable argument for a schedule.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from volax import _paths
from volax._types import Leaf, Selection, Tree


class Mask:
    """A selection of weights by key path and shape; a plain object, not a callable."""

    def selects(self, path: str, leaf: Leaf) -> bool:
        """Whether the leaf of this key path is selected."""
        raise NotImplementedError

    def tree(self, params: optax.Params) -> Tree:
        """The selection as a tree of bools, for the ``mask`` argument of Optax.

        Args:
          params: the parameters.

        Returns:
          A tree of the same structure with a bool at each leaf.
        """
        return _paths.map_with_path(
            lambda path, leaf: self.selects(_paths.key_path(path), leaf), params
        )


@dataclasses.dataclass(frozen=True)
class _PathMatches(Mask):
    regex: str

    def selects(self, path: str, leaf: Leaf) -> bool:
        return re.search(self.regex, path) is not None


# What Flax (bias, scale), Haiku (scale, offset) and Equinox (bias) call the parameters
# that are added to units or multiply them. These have several axes in places: the bias
# of an attention projection in Flax is [heads, size], that of a convolution in Equinox
# [channels, 1, 1], the scale of a batch norm in Haiku [1, 1, 1, channels].
_NO_MATRICES = {"bias", "scale", "offset"}


def is_matrix(path: str, leaf: Leaf) -> bool:
    """Whether ``"matrices"`` selects a leaf: two or more axes, not called a bias."""
    return getattr(leaf, "ndim", 0) >= 2 and path.rpartition("/")[2] not in _NO_MATRICES


@dataclasses.dataclass(frozen=True)
class _Paired(Mask):
    paths: frozenset[str]
    inside: bool

    def selects(self, path: str, leaf: Leaf) -> bool:
        return is_matrix(path, leaf) and (path in self.paths) == self.inside


@dataclasses.dataclass(frozen=True)
class Only(Mask):
    """The leaves of given key paths."""

    paths: frozenset[str]

    def selects(self, path: str, leaf: Leaf) -> bool:
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


def selected(mask: Selection, tree: Tree, name: str) -> set[str]:
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
    leaves = _paths.named_leaves(tree)
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


def _optax_mask(mask: Tree, tree: Tree, name: str) -> set[str]:
    bools = mask(tree) if isinstance(mask, Callable) else mask
    if jax.tree_util.all_leaves([bools]):
        raise ValueError(
            f"{name}: mask resolved to the single value {bools!r}, expected a tree "
            "of bools; under optax.inject_hyperparams a mask function is taken for a "
            "schedule unless static_args names it"
        )
    values = _paths.by_prefix(bools, tree, f"{name}: mask")
    for path, value in values.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(
                f"{name}: mask at {path!r} must be a bool, got {type(value).__name__}"
            )
    return {path for path, value in values.items() if value}
