"""Names for values of which only the user's program knows the class.

To a type checker they are anything, since trees, layers and models are of the classes
of whatever library the user has; the names tell a reader which of them is meant.
"""

from collections.abc import Callable
from typing import Any

Tree = Any  # a pytree of arrays, or a module that holds one
Leaf = Any  # a leaf of one: an array of JAX or NumPy, its shape, packed weights
Module = Any  # a layer or a model of Flax, Equinox or Haiku
Model = Any  # a function of parameters and inputs, or a module
Library = Any  # an optional library, which is imported only where it is there
Function = Callable[..., Any]  # of the user, or of a library

KeyPath = tuple[Any, ...]  # the keys of JAX along a key path
Shape = tuple[int, ...]
Json = dict[str, Any]  # a JSON object
Selection = Any  # what selects weights, as volax.masks.selected takes it
