"""Equinox modules through report, compact, save, load and pack."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax

KEYS = jax.random.split(jax.random.key(0), 8)
X = jax.random.normal(KEYS[7], (5, 6, 6))  # channels first, one example


class Conv(eqx.Module):
    """Convolution, norm of one channel a group, depthwise convolution, readout."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    depth: eqx.nn.Conv2d
    point: eqx.nn.Conv2d
    head: eqx.nn.Linear
    drop: eqx.nn.Dropout
    activation: Callable[[jax.Array], jax.Array]

    def __init__(self, multiplier=1, per_group=1):
        channels = 8
        self.conv = eqx.nn.Conv2d(5, channels, 3, padding=1, key=KEYS[0])
        self.norm = eqx.nn.GroupNorm(channels // per_group, channels)
        self.depth = eqx.nn.Conv2d(
            channels, multiplier * channels, 3, groups=channels, key=KEYS[1]
        )
        self.point = eqx.nn.Conv2d(multiplier * channels, 6, 1, key=KEYS[2])
        self.head = eqx.nn.Linear(6, 2, key=KEYS[3])
        self.drop = eqx.nn.Dropout(0.5, inference=True)
        self.activation = jax.nn.relu

    def __call__(self, x):
        x = self.activation(self.norm(self.conv(x)))
        x = self.activation(self.depth(x))
        x = self.activation(self.point(x)).mean((1, 2))
        return self.head(self.drop(x))


def dying(model):
    """Three units of each layer lose their outgoing weights."""
    model = eqx.tree_at(
        lambda m: m.point.weight, model, replace_fn=lambda w: w.at[:, :3].set(0)
    )
    return eqx.tree_at(
        lambda m: m.head.weight, model, replace_fn=lambda w: w.at[:, 1:4].set(0)
    )


def test_sizes_follow_the_cut_and_the_small_module_runs(tmp_path):
    model = dying(Conv())
    groups = volax.find_groups(model, X)
    for check in (None, (X,), (model, None, (X,))):
        small = volax.compact(model, groups, check=check).params
        assert (small.conv.out_channels, small.depth.in_channels) == (5, 5)
        assert (small.depth.groups, small.depth.out_channels) == (5, 5)
        assert (small.norm.groups, small.norm.channels) == (5, 5)
        assert (small.point.in_channels, small.point.out_channels) == (5, 3)
        assert (small.head.in_features, small.head.out_features) == (3, 2)
        np.testing.assert_allclose(small(X), model(X), rtol=1e-5, atol=1e-6)
    assert (model.depth.groups, model.norm.groups) == (8, 8)

    kept = volax.report(model, groups, inputs=(X,)).total
    after = volax.report(small, inputs=(X,)).total
    assert kept["left"] == after["size"]
    assert kept["multiply_adds_left"] == after["multiply_adds"]

    volax.save(tmp_path / "small", small)
    again = volax.load(tmp_path / "small", into=model).params
    assert jax.tree.structure(again) == jax.tree.structure(small)
    assert again.activation is model.activation
    np.testing.assert_array_equal(again(X), small(X))
    again = volax.load(tmp_path / "small", into=small).params
    np.testing.assert_array_equal(again(X), small(X))


def test_training_goes_on_with_the_cut_optimizer_state():
    model, tx = dying(Conv()), optax.adam(1e-2)

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: (m(X) ** 2).sum())(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    model, state = step(model, tx.init(eqx.filter(model, eqx.is_array)))
    model = dying(model)
    small = volax.compact(
        model, volax.find_groups(model, X), opt_state=state, check=(X,)
    )
    like = tx.init(eqx.filter(small.params, eqx.is_array))
    assert jax.tree.structure(like) == jax.tree.structure(small.opt_state)
    trained, _ = step(small.params, small.opt_state)
    assert bool(jnp.isfinite(trained(X)).all())


class Own(eqx.Module):
    """A layer whose sizes only its author knows."""

    weight: jax.Array
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)

    def __call__(self, x):
        return x @ self.weight


class Mixed(eqx.Module):
    """An MLP behind layers that are not cut, or are not known."""

    first: eqx.nn.Linear
    own: Own
    mlp: eqx.nn.MLP
    attention: eqx.nn.MultiheadAttention

    def __call__(self, x):
        x = jax.vmap(self.mlp)(self.own(jax.vmap(self.first)(x)))
        return self.attention(x, x, x)


def test_what_was_not_cut_or_is_not_known_stays():
    linear = eqx.nn.Linear(5, 8, key=KEYS[0])
    # An attribute that says something else than the shape is none of ours.
    object.__setattr__(linear, "in_features", 77)
    mlp = eqx.nn.MLP(8, 6, 9, 2, key=KEYS[2])
    mlp = eqx.tree_at(
        lambda m: [m.layers[1].weight, m.layers[2].weight], mlp,
        replace_fn=lambda w: w.at[:, :4].set(0),
    )  # fmt: skip
    own = Own(jax.random.normal(KEYS[1], (8, 8)), 8, 8, 8)
    model = Mixed(linear, own, mlp, eqx.nn.MultiheadAttention(2, 6, key=KEYS[3]))
    x = jax.random.normal(KEYS[4], (4, 5))
    small = volax.compact(model, volax.find_groups(model, x), check=(x,)).params
    assert small.mlp.width_size == 5
    assert (small.mlp.in_size, small.mlp.out_size) == (8, 6)
    assert [layer.in_features for layer in small.mlp.layers] == [8, 5, 5]
    assert (small.first.in_features, small.first.out_features) == (77, 8)
    for name in ("own", "attention"):
        same = (
            jax.tree.structure(getattr(small, name)),
            jax.tree.structure(getattr(model, name)),
        )
        assert same[0] == same[1]


def test_a_depthwise_multiplier_stays():
    model: Any = Conv(multiplier=2)
    cut = eqx.tree_at(
        lambda m: [m.depth.weight, m.depth.bias, m.point.weight], model,
        [model.depth.weight[:6], model.depth.bias[:6], model.point.weight[:, :6]],
    )  # fmt: skip
    cut = eqx.tree_at(
        lambda m: [m.conv.weight, m.conv.bias, m.norm.weight, m.norm.bias], cut,
        [model.conv.weight[:3], model.conv.bias[:3], jnp.ones(3), jnp.zeros(3)],
    )  # fmt: skip
    from volax import _modules

    arrays, _ = _modules.split(cut)
    sized = _modules.split(model)[1](arrays)
    assert (sized.depth.groups, sized.depth.out_channels) == (3, 6)
    assert sized(X).shape == (2,)


@pytest.mark.parametrize("axis", [None, 0])
def test_packed_weights_run_and_come_back(axis, tmp_path):
    model = eqx.nn.MLP(6, 2, 8, 2, key=KEYS[0])
    ternary = volax.ternarize(model, channel_axis=axis)
    packed = volax.pack(ternary, bits=2, channel_axis=axis)
    x = X[:, 0]
    expected = jax.vmap(ternary)(x)
    run = eqx.filter_jit(lambda m, x: jax.vmap(m)(x))
    np.testing.assert_allclose(run(packed, x), expected, rtol=1e-5, atol=1e-6)
    volax.save(tmp_path / "m", packed)
    for into, is_packed in ((packed, True), (model, False)):
        again = volax.load(tmp_path / "m", into=into).params
        assert isinstance(again.layers[0].weight, jax.Array) != is_packed
        np.testing.assert_allclose(run(again, x), expected, rtol=1e-5, atol=1e-6)


def test_arrays_alone_are_saved(tmp_path):
    model = eqx.nn.Sequential(
        [eqx.nn.Linear(6, 4, key=KEYS[0]), eqx.nn.Lambda(jnp.tanh), eqx.nn.Dropout(0.3)]
    )
    volax.save(tmp_path / "m", {"model": model, "step": 3})
    held = volax.load(tmp_path / "m").params
    (layer,) = held["model"]["layers"]
    assert (layer.keys(), int(held["step"])) == ({"weight", "bias"}, 3)
    other = eqx.tree_at(lambda m: m[0].weight, model, jnp.zeros((4, 6)))
    other = eqx.tree_at(lambda m: m[2].p, other, 0.7)
    again = volax.load(tmp_path / "m", into={"model": other, "step": 0}).params
    assert (again["model"][2].p, int(again["step"])) == (0.7, 3)
    np.testing.assert_array_equal(again["model"][0].weight, model[0].weight)
