"""Which arrays of a model are parameters, which are state, and which are neither."""

import sys
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from volax import _paths
from volax._types import Library, Tree
from volax.compress.packing import is_packed

PARAMETER, STATE, OTHER = "parameter", "state", "other"


def kinds(tree: Tree) -> dict[str, str]:
    """The kind of every array by key path.

    In a state of NNX the class of the variable tells: ``nnx.Param`` is a parameter,
    ``nnx.RngState`` (keys and counters) is neither, and what else a model writes, such
    as ``nnx.BatchStat``, is state. Among Linen variables every collection but
    ``params`` is state. Elsewhere floating-point arrays and packed weights are
    parameters, and integers and random keys are neither.

    Args:
      tree: a tree of arrays, Linen variables, or the state of an NNX module.

    Returns:
      ``"parameter"``, ``"state"`` or ``"other"`` for each key path; packed weights
      have three, their own and those of the two arrays that hold them.
    """
    nnx = sys.modules.get("flax.nnx")
    variable = () if nnx is None else nnx.Variable
    in_collections = isinstance(tree, Mapping) and "params" in tree

    def is_node(node: object) -> bool:
        return is_packed(node) or isinstance(node, variable)

    around = []  # of each leaf the variable that holds it, or the leaf itself
    for node in jax.tree.leaves(tree, is_leaf=is_node):
        around += [node] * len(jax.tree.leaves(node, is_leaf=is_packed))
    found = {}
    for (path, leaf), node in zip(_paths.flatten_with_path(tree, is_packed), around):
        dtype = getattr(leaf, "dtype", None)  # a function has none
        dtype = np.result_type(leaf) if isinstance(leaf, float) else dtype
        if dtype is None or not jnp.issubdtype(dtype, np.generic):
            kind = OTHER
        elif isinstance(node, variable):
            kind = _of_variable(nnx, node)
        elif in_collections and path[0] != jax.tree_util.DictKey("params"):
            kind = STATE
        else:
            kind = PARAMETER if jnp.issubdtype(dtype, np.inexact) else OTHER
        inner = ("", "/data", "/scale") if is_packed(leaf) else ("",)
        found |= dict.fromkeys((_paths.key_path(path) + end for end in inner), kind)
    return found


def _of_variable(nnx: Library, variable: object) -> str:
    """The kind of an NNX variable, by its class."""
    if isinstance(variable, nnx.Param):
        return PARAMETER
    return OTHER if isinstance(variable, nnx.RngState) else STATE
