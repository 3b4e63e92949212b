"""The loop beside plain steps, on a small net with batch norm and dropout."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from ml_collections import ConfigDict

from volax.examples import _mesh
from volax.examples._errors import UserError
from volax.examples._mesh import LAYOUTS, Layout
from volax.examples.data import Dataset
from volax.examples.loop import Loop, fit, follow, right


class Net(nnx.Module):
    def __init__(self, *, rngs, dropout=0.5):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(47, 4)).astype(np.float32)
    labels = inputs[:, :3].argmax(-1).astype(np.int32)
    return jax.tree.map(
        jnp.asarray, Dataset(inputs[:30], labels[:30], inputs[30:], labels[30:])
    )


def plain_step(model, optimizer, inputs, labels):
    """One step as the guide of Flax writes it."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(
            model(inputs), labels
        ).mean()

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


def test_an_epoch_is_plain_steps_with_shuffled_batches(data):
    model = Net(rngs=nnx.Rngs(0), dropout=0.0)
    loop = Loop(model, optax.sgd(0.1, 0.9), 8, seed=3)
    state, figures = jax.jit(loop.epoch)(loop.start(), 5, data)
    found = loop.module(state.params, state.rest)

    order = jax.random.permutation(jax.random.fold_in(jax.random.key(3), 5), 30)
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, 0.9), wrt=nnx.Param)
    losses = []
    for rows in order[:24].reshape(3, 8):
        batch = data.train_inputs[rows], data.train_labels[rows]
        losses.append(plain_step(model, optimizer, *batch))
    np.testing.assert_allclose(figures["loss"], np.mean(losses), rtol=1e-5)
    for kind in (nnx.Param, nnx.BatchStat):
        pairs = zip(*(jax.tree.leaves(nnx.state(m, kind)) for m in (found, model)))
        for own, other in pairs:
            np.testing.assert_allclose(own, other, rtol=2e-4, atol=1e-5)
    # Evaluation uses the statistics and drops nothing.
    model.eval()
    logits = model(data.test_inputs)
    assert right(found, data) == int((logits.argmax(-1) == data.test_labels).sum())
    np.testing.assert_allclose(found(data.test_inputs), logits, rtol=2e-3, atol=1e-4)


def test_dropout_differs_from_step_to_step_and_is_the_same_again(data):
    loop = Loop(Net(rngs=nnx.Rngs(0)), optax.sgd(0.0), 30)
    epoch = jax.jit(loop.epoch)
    losses = [float(epoch(loop.start(), n, data)[1]["loss"]) for n in (0, 1, 0)]
    # Nothing moves and every batch is the whole set: what differs is what was dropped.
    assert losses[0] == losses[2] != losses[1]


class Convolutional(nnx.Module):
    def __init__(self, *, rngs):
        self.hidden = nnx.Conv(1, 3, (2, 2), rngs=rngs)
        self.out = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x.reshape(-1, 2, 2, 1))).reshape(-1, 12))


def test_an_epoch_by_steps_is_the_scanned_one(data):
    loop = Loop(Convolutional(rngs=nnx.Rngs(0)), optax.adam(0.1), 8, average=0.5)
    assert loop.by_steps(data)
    state, figures = loop.compile(data)(loop.start(), 2)
    scanned, expected = jax.jit(loop.epoch)(loop.start(), 2, data)
    chex.assert_trees_all_close(state, scanned, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(figures, expected, rtol=1e-6)


def test_only_convolutions_on_cpu_go_by_steps(data, monkeypatch):
    tx = optax.identity()
    assert not Loop(Net(rngs=nnx.Rngs(0)), tx, 8).by_steps(data)
    loop = Loop(Convolutional(rngs=nnx.Rngs(0)), tx, 8)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not loop.by_steps(data)


def test_evaluation_in_batches_sees_every_example_once(data):
    model = Net(rngs=nnx.Rngs(0))
    found = []
    for size in (4, 17, 1000):  # of 17
        loop = Loop(model, optax.identity(), 1, test_batch=size)
        state = loop.start()
        loss, hits = loop.evaluate(state.params, state.rest, data)
        assert loss.shape == hits.shape == (17,)
        found.append((loss, hits))
    for loss, hits in found[1:]:
        np.testing.assert_allclose(loss, found[0][0], rtol=1e-5)
        np.testing.assert_array_equal(hits, found[0][1])
    scores = loop.scores(state.params, state.rest, data)
    shares = [hits[data.test_labels == k].mean() for k in range(3)]
    np.testing.assert_allclose(scores["worst_class_accuracy"], min(shares))


def test_the_average_of_the_weights_follows_every_step(data):
    model = Net(rngs=nnx.Rngs(0), dropout=0.0)
    loop = Loop(model, optax.sgd(0.1), 10, average=0.75)
    state = loop.start()
    first = state.params["out"]["kernel"]
    after, mean = [], first
    one = Dataset(data.train_inputs[:10], data.train_labels[:10], *data[2:])
    epoch = jax.jit(loop.epoch)  # of one step
    for number in range(3):
        state, _ = epoch(state, number, one)
        after.append(state.params["out"]["kernel"])
        mean = 0.75 * mean + 0.25 * after[-1]
    np.testing.assert_allclose(state.average["out"]["kernel"], mean, rtol=1e-5)
    assert not np.allclose(mean, after[-1])


def test_augmentation_changes_what_is_trained_on_alone(data):
    drawn = []

    def augment(key, inputs):
        jax.debug.callback(lambda x: drawn.append(float(x)), jax.random.uniform(key))
        return jnp.zeros_like(inputs)

    model = Net(rngs=nnx.Rngs(0), dropout=0.0)
    loop = Loop(model, optax.sgd(0.1), 10, augment=augment)
    state, _ = jax.jit(loop.epoch)(loop.start(), 0, data)
    jax.effects_barrier()
    assert len(set(drawn)) == 3
    # Of zeros the first kernel learns nothing.
    kernel = nnx.to_pure_dict(nnx.state(model))["hidden"]["kernel"]
    np.testing.assert_array_equal(state.params["hidden"]["kernel"], kernel)
    logits = loop.module(state.params, state.rest)(data.test_inputs)
    assert len(np.unique(logits)) > 3


def test_training_goes_on_with_the_state_of_the_optimizer(data):
    model = Net(rngs=nnx.Rngs(0))
    tx = optax.adam(0.01)
    whole, _ = fit(model, tx, data, range(3), batch_size=10)
    half, opt_state = fit(model, tx, data, range(1), batch_size=10)
    rest, _ = fit(half, tx, data, range(1, 3), batch_size=10, opt_state=opt_state)
    for own, other in zip(
        *(jax.tree.leaves(nnx.state(m, nnx.Not(nnx.RngState))) for m in (whole, rest))
    ):
        np.testing.assert_array_equal(own, other)


def test_what_is_changed_after_an_epoch_is_what_goes_on(data):
    model = nnx.Linear(data.train_inputs.shape[1], 10, rngs=nnx.Rngs(0))

    def change(state, number):
        scaled = jax.tree.map(lambda w: w * (number + 2.0), state.params)
        return state._replace(params=scaled)

    given = {"batch_size": 8, "change": change}
    trained, rows = follow(model, optax.sgd(0.0), data, range(2), **given)
    factor = 2 * 3
    np.testing.assert_allclose(trained.kernel, factor * model.kernel, rtol=1e-6)
    own = [row["test_loss"] for row in rows]
    doubled, expected = nnx.clone(model), []
    for factor in (2, 6):
        doubled.kernel[...] = factor * model.kernel
        loss = optax.softmax_cross_entropy_with_integer_labels(
            doubled(jnp.asarray(data.test_inputs)), jnp.asarray(data.test_labels)
        )
        expected.append(loss.mean())
    np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_labels_of_every_character(data):
    class Characters(nnx.Module):
        def __init__(self, *, rngs):
            self.table = nnx.Embed(5, 5, rngs=rngs)

        def __call__(self, x):
            return self.table(x)

    text = np.arange(64).reshape(8, 8) % 5
    data = Dataset(text, (text + 1) % 5, text, (text + 1) % 5)
    model, _ = fit(
        Characters(rngs=nnx.Rngs(0)), optax.adam(0.3), data, range(5), batch_size=4
    )
    assert right(model, data) == 64
    loop = Loop(model, optax.identity(), 1)
    state = loop.start()
    data = jax.tree.map(jnp.asarray, data)
    assert loop.scores(state.params, state.rest, data).keys() == {
        "test_loss",
        "test_accuracy",
    }


# Of a kernel [4, 8] on a mesh of 2 x 4 devices.
AXES = {
    "replicated": (),
    "sharded": (None, "data"),
    "tensor": (None, "model"),
    "both": ("data", "model"),
}


@pytest.mark.parametrize("rule", LAYOUTS)
def test_a_rule_splits_what_the_mesh_divides(rule):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    layout = Layout(mesh, rule)
    kernel, odd, bias = (jnp.zeros(shape) for shape in ((4, 8), (3, 5), (8,)))
    assert layout.of(kernel).spec[: len(AXES[rule])] == AXES[rule]
    assert layout.of(odd).is_fully_replicated
    assert layout.of(bias).is_fully_replicated


@pytest.mark.parametrize("rule", ["replicated", "both"])
def test_a_mesh_changes_where_arrays_lie_and_nothing_else(data, rule):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    layout = Layout(mesh, rule)
    model = Net(rngs=nnx.Rngs(0))
    found = []
    for places in (None, layout):
        loop = Loop(model, optax.sgd(0.1, 0.9), 10, layout=places, average=0.5)
        given = data if places is None else places.copied(data)
        state = loop.start()
        where = jax.tree.map(lambda x: x.sharding, state)
        state, figures = jax.jit(loop.epoch)(state, 0, given)
        scores = jax.jit(loop.scores)(state.params, state.rest, given)
        found.append((state, figures | scores))
    (one, figures), (other, spread) = found
    for key, value in figures.items():
        np.testing.assert_allclose(spread[key], value, rtol=1e-4)
    for own, there in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params)):
        np.testing.assert_allclose(own, there, atol=3e-4)
    after = jax.tree.map(lambda x: x.sharding, other)
    for leaf, before, now in zip(*map(jax.tree.leaves, (other, where, after))):
        assert now.is_equivalent_to(before, leaf.ndim)
    axes = AXES[rule]
    for kernel in (other.params, other.opt_state[0].trace, other.average):
        assert kernel["hidden"]["kernel"].sharding.spec[: len(axes)] == axes
    np.testing.assert_array_equal(
        layout.gathered(other).params["out"]["kernel"], other.params["out"]["kernel"]
    )


@pytest.mark.parametrize(
    ("mesh", "rule", "message"),
    [
        ((2, 4), "fsdp", "layout is 'fsdp'; there are replicated"),
        ((8,), "tensor", r"mesh must be \(data, model\)"),
        ((3, 1), "tensor", r"mesh \(3, 1\) has 3 devices, and there are 8"),
        ((8, 1), "tensor", "a batch of 12 cannot be split over 8 devices"),
    ],
    ids=["rule", "axes", "devices", "batch"],
)
def test_a_mesh_that_does_not_fit_is_told(mesh, rule, message):
    config = ConfigDict({"mesh": mesh, "layout": rule})
    with pytest.raises(UserError, match=message):
        _mesh.layout(config, 12)
