"""Scores beside NumPy, and what is killed beside what ``keep_units`` would zero."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import volax
from tests.compress.models import drawn, mlp_params
from tests.compress.test_heads import Net, X
from tests.pairs.test_cost import attention_block, attention_params
from tests.test_keep_units import INPUTS, PAIRS
from volax import _paths
from volax.pairs._trace.count import multiply_adds


def test_scores_are_those_of_numpy():
    params = mlp_params()
    grads = jax.tree.map(lambda x: jnp.roll(x, 1), params)
    w, g = (_paths.named_leaves(tree) for tree in (params, grads))
    first, second = volax.score(params, PAIRS)
    np.testing.assert_allclose(
        first,
        np.linalg.norm(w["l1/kernel"], axis=0) * np.linalg.norm(w["l2/kernel"], axis=1),
        rtol=1e-5,
    )
    assert second.shape == (9,)
    change = np.sum(w["l1/kernel"] * g["l1/kernel"], axis=0)
    change += w["l1/bias"] * g["l1/bias"]
    change += np.sum(w["l2/kernel"] * g["l2/kernel"], axis=1)
    found, _ = volax.score(params, PAIRS, "taylor", grads=grads)
    np.testing.assert_allclose(found, np.abs(change), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("round_to", [1, 2])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_killed_is_what_keep_units_zeroes(scope, round_to):
    params = attention_params()
    groups = volax.find_groups(attention_block, params, X)
    tx = volax.keep_units(0.55, groups, scope=scope, round_to=round_to)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    expected = optax.apply_updates(params, updates)
    before = jax.tree.map(np.array, params)
    new = volax.kill(params, groups, 0.45, scope=scope, round_to=round_to)
    jax.tree.map(np.testing.assert_array_equal, new, expected)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    if scope == "global":
        small = volax.compact(new, groups, check=(attention_block, None, (X,)))
        left = sum(multiply_adds(attention_block, small.params, (X,)).values())
        assert left <= 0.55 * sum(groups.multiply_adds.values())


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(
            nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x)))
        )


class Layers(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)))


def test_models_of_every_library_come_back_as_what_they_were():
    x = INPUTS
    model = nnx.Sequential(
        nnx.Linear(5, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    )
    groups = volax.find_groups(model, x)
    new = volax.kill(model, groups)
    assert isinstance(new, nnx.Sequential)
    assert (model.layers[0].kernel[...] != 0).all()
    assert volax.compact(new, groups, check=(x,)).sizes["layers/0/kernel"] == (5, 4)

    linen = Dense()
    variables = linen.init(jax.random.key(0), x)
    groups = volax.find_groups(linen, variables, x)
    new = volax.kill(variables, groups)
    assert new.keys() == variables.keys()
    assert volax.compact(new, groups).sizes["Dense_1/kernel"] == (5, 4)

    keys = jax.random.split(jax.random.key(0))
    module = Layers(eqx.nn.Linear(5, 8, key=keys[0]), eqx.nn.Linear(8, 3, key=keys[1]))
    groups = volax.find_groups(module, x[0])
    new = volax.kill(module, groups)
    assert isinstance(new, Layers)
    assert volax.compact(new, groups, check=(x[0],)).params.a.weight.shape == (4, 5)

    arrays = jax.tree.map(np.asarray, mlp_params())
    new = volax.kill(arrays, PAIRS)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(new))


def test_heads_of_equal_size_keep_their_channels():
    model = Net()
    groups = volax.find_groups(model, X)
    new = volax.kill(model, groups)
    small = volax.compact(new, groups, check=(X,))
    assert (small.params.attention.num_heads, small.params.attention.head_dim) == (2, 3)


def test_of_a_tenth_and_of_a_floor():
    params = {"a": jnp.arange(1.0, 11)[None], "v": jnp.ones((10, 1))}
    pair = volax.pair("a", "v")
    for tenths in range(10):
        left = volax.kill(params, pair, tenths / 10)["a"]
        assert int((left != 0).sum()) == 10 - tenths
    assert int((volax.kill(params, pair, 0.9, floor=3)["a"] != 0).sum()) == 3
    assert int((volax.kill(params, pair, 0.55, round_to=4)["a"] != 0).sum()) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, r"kill: ratio must be a number in \[0, 1\), got 1.0"),
        ({"ratio": -0.5}, "kill: ratio must be"),
        ({"scope": "all"}, "kill: scope must be 'layer' or 'global', got 'all'"),
        ({"how": "l1"}, "kill: how must be 'magnitude' or 'taylor', got 'l1'"),
        ({"how": "taylor"}, "kill: how='taylor' needs grads"),
        ({"how": "taylor", "grads": {}}, r"kill: grads must hold .* got None"),
        ({"round_to": 0}, "kill: round_to must be an integer of at least 1, got 0"),
        ({"groups": ()}, "kill: groups is empty"),
        ({"groups": volax.pair("x", "y")}, "kill: group x -> y: .*'x' is not in the"),
        (
            {"ratio": 0.9, "scope": "global", "floor": 9},
            r"kill: ratio=0.9 .* cannot be reached",
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    given = {"groups": PAIRS} | options
    with pytest.raises(ValueError, match=message):
        volax.kill(mlp_params(), **given)


def test_a_group_that_cannot_be_cut_is_told():
    scale = jnp.arange(1.0, 7)

    def fn(params, x):
        return jax.nn.relu(x @ params["a"] * scale) @ params["b"]

    params = drawn(0, a=(5, 6), b=(6, 4))
    groups = volax.find_groups(fn, params, INPUTS)
    with pytest.raises(
        ValueError, match=r"kill: none of the groups can be cut: a -> b"
    ):
        volax.kill(params, groups)
    assert volax.score(params, groups)[0].shape == (6,)
