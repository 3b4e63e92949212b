"""What the user gave to ``compact``: arrays by key path, and the way back.

Running statistics may be given apart from the parameters, and may have the same names;
their key paths get ``state/`` in front.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax.core import Tracer

from volax import _modules, _paths
from volax._sharding import put_like
from volax._types import Leaf, Tree
from volax.compress._cut import replaced
from volax.compress._kinds import STATE, kinds
from volax.pairs.records import Group, Written

_STATE = "state/"


@dataclasses.dataclass
class Source:
    """What the user gave, as arrays by key path and the way back.

    Attributes:
      leaves: every array, the statistics that were given apart included.
      kinds: whether each is a parameter, state or something else.
      is_module: whether the parameters are those of an NNX or Equinox module.
      rebuilt: makes the model and the statistics anew, with other arrays at some key
        paths.
    """

    leaves: dict[str, Leaf]
    kinds: dict[str, str]
    is_module: bool
    rebuilt: Callable[[dict[str, Leaf]], tuple[Tree, Tree]]

    @classmethod
    def of(cls, params: Tree, state: Tree) -> "Source":
        """Takes apart what the user gave; refuses shapes and tracers."""
        tree, merge = _modules.split(params)
        leaves = _paths.named_leaves(tree)
        # The statistics of a layer, or its masks, may have the names of its parameters,
        # so that both trees hold the same key path.
        others = {_STATE + k: v for k, v in _paths.named_leaves(state).items()}
        for path in leaves.keys() & others.keys():
            raise ValueError(f"compact: {path!r} is in params as well as in state")
        for path, leaf in {**leaves, **others}.items():
            if isinstance(leaf, jax.ShapeDtypeStruct | Tracer):
                raise ValueError(
                    f"compact: {path!r} is no array but {type(leaf).__name__}"
                )

        def rebuilt(new: dict[str, Leaf]) -> tuple[Tree, Tree]:
            small = merge(replaced(tree, new))
            below = {k.removeprefix(_STATE): v for k, v in new.items() if k in others}
            return small, replaced(state, below)

        kind = {**kinds(tree), **dict.fromkeys(others, STATE)}
        is_module = _modules.is_module(params)
        return cls({**leaves, **others}, kind, is_module, rebuilt)

    @property
    def apart(self) -> set[str]:
        """Statistics that lie in collections of their own; in a module none does."""
        return (
            set()
            if self.is_module
            else {path for path, kind in self.kinds.items() if kind == STATE}
        )

    def like(self, path: str, array: Leaf) -> Leaf:
        """A changed array of the kind it had before."""
        leaf = self.leaves[path]
        return put_like(array, leaf) if isinstance(leaf, jax.Array) else array


def in_state(group: Written) -> Written:
    """A group whose statistics are looked up in ``state``."""
    if not isinstance(group, Written):
        return group
    states = (dataclasses.replace(m, path=_STATE + m.path) for m in group.states)
    return dataclasses.replace(group, states=tuple(states))


def out_of_state(group: Group) -> Group:
    """A group whose statistics have the key paths that the user gave."""
    states = (
        dataclasses.replace(m, path=m.path.removeprefix(_STATE)) for m in group.states
    )
    return dataclasses.replace(group, states=tuple(states))
