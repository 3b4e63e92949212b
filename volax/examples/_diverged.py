"""Finds the step and the weights at which a training stopped being finite.

An epoch tells its mean loss alone, so that looking costs nothing. Where that is no
number, the training runs once more from its last checkpoint, with an optimizer that
looks at every update.
"""

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from volax.examples._files import Checkpoints
from volax.examples.data import Dataset
from volax.examples.loop import Loop


class WatchedState(NamedTuple):
    """Of `watched`.

    Attributes:
      inner: of the transformation that is watched.
      count: updates so far, int32 [].
      first: the number of the first update that was not finite, from 1 on; 0 while
        there is none, int32 [].
      finite: whether each leaf of that update was finite, bool [].
    """

    inner: Any
    count: jax.Array
    first: jax.Array
    finite: Any


def watched(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same updates, and in the state which was the first that was not finite."""

    def begin(params: Any) -> WatchedState:
        return _unseen(params, tx.init(params))

    def update(updates: Any, state: Any, params: Any = None):
        updates, inner = tx.update(updates, state.inner, params)
        count = state.count + 1
        finite = jax.tree.map(lambda u: jnp.isfinite(u).all(), updates)
        here = (state.first == 0) & ~jnp.array(jax.tree.leaves(finite)).all()
        first = jnp.where(here, count, state.first)
        finite = jax.tree.map(
            lambda new, old: jnp.where(here, new, old), finite, state.finite
        )
        return updates, WatchedState(inner, count, first, finite)

    return optax.GradientTransformation(begin, update)


def _unseen(params: Any, inner: Any) -> WatchedState:
    """The state of `watched` before it has seen an update."""
    finite = jax.tree.map(lambda _: jnp.array(True), params)
    return WatchedState(inner, jnp.int32(0), jnp.int32(0), finite)


def find(loop: Loop, data: Dataset, checkpoints: Checkpoints, epochs: int) -> str:
    """Tell where a training stopped being finite, by running it again.

    Args:
      loop: what was trained.
      data: the examples, as arrays of JAX.
      checkpoints: of the run, all of them finite.
      epochs: after how many epochs the run was not finite.

    Returns:
      Words that go on after "diverged".
    """
    state, rows = checkpoints.restore(loop.start())
    again = copy.copy(loop)
    again.tx = watched(loop.tx)
    state = state._replace(opt_state=_unseen(state.params, state.opt_state))
    epoch = again.compile(data)
    for number in range(len(rows), epochs):
        state, _ = epoch(state, number)
        if first := int(state.opt_state.first):
            steps = len(data.train_labels) // loop.batch_size
            passed, step = divmod(first - 1, steps)
            where = f"in epoch {len(rows) + passed + 1}, step {step + 1} of {steps}"
            finite = jax.tree_util.tree_leaves_with_path(state.opt_state.finite)
            broken = [path for path, leaf in finite if not leaf]
            name = jax.tree_util.keystr(broken[0], simple=True, separator="/")
            more = f" and of {len(broken) - 1} more" if broken[1:] else ""
            return f"{where}: the update of {name}{more} is not finite"
    return f"in epoch {epochs}: the loss is not finite, while every update is"
