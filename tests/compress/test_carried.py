"""Arrays that lie along the units beside the parameters: state, inputs, random numbers.

The oracle is plain: kill units, ``compact`` without ``check``, run both.
"""

import functools
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import volax
from volax.pairs import Groups

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 6))
IMAGES = jax.random.normal(KEY, (2, 8, 8, 3))
MASK = jnp.arange(8.0) / 8


def network(params, x, mask=MASK):
    return jax.nn.relu(x @ params["w1"] + params["b1"] + mask) @ params["w2"]


def gated(params, x, mask=MASK):
    return (jax.nn.relu(x @ params["w1"]) * mask) @ params["w2"]


def drawn():
    shapes = {"w1": (6, 8), "b1": (8,), "w2": (8, 3)}
    params = {k: jax.random.normal(KEY, s) for k, s in shapes.items()}
    return params | {"w2": params["w2"].at[jnp.array([1, 2, 5])].set(0)}


def dropped(params, x):
    h = jax.nn.relu(x @ params["w1"] + params["b1"])
    keep = jax.random.bernoulli(jax.random.key(1), 0.5, h.shape)
    return jnp.where(keep, 2 * h, 0) @ params["w2"]


@pytest.mark.parametrize(
    ("fn", "inputs", "reason"),
    [
        (gated, (X,), "a captured array lies along the units .* pass it as an input"),
        (gated, (X, MASK), "input 1 lies along the units and cannot be cut"),
        (network, (X,), None),
        (dropped, (X,), "random numbers are drawn .* trace the model in evaluation"),
    ],
    ids=["captured", "input", "no_pair", "dropout"],
)
def test_a_group_keeps_its_units_beside_what_cannot_be_cut(fn, inputs, reason):
    params = drawn()
    groups = volax.find_groups(fn, params, *inputs)
    groups = Groups.from_json(groups.to_json())
    for check in (None, (lambda p: fn(p, *inputs), None, ())):
        small = volax.compact(params, groups, check=check)
        assert small.sizes["w1"] == (6, 8)
    if reason is None:
        assert not len(groups)
        assert any("cannot be cut" in r.reason for r in groups.refused)
        return
    (kept,) = small.kept
    assert kept.units == (1, 2, 5)
    assert re.search(reason, kept.reason)
    volax.check_groups(groups.pairs, fn, params, *inputs)
    volax.path_prox(0.1, 1e-3, pairs=groups.pairs)


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(6, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.b = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.a(x))))


def test_dropout_in_training_keeps_the_units_and_in_evaluation_does_not():
    model = Dropping(nnx.Rngs(0))
    model.b.kernel[...] = model.b.kernel[...].at[1].set(0)
    small = volax.compact(model, volax.find_pairs(model, X))
    assert small.sizes["a/kernel"] == (6, 8)
    assert "evaluation mode" in small.kept[0].reason
    model.eval()
    small = volax.compact(model, volax.find_pairs(model, X))
    assert small.sizes["a/kernel"] == (6, 7)
    np.testing.assert_allclose(small.params(X), model(X), rtol=1e-5, atol=1e-6)


def convolutional(images, train, widths=(4, 6)):
    """Two convolutions with batch norm and a head, in Haiku."""
    h = images
    for width in widths:
        h = hk.Conv2D(width, 3, with_bias=False)(h)
        h = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(h, is_training=train))
    return hk.Linear(3)(h.mean((1, 2)))


def haiku(fn, **how):
    return hk.without_apply_rng(hk.transform_with_state(functools.partial(fn, **how)))


@pytest.fixture(scope="module")
def convnet():
    """Parameters and state after a few steps, with dead units in both layers."""
    model = haiku(convolutional, train=True)
    params, state = jax.jit(model.init)(KEY, IMAGES)
    state = jax.jit(model.apply)(params, state, IMAGES)[1]
    for name, unit in (("conv2_d_1", 1), ("linear", 2)):
        w = params[name]["w"]
        params[name]["w"] = (
            w.at[..., unit, :].set(0) if w.ndim == 4 else w.at[unit].set(0)
        )
    return params, state


def check_small(small, params, state, train):
    """The small model runs, in training too, and is the same function."""
    widths = tuple(small.params[f"conv2_d{k}"]["w"].shape[-1] for k in ("", "_1"))
    assert widths == (3, 5)
    for mode in (train, not train):
        full = haiku(convolutional, train=mode)
        less = haiku(convolutional, train=mode, widths=widths)
        expected = full.apply(params, state, IMAGES)
        got = less.apply(small.params, small.state, IMAGES)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-4, atol=1e-5)
        gone = jax.tree.map(lambda a, b: a.size - b.size, expected[1], got[1])
        shrunk = {k: {n for n, d in v.items() if d} for k, v in gone.items()}
        assert all(v == {"hidden", "average"} for v in shrunk.values())


@pytest.mark.parametrize(
    ("train", "written"),
    [(False, False), (False, True), (True, True)],
    ids=["evaluation", "evaluation_written", "training"],
)
def test_haiku_batch_norm_goes_on_training(convnet, train, written):
    params, state = convnet
    model = haiku(convolutional, train=train)
    fn = model.apply if written else lambda *args: model.apply(*args)[0]
    more = {"state_outputs": 1} if written else {}
    groups = volax.find_groups(fn, params, state, IMAGES, **more)
    assert len(groups) == 2
    assert all(g.homogeneous and len(g.states) == 4 for g in groups)
    assert not any(g.carries for g in groups)
    small = volax.compact(params, groups, state=state)
    check_small(small, params, state, train)


def residual(images, train):
    widths = {"blocks_per_group": (1,) * 4, "channels_per_group": (4, 4, 6, 6)}
    model = hk.nets.ResNet(num_classes=3, bottleneck=False, resnet_v2=False, **widths)
    return model(images, is_training=train)


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_a_haiku_residual_network(train):
    params, state = jax.eval_shape(haiku(residual, train=True).init, KEY, IMAGES)
    model = haiku(residual, train=train)
    groups = volax.find_groups(model.apply, params, state, IMAGES, state_outputs=1)
    assert [len(g.states) for g in groups.pairs] == [4] * 5
    assert [len(g.states) for g in groups if not g.homogeneous] == [8] * 4
    assert not any(g.carries for g in groups)


def averaged(params, state, x):
    """A network that reads one of two statistics of one shape."""
    h = jax.nn.relu((x @ params["w1"]) * state["norm"]["scale"])
    return h @ params["w2"]


def test_state_that_nothing_reads_beside_state_that_is_cut():
    params = {k: v for k, v in drawn().items() if k != "b1"}
    state = {"norm": {"scale": jnp.ones(8), "history": jnp.zeros(8)}}
    groups = volax.find_groups(averaged, params, state, X, state_args=0)
    small = volax.compact(params, groups, state=state)
    assert small.sizes["w1"] == (6, 8)
    assert "norm/history, which the function does not read" in small.kept[0].reason

    def one(params, state, x):
        scale = state["norm"]["scale"]
        new = {"scale": scale + 0.1 * x[0] @ params["w1"], "history": scale}
        return averaged(params, state, x), {"norm": new}

    groups = volax.find_groups(one, params, state, X, state_outputs=1)
    small = volax.compact(params, groups, state=state)
    assert {m.path for g in groups for m in g.states} == {"norm/history", "norm/scale"}
    assert small.state["norm"]["history"].shape == (5,)
    expected, _ = one(params, state, X)
    got, less = one(small.params, small.state, X)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.map(jnp.shape, less) == jax.tree.map(jnp.shape, small.state)
