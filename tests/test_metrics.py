"""metrics: the figures of the report, wherever the weights are."""

import functools
from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import volax
from tests import cases, sharded
from tests.compress.models import MODELS, killed
from tests.sharded import KINDS, LAYOUTS

PAIR = cases.PAIR
COUNTS = ("zeros", "at_wall", "units", "alive")


def assert_as_reported(found, params, groups, volume=None):
    """All that both count, as the report says it."""
    total = volax.report(params, groups, volume=volume).total
    total |= {
        "zero_share": total["zeros"] / total["size"],
        "alive_share": total["alive"] / total["units"],
        "bytes_share": total["bytes_left"] / total["bytes"],
    }
    if total["bounded"]:
        total["wall_share"] = total["at_wall"] / total["bounded"]
    for name in found.keys() & total.keys():
        np.testing.assert_allclose(found[name], total[name], rtol=1e-5, err_msg=name)
    chex.assert_rank([*found.values()], 0)
    assert {name: str(x.dtype) for name, x in found.items()} == {
        name: "int32" if name in COUNTS else "float32" for name in found
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_report_says_the_same(name):
    _, make, groups, _ = MODELS[name]
    params, _ = killed(make(0), groups, 1)
    found = jax.jit(lambda tree: volax.metrics(tree, groups, volume=0.5))(params)
    assert found.keys() == {
        "zeros", "zero_share", "norm", "largest", "at_wall", "wall_share", "units",
        "alive", "alive_share", "path_norm", "multiply_adds_share", "bytes_share",
    }  # fmt: skip
    assert_as_reported(found, params, groups, volume=0.5)
    assert 0 < found["alive"] < found["units"]
    assert found["at_wall"] > 0


def test_multiply_adds_are_those_that_the_search_counted():
    model = nnx.Sequential(
        nnx.Conv(1, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.relu, lambda x: x.mean((1, 2)),
        nnx.Linear(8, 4, rngs=nnx.Rngs(1)),
    )  # fmt: skip
    x = jnp.ones((1, 6, 6, 1))
    groups = volax.find_groups(model, x)
    model = volax.kill(model, groups, 0.5)
    found = nnx.jit(lambda model: volax.metrics(model, groups))(model)
    total = volax.report(model, groups, inputs=x).total
    share = total["multiply_adds_left"] / total["multiply_adds"]
    np.testing.assert_allclose(found["multiply_adds_share"], share, rtol=1e-6)
    assert_as_reported(found, model, groups)


def test_a_running_mean_keeps_units_alive_that_nothing_feeds():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(3, 4, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            x = self.norm(self.inner(x), use_running_average=True)
            return self.head(nnx.gelu(x))

    model = Net(nnx.Rngs(0))
    groups = volax.find_groups(model, jnp.ones((1, 3)))
    for leaf in (model.inner.kernel, model.norm.bias):
        assert leaf is not None
        leaf[...] = leaf[...].at[..., 0].set(0)
    model.norm.mean[...] = jnp.ones(4, jnp.float32)
    count = jax.jit(lambda tree: volax.metrics(tree, groups))
    assert_as_reported(volax.metrics(model, groups), model, groups)
    found = count(nnx.state(model, nnx.Param))
    assert found["alive"] == found["units"] == 4
    # What measures the share of the units judges them in the same way.
    tx = volax.tune_strength(
        lambda s: volax.group_prox(0.1, s, groups), 0.5, groups=groups
    )
    params = nnx.state(model, nnx.Param)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = jax.jit(tx.update)(zeros, tx.init(params), params)
    assert optax.tree.get(state, "share") == 0


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x)))
        return nn.Dense(3)(x)


def linen():
    variables = Mlp().init(jax.random.key(0), jnp.ones((1, 5)))
    return variables, variables["params"], volax.find_groups(
        Mlp(), variables, jnp.ones((1, 5))
    )  # fmt: skip


def flax_nnx():
    model = nnx.Sequential(
        nnx.Linear(5, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(1)),
        nnx.relu, nnx.Dropout(0.5, rngs=nnx.Rngs(2)),
        nnx.Linear(8, 3, rngs=nnx.Rngs(3)),
    )  # fmt: skip
    model.eval()
    return model, nnx.state(model, nnx.Param), volax.find_groups(
        model, jnp.ones((1, 5))
    )  # fmt: skip


def equinox():
    keys = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential(
        [eqx.nn.Linear(5, 8, key=keys[0]), eqx.nn.Lambda(jax.nn.relu),
         eqx.nn.Linear(8, 3, key=keys[1])]
    )  # fmt: skip
    return model, eqx.filter(model, eqx.is_array), volax.find_groups(
        model, jnp.ones(5)
    )  # fmt: skip


@pytest.mark.parametrize("library", [linen, flax_nnx, equinox])
def test_a_model_and_its_parameters_alone_say_the_same(library):
    whole, params, groups = library()
    whole, params = (volax.kill(tree, groups, 0.25) for tree in (whole, params))
    found = volax.metrics(whole, groups)
    chex.assert_trees_all_equal(found, volax.metrics(params, groups))
    assert_as_reported(found, whole, groups)
    assert (int(found["units"]), int(found["alive"])) == (8, 6)


def test_inside_scan_the_state_of_the_controllers_is_followed():
    make = functools.partial(volax.path_prox, 0.1, pairs=PAIR)
    ramp = volax.cubic_ramp(1.0, 0.5, 0, 4)
    tx = optax.chain(
        optax.sgd(0.1),
        volax.tune_strength(make, 0.5, groups=PAIR, steps=8, initial=0.3),
        volax.keep_units(ramp, PAIR),
    )

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), volax.metrics(params, PAIR, state)

    params = cases.params()
    grads = jax.tree.map(lambda *x: jnp.stack(x), *cases.grads(6))
    (params, state), log = jax.lax.scan(step, (params, tx.init(params)), grads)
    last = {name: values[-1] for name, values in log.items()}
    chex.assert_trees_all_close(last, volax.metrics(params, PAIR, state), rtol=1e-6)
    for name, field in (("strength", "strength"), ("removed_share", "share")):
        assert last[name] == optax.tree.get(state, field)
    assert log["kept_share"].tolist() == [1.0, 0.75, 0.75, 0.75, 0.5, 0.5]
    assert log["alive"].tolist() == [4, 3, 3, 3, 2, 2]
    chex.assert_tree_all_finite(log)


def test_an_nnx_optimizer_and_several_controllers():
    model, _, groups = flax_nnx()
    keep = volax.keep_units(0.5, groups)
    held = nnx.Optimizer(model, optax.chain(optax.adam(0.1), keep), wrt=nnx.Param)
    assert float(volax.metrics(model, groups, held)["kept_share"]) == 1
    params = cases.params()
    state = optax.chain(keep, volax.keep_units(0.5, PAIR)).init(
        {"layers": {}, **params}
    )
    found = volax.metrics(params, opt_state=state)
    assert {"kept_share/0", "kept_share/1"} <= found.keys()
    assert "kept_share" not in found


def test_leaves_that_are_masked_out():
    params: Any = cases.params()
    other = volax.pair("l3/kernel", "l4/kernel")
    masked = params | {"l3": optax.MaskedNode(), "l4": None}
    chex.assert_trees_all_equal(
        volax.metrics(masked, [PAIR, other]), volax.metrics(params, PAIR)
    )
    with pytest.raises(ValueError, match="masked out by half: l2/kernel masked"):
        volax.metrics(params | {"l2": None}, PAIR)


def test_walls_may_be_traced_and_infinity_is_none():
    params = {"w": jnp.array([[1.0, -2.0, 0.5]]), "v": jnp.ones((2, 2))}
    found = jax.jit(lambda v: volax.metrics(params, volume={"w": v, "v": jnp.inf}))(1.0)
    assert (int(found["at_wall"]), float(found["wall_share"])) == (
        2,
        pytest.approx(2 / 3),
    )
    assert volax.metrics(params, volume=jnp.inf)["wall_share"] == 0
    with pytest.raises(ValueError, match="metrics: volume: the entry 'u'"):
        volax.metrics(params, volume={"u": 1.0})


def test_a_diverged_model_says_so():
    params = {"a": jnp.full((2, 3), jnp.nan), "v": jnp.ones((3, 1))}
    found = volax.metrics(params, volax.pair("a", "v"))
    assert all(np.isnan(found[name]) for name in ("norm", "largest", "path_norm"))
    assert int(found["alive"]) == 3


def test_16_bits_do_not_overflow():
    params = {"w": jnp.full((300, 300), 300, jnp.float16)}
    np.testing.assert_allclose(volax.metrics(params)["norm"], 9e4, rtol=1e-4)


def test_what_cannot_be_counted_is_refused():
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones((4, 8))}
    packed = volax.pack(volax.binarize(params, volume=0.5), bits=1)
    with pytest.raises(ValueError, match="'a' is packed"):
        volax.metrics(packed)
    with pytest.raises(ValueError, match=r"metrics: group c -> b.*not in the tree"):
        volax.metrics(params, volax.pair("c", "b"))


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_weights_stay_where_they_are(kind):
    count = jax.jit(lambda p: volax.metrics(p, PAIR, volume={"l1": 0.3, "l2": 0.2}))
    params = volax.kill(sharded.tree(0), PAIR, 0.25)
    placed = sharded.put(params, LAYOUTS["tensor-fsdp"], kind)
    found = jax.device_get(count(placed))
    chex.assert_trees_all_close(found, jax.device_get(count(params)), rtol=1e-5)
    assert_as_reported(found, params, PAIR, {"l1": 0.3, "l2": 0.2})
    sent = sharded.collectives(count.lower(placed).compile())
    assert max(c.numbers for c in sent) <= 2 * sharded.UNITS
