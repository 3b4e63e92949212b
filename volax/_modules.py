"""Modules that hold their own parameters, of Flax NNX and of Equinox, in one form."""

from collections.abc import Callable
from typing import Any

from volax import _equinox, _nnx


def is_module(model: Any) -> bool:
    """Whether the model holds its parameters itself; imports nothing."""
    return _nnx.is_module(model) or _equinox.is_module(model)


def called(model: Any, *inputs: Any, **keywords: Any) -> Any:
    """A module as a function of itself and its inputs."""
    return model(*inputs, **keywords)


def split(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
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

        def sized(new: Any) -> Any:
            module = merge(new)
            _nnx.resize(module, tree)
            return module

        return state, sized
    if _equinox.holds_module(tree):
        return _equinox.split(tree)
    return tree, lambda new: new
