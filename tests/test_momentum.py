"""``volumized``: the momentum feels the wall, wherever Optax keeps it."""

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import volax
from tests import cases
from tests.cases import Tree

# Most parameters here are vectors.
volumized = functools.partial(volax.volumized, mask="all")
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, 0.9),
    "nesterov": lambda: optax.sgd(0.1, 0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "nadam": lambda: optax.nadam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.0),
    "lion": lambda: optax.lion(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.9),
    "adabelief": lambda: optax.adabelief(0.1),
    "yogi": lambda: optax.yogi(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "chained": lambda: optax.chain(optax.clip(10.0), optax.adam(0.1)),
    "masked": lambda: optax.masked(optax.adam(0.1), {"w": True}),
    "partition": lambda: optax.partition({"a": optax.adam(0.1)}, {"w": "a"}),
    "if finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
}


def steps_until_it_moves(tx):
    """40 steps into the wall; how many of the opposite gradient to leave it."""
    params, update = {"w": jnp.full((2, 2), 0.5)}, jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(40):
        updates, state = update({"w": jnp.full((2, 2), -1.0)}, state, params)
        params = cases.apply(params, updates)
    np.testing.assert_allclose(params["w"], 1.0, rtol=1e-6)
    for count in range(1, 30):
        updates, state = update({"w": jnp.full((2, 2), 1.0)}, state, params)
        moved = cases.apply(params, updates)
        if float(moved["w"].max()) < float(params["w"].min()) - 1e-6:
            return count
        params = moved
    return count


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_reversed_gradient_moves_the_weight_at_the_next_step(name):
    make = OPTIMIZERS[name]
    glued = steps_until_it_moves(optax.chain(make(), volax.volumize(1.0)))
    assert glued > 1
    assert steps_until_it_moves(volumized(make(), 1.0)) == 1


def test_inside_multi_steps_too():
    tx = volumized(optax.MultiSteps(optax.adam(0.1), 1).gradient_transformation(), 1.0)
    assert steps_until_it_moves(tx) == 1


@pytest.mark.parametrize("alpha", [0.5, 0.0, -0.5, -1.0])
def test_the_moment_is_scaled_where_the_wall_was_hit_and_only_there(alpha):
    params = {"w": jnp.array([0.9, 0.0, -0.9])}
    g = {"w": jnp.array([-1.0, -1.0, 1.0])}
    tx = volumized(optax.sgd(0.5, 0.9), 1.0, alpha)
    _, state = tx.update(g, tx.init(params), params)
    expected = np.array([-alpha, -1.0, alpha])
    np.testing.assert_array_equal(optax.tree.get(state, "trace")["w"], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("jitted", [False, True])
def test_the_wall_is_hit_where_the_tentative_weight_lies_outside(dtype, jitted):
    wall, rng = 0.1, np.random.default_rng(0)
    p = jnp.asarray(rng.uniform(-2 * wall, 2 * wall, 4000), dtype)
    g = jnp.asarray(rng.normal(size=4000) * wall, dtype)
    tx = volumized(optax.sgd(1.0, 0.9), wall)
    update = jax.jit(tx.update) if jitted else tx.update
    _, state = update({"w": g}, tx.init({"w": p}), {"w": p})
    tentative = np.asarray(p, float) - np.asarray(g, float)
    # Close to the wall, a hit is a question of rounding.
    clear = np.abs(np.abs(tentative) - wall) > 2 * float(jnp.finfo(dtype).eps) * wall
    trace = np.asarray(optax.tree.get(state, "trace")["w"])
    # Of a weight outside that steps inward the momentum points inward as well.
    outward = np.sign(tentative) == -np.sign(np.asarray(g, float))
    expected = np.where((np.abs(tentative) > wall) & outward, 0, np.asarray(g))
    np.testing.assert_array_equal(trace[clear], expected[clear])
    assert clear.mean() > 0.9


def test_a_narrow_weight_at_the_wall_gathers_momentum_to_leave_it():
    params = {"w": jnp.array([0.25], jnp.bfloat16)}  # the ulp below is 2**-10
    tx = volumized(optax.sgd(1e-4, 0.9), 0.25)
    state = tx.init(params)
    for _ in range(8):
        updates, state = tx.update({"w": jnp.ones(1, jnp.bfloat16)}, state, params)
        params = cases.apply(params, updates)
    assert float(params["w"][0]) < 0.25


def test_masked_leaves_keep_their_moment():
    params = {"in": jnp.array([0.9]), "out": jnp.array([0.9])}
    mask = volax.path_matches("in")
    tx = volumized(optax.sgd(1.0, 0.9), 1.0, mask=mask)
    updates, state = cases.update(tx, jax.tree.map(lambda x: -x, params), params)
    trace = optax.tree.get(state, "trace")
    assert float(trace["in"][0]) == 0
    np.testing.assert_array_equal(trace["out"], -params["out"])
    np.testing.assert_array_equal(updates["out"], params["out"])


def test_a_field_of_another_name():
    params = {"w": jnp.array([[0.9]])}
    tx = volumized(optax.contrib.adopt(1.0), 1.0, momentum=("mu",))
    chex.assert_trees_all_equal_shapes(
        tx.update(params, tx.init(params), params)[0], params
    )
    tx = volumized(optax.adan(1.0), 1.0, momentum="m")
    _, state = tx.update({"w": jnp.array([[-1.0]])}, tx.init(params), params)
    assert float(optax.tree.get(state, "m")["w"][0, 0]) == 0


def scanned(tx, params, grads) -> tuple[Tree, Tree]:
    """All steps in one scan; parameters and state after the last."""

    @jax.jit
    def run(params):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    return run(params)


@pytest.mark.parametrize("start", [1.0, -1.0])
@pytest.mark.parametrize("alpha", [0.0, jnp.float32(0.0)], ids=["static", "traced"])
@pytest.mark.parametrize("every", [1, 2])
def test_steps_inward_below_an_ulp_leave_the_wall(start, alpha, every):
    """The first step is 2e-8, a third of the ulp below 1."""
    tx = volumized(optax.sgd(1e-3, momentum=0.9), 1.0, alpha)
    if every > 1:
        inner = optax.MultiSteps(optax.sgd(1e-3, momentum=0.9), every)
        tx = volumized(inner.gradient_transformation(), 1.0, alpha)
    params, _ = scanned(tx, jnp.array([start]), jnp.full((10_000, 1), 2e-5 * start))
    # Momentum makes every step ten times the gradient's. Steps of 3 ulps round.
    moved = 1 - abs(float(params[0]))
    assert moved == pytest.approx(10_000 / every * 2e-7, rel=0.15)


@pytest.mark.parametrize(
    ("dtype", "u_dtype"),
    [("float32", "float32"), ("float64", "float64"), ("float64", "float32")],
)
def test_static_and_traced_alpha_hit_alike(x64, dtype, u_dtype):
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.uniform(-1.2, 1.2, 400), dtype)
    sizes = 10.0 ** rng.uniform(-9, 0, 400)
    noise = rng.normal(size=(300, 400)) + rng.choice([-1, 0, 1], 400)
    grads = jnp.asarray(sizes * noise, u_dtype)
    make = functools.partial(volumized, optax.sgd(0.1, 0.9), 1.0)
    static = scanned(make(0.0), params, grads)
    traced = scanned(make(jnp.float32(0.0)), params, grads)
    chex.assert_trees_all_equal(static[0], traced[0])
    chex.assert_trees_all_equal(static[1].inner_state, traced[1].inner_state)
    trace = optax.tree.get(static[1], "trace")
    assert 0.05 < float(jnp.mean(trace == 0)) < 0.9


@pytest.mark.parametrize("make", [lambda: optax.adafactor(0.1), lambda: optax.sgd(0.1)])
def test_no_moment_is_an_error(make):
    params = {"w": jnp.ones((2, 2))}
    tx = volumized(make(), 1.0)
    with pytest.raises(ValueError, match=r"no field named mu or trace or ema.* for w;"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "other", [lambda: optax.adafactor(0.1), lambda: optax.sgd(0.1)]
)
def test_leaves_whose_optimizer_has_no_moment_are_named(other):
    params = {k: jnp.full((2, 2), 0.9) for k in "abcdefg"}
    labels = {k: "with" if k < "c" else "without" for k in params}
    optimizers: dict[Hashable, optax.GradientTransformation] = {
        "with": optax.adam(0.1),
        "without": other(),
    }
    tx = volumized(optax.partition(optimizers, labels), 1.0)
    with pytest.raises(ValueError, match=r"for c, d, e and 2 more leaves; .*mask=.*"):
        tx.update(params, tx.init(params), params)
    mask = {k: label == "with" for k, label in labels.items()}
    tx = volumized(optax.partition(optimizers, labels), 1.0, mask=mask)
    tx.update(params, tx.init(params), params)


class Parts(NamedTuple):
    """Parameters whose parts are called like the fields of an optimizer's state."""

    mu: Any
    trace: Any


class Attention(eqx.Module):
    mu: Any
    nu: Any


NESTED = {
    "named tuple": lambda x: Parts({"mu": x, "w": x}, {"mu": {"mu": x}}),
    "itself": lambda x: {"mu": Parts(x, Parts(x, x)), "w": x},
    "equinox": lambda x: Attention(mu={"w": x}, nu=Attention(mu=x, nu={"w": x})),
    "array": lambda x: x,
    "nnx": lambda x: nnx.State({"mu": {"mu": nnx.Param(x)}, "w": nnx.Param(x)}),
}
WRAPPED = {
    "adam": optax.adam,
    "inject_hyperparams": optax.inject_hyperparams(optax.adam),
    "masked": lambda rate: optax.masked(optax.adam(rate), lambda p: trues(p)),
    "partition": lambda rate: optax.partition(
        {True: optax.adam(rate)}, lambda p: trues(p)
    ),
    "MultiSteps": lambda rate: optax.MultiSteps(optax.adam(rate), 1),
}


def trues(params):
    return jax.tree.map(lambda x: True, params)


@pytest.mark.parametrize("tree", NESTED)
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_only_the_first_moment_is_scaled_whatever_parts_are_called(tree, wrapped):
    params = NESTED[tree](jnp.array([0.9, 0.0]))
    grads = jax.tree.map(lambda x: -jnp.ones_like(x), params)
    plain = WRAPPED[wrapped](0.5)
    tx = volumized(plain, 1.0)
    _, state = cases.update(tx, grads, params)
    _, expected = plain.update(grads, plain.init(params), params)
    hit, free = np.array([0.0, -0.1], np.float32)
    unchanged, scaled = 0, 0
    for one, other in zip(
        jax.tree.leaves(state.inner_state), jax.tree.leaves(expected)
    ):
        if np.array_equal(one, other):
            unchanged += np.shape(one) == (2,)
        else:
            np.testing.assert_allclose(one, [hit, free], rtol=1e-6)
            np.testing.assert_allclose(other, [free, free], rtol=1e-6)
            scaled += 1
    leaves = len(jax.tree.leaves(params))
    assert scaled == leaves
    # The second moment, and what MultiSteps has added up.
    assert unchanged == leaves * (2 if wrapped == "MultiSteps" else 1)


def test_the_moment_is_scaled_in_an_nnx_optimizer():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.mu = nnx.Linear(2, 2, rngs=rngs)
            self.trace = nnx.List([nnx.Linear(2, 2, use_bias=False, rngs=rngs)])

    model = Net(nnx.Rngs(0))
    tx = volumized(optax.adam(10.0), 0.5)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    adam = nnx.to_pure_dict(nnx.state(optimizer))["opt_state"]["inner_state"][0]
    mu, nu = (jax.tree.leaves(adam[name]) for name in ("mu", "nu"))
    assert len(mu) == len(nu) == 3
    assert not any(np.any(x) for x in mu)
    assert all(np.all(x > 0) for x in nu)


def test_moments_in_bfloat16_stay_bfloat16():
    params = {"w": jnp.array([[0.9]])}
    tx = volumized(optax.adam(1.0, mu_dtype=jnp.bfloat16), 1.0, -0.3)
    state = tx.init(params)
    _, after = tx.update({"w": jnp.array([[-1.0]])}, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
