"""The one training loop of the examples: shuffled epochs, each a compiled scan.

Every task is to name integer labels: one of an image or a sentence (`[batch]`), one of
each character of a text (`[batch, length]`). Everything random is drawn from the seed
and the number of the epoch.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from volax.examples._mesh import Layout
from volax.examples.data import Dataset
from volax.pairs._trace.bodies import all_eqns

Augment = Callable[[jax.Array, jax.Array], jax.Array]  # of a key and a batch


class State(NamedTuple):
    """What training changes."""

    params: Any  # the weights, as nested dicts
    rest: Any  # what else the model keeps, such as statistics of batches
    opt_state: Any
    average: Any = None  # of the weights over the steps, where one is kept


class Loop:
    """Pure functions of a model, an optimizer and how examples come to them.

    Args:
      model: gives the structure and the first weights; it is not changed.
      tx: the optimizer.
      batch_size: examples in a step.
      seed: with an epoch's number it draws the order of its examples, the augmentation
        and what dropout drops.
      augment: changes the inputs of each batch, given a key.
      average: decay of a running mean of the weights; 0 keeps none.
      test_batch: examples that are evaluated together.
      layout: where batches and weights lie on a mesh.
    """

    def __init__(
        self,
        model: nnx.Module,
        tx: optax.GradientTransformation,
        batch_size: int,
        seed: int = 0,
        *,
        augment: Augment | None = None,
        average: float = 0.0,
        test_batch: int = 1000,
        layout: Layout | None = None,
    ):
        self.tx, self.batch_size, self.seed = tx, batch_size, seed
        self.augment, self.average, self.test_batch = augment, average, test_batch
        self.layout = layout
        model = nnx.clone(model)
        model.train()
        self._training = nnx.graphdef(model)
        model.eval()
        self._evaluating, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
        self._params, self._random, self._rest = map(nnx.to_pure_dict, states)

    def start(self, opt_state: Any = None) -> State:
        """The state before the first epoch, in arrays of its own.

        Args:
          opt_state: of an optimizer that has trained these weights already.
        """
        params, rest, given = jax.tree.map(
            jnp.copy, (self._params, self._rest, opt_state)
        )
        average = jax.tree.map(jnp.copy, params) if self.average else None
        found = self.tx.init(params) if opt_state is None else given
        state = State(params, rest, found, average)
        return state if self.layout is None else self.layout.placed(state)

    def module(self, params: Any, rest: Any) -> Any:
        """The model with these weights, as it is evaluated."""
        return nnx.merge(self._evaluating, params, self._random, rest)

    def epoch(
        self, state: State, number: Any, data: Dataset
    ) -> tuple[State, dict[str, jax.Array]]:
        """Take one step with each batch of the shuffled training examples.

        Args:
          state: before.
          number: of the epoch.
          data: as arrays of JAX. The last incomplete batch is left out.

        Returns:
          The state after, and the mean `loss` and `train_accuracy` of the steps.
        """
        key, order = self._order(number, data)

        def step(state: State, k: jax.Array):
            return self._step(state, k, key, order, data)

        state, (loss, hits) = jax.lax.scan(step, state, jnp.arange(len(order)))
        return self.held(state), {"loss": loss.mean(), "train_accuracy": hits.mean()}

    def by_steps(self, data: Dataset) -> bool:
        """Whether `compile` makes a program of each step, not of the whole epoch.

        So it is for a model with convolutions on CPU: there XLA runs the gradients of
        convolutions about ten times slower in the body of a loop
        (https://github.com/jax-ml/jax/issues/12868).
        """
        if jax.default_backend() != "cpu":
            return False
        batch = [
            jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype)
            for x in (data.train_inputs, data.train_labels)
        ]
        key = jax.eval_shape(jax.random.key, 0)
        closed = jax.make_jaxpr(self._loss)(self._params, self._rest, key, *batch)
        kinds = {eqn.primitive for eqn in all_eqns(closed.jaxpr)}
        return jax.lax.conv_general_dilated_p in kinds

    def compile(
        self, data: Dataset
    ) -> Callable[[State, Any], tuple[State, dict[str, Any]]]:
        """`epoch` with these examples, compiled; a call consumes the state."""
        if self.by_steps(data):
            return self.stepwise(data)
        whole = jax.jit(self.epoch, donate_argnums=0)
        return lambda state, number: whole(state, number, data)

    def stepwise(
        self, data: Dataset
    ) -> Callable[[State, Any], tuple[State, dict[str, Any]]]:
        """The same with a program of one step, called from the host."""
        draw, step = jax.jit(self._order), jax.jit(self._step, donate_argnums=0)

        def epoch(state: State, number: Any):
            key, order = draw(number, data)
            taken = []
            for k in range(len(order)):
                state, figures = step(state, k, key, order, data)
                taken.append(figures)
            loss, hits = (np.mean(x) for x in zip(*jax.device_get(taken)))
            return state, {"loss": loss, "train_accuracy": hits}

        return epoch

    def _order(self, number: Any, data: Dataset) -> tuple[jax.Array, jax.Array]:
        """An epoch's key, and the examples of each step, int32 [steps, batch]."""
        count = len(data.train_labels) // self.batch_size * self.batch_size
        key = jax.random.fold_in(jax.random.key(self.seed), number)
        order = jax.random.permutation(key, len(data.train_labels))[:count]
        return key, order.reshape(-1, self.batch_size)

    def _step(
        self, state: State, k: Any, key: jax.Array, order: jax.Array, data: Dataset
    ) -> tuple[State, tuple[jax.Array, jax.Array]]:
        """The state after step `k`, and its mean loss and share of hits, float32 []."""
        inputs, labels = self._split(data.train_inputs, data.train_labels, order[k])
        # The permutation splits the same key, into keys of the first numbers.
        drawn = jax.random.fold_in(key, 2**30 + k)
        if self.augment is not None:
            inputs = self.augment(jax.random.fold_in(drawn, 0), inputs)
        (loss, (hits, rest)), gradient = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.rest, drawn, inputs, labels
        )
        updates, opt_state = self.tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if self.average:
            average = optax.incremental_update(params, average, 1 - self.average)
        state = self.held(State(params, rest, opt_state, average))
        return state, (loss, hits.mean())

    def evaluate(
        self, params: Any, rest: Any, data: Dataset
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of each test label, float32, and whether it is named right, bool."""
        count = len(data.test_labels)
        size = min(self.test_batch, count)
        if self.layout is not None:
            parts = self.layout.mesh.shape["data"]
            size = -(-size // parts) * parts
        rows = jnp.arange(-(-count // size) * size).reshape(-1, size)

        def batch(rows: jax.Array):
            # Made inside: NNX refuses a module from outside of a traced function.
            inputs, labels = self._split(data.test_inputs, data.test_labels, rows)
            return _judged(self.module(params, rest)(inputs), labels)

        # Rows behind the last example read that one again, and are left out.
        judged = jax.lax.map(batch, jnp.minimum(rows, count - 1))
        if self.layout is not None:
            judged = jax.lax.with_sharding_constraint(judged, self.layout.whole)
        loss, hits = (x.reshape(-1, *x.shape[2:])[:count] for x in judged)
        return loss, hits

    def scores(self, params: Any, rest: Any, data: Dataset) -> dict[str, jax.Array]:
        """Means over the test labels; where an example has one, the worst class too."""
        loss, hits = self.evaluate(params, rest, data)
        found = {"test_loss": loss.mean(), "test_accuracy": hits.mean()}
        labels = data.test_labels
        if labels.ndim == 1:
            model = self.module(params, rest)
            classes = jax.eval_shape(model, data.test_inputs[:1]).shape[-1]
            seen = jnp.bincount(labels, length=classes)
            right = jnp.bincount(labels, 1.0 * hits, length=classes)
            found["worst_class_accuracy"] = jnp.where(seen, right / seen, 1).min()
        return found

    def held(self, state: State) -> State:
        """The same state, where the layout wants it, for the end of a program."""
        return state if self.layout is None else self.layout.held(state)

    def _split(self, inputs, labels, rows):
        """The examples of these rows, over the devices of the mesh."""
        batch = inputs[rows], labels[rows]
        if self.layout is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, self.layout.batch)

    def _loss(self, params, rest, key, inputs, labels):
        """Mean loss; whether each label is named right, and what the model keeps."""
        leaves, tree = jax.tree.flatten(self._random)
        drawn = [_redrawn(leaf, key, k) for k, leaf in enumerate(leaves, 1)]
        random = jax.tree.unflatten(tree, drawn)
        model: Any = nnx.merge(self._training, params, random, rest)
        loss, hits = _judged(model(inputs), labels)
        rest = nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
        return loss.mean(), (hits, nnx.to_pure_dict(rest))


def _judged(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Loss and hit of each label; logits [..., classes], labels [...]."""
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return loss, logits.argmax(-1) == labels


def _redrawn(leaf: jax.Array, key: jax.Array, number: int) -> jax.Array:
    """A model's key (of that number) made of a step's key; a count of draws is 0."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(key, number)
    return jnp.zeros_like(leaf)


def fit(
    model: Any,
    tx: optax.GradientTransformation,
    data: Dataset,
    epochs: Iterable[int],
    *,
    batch_size: int,
    seed: int = 0,
    opt_state: Any = None,
) -> tuple[Any, Any]:
    """Train a copy of a model.

    Args:
      model: the weights to begin with.
      tx: the optimizer.
      data: the examples.
      epochs: their numbers.
      batch_size: examples in a step.
      seed: draws their order.
      opt_state: where the optimizer stands; fresh by default.

    Returns:
      The trained model, as it is evaluated, and the optimizer's state.
    """
    loop = Loop(model, tx, batch_size, seed)
    data, state = jax.tree.map(jnp.asarray, data), loop.start(opt_state)
    epoch = loop.compile(data)
    for number in epochs:
        state, _ = epoch(state, number)
    return loop.module(state.params, state.rest), state.opt_state


def follow(
    model: Any,
    tx: optax.GradientTransformation,
    data: Dataset,
    epochs: Iterable[int],
    *,
    batch_size: int,
    seed: int = 0,
    change: Callable[[State, Any], State] | None = None,
) -> tuple[Any, list[dict[str, np.ndarray]]]:
    """Train a copy of a model, and evaluate it after every epoch.

    Args:
      model: the weights to begin with.
      tx: the optimizer.
      data: the examples.
      epochs: their numbers.
      batch_size: examples in a step.
      seed: draws their order.
      change: gives another state after the epoch of a number, a traced integer, from
        which training goes on.

    Returns:
      The trained model, as it is evaluated, and the figures of each epoch: those of
      `Loop.epoch` and of `Loop.scores`.
    """
    loop = Loop(model, tx, batch_size, seed)
    data, state = jax.tree.map(jnp.asarray, data), loop.start()

    epoch, scores = loop.compile(data), jax.jit(loop.scores)
    after = None if change is None else jax.jit(change, donate_argnums=0)
    rows = []
    for number in epochs:
        state, figures = epoch(state, number)
        if after is not None:
            state = after(state, number)
        figures |= scores(state.params, state.rest, data)
        rows.append(jax.device_get(figures))
    return loop.module(state.params, state.rest), rows


def right(model: Any, data: Dataset) -> int:
    """How many test labels a model names right."""
    loop = Loop(model, optax.identity(), 1)
    state = loop.start()
    data = jax.tree.map(jnp.asarray, data)
    _, hits = jax.jit(loop.evaluate)(state.params, state.rest, data)
    return int(hits.sum())


def scores(model: Any, data: Dataset) -> dict[str, float]:
    """The figures of `Loop.scores` of a trained model."""
    loop = Loop(model, optax.identity(), 1)
    state = loop.start()
    found = jax.jit(loop.scores)(
        state.params, state.rest, jax.tree.map(jnp.asarray, data)
    )
    return {name: float(value) for name, value in found.items()}
