"""Modules that hold their own parameters, of Flax NNX and of Equinox, in one form."""

from collections.abc import Callable

from volax import _equinox, _nnx
from volax._types import Model, Tree


def is_module(model: object) -> bool:
    """Whether the model holds its parameters itself; imports nothing."""
    return _nnx.is_module(model) or _equinox.is_module(model)


def called(model: Model, *inputs: object, **keywords: object) -> Tree:
    """A module as a function of itself and its inputs."""
    return model(*inputs, **keywords)


def split(tree: Tree) -> tuple[Tree, Callable[[Tree], Tree]]:
    """The arrays of a model, and what makes a model of others.

    Args:
      tree: an NNX module, an Equinox module, or any tree, which may hold some of the
        latter; it is left alone.

    Returns:
      A tree of arrays, and a function from such a tree with arrays of any shapes to
      the whole, with the size attributes of modules in line.
    """
    if _nnx.is_module(tree):
        state, merge = _nnx.split(tree)

        def sized(new: Tree) -> Tree:
            module = merge(new)
            _nnx.resize(module, tree)
            return module

        return state, sized
    if _equinox.holds_module(tree):
        return _equinox.split(tree)
    return tree, lambda new: new
