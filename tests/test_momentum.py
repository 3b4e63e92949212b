"""``volumized``: the momentum feels the wall, wherever Optax keeps it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax

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
    params = {"w": jnp.full((2, 2), 0.5)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(40):
        updates, state = update({"w": jnp.full((2, 2), -1.0)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], 1.0, rtol=1e-6)
    for count in range(1, 30):
        updates, state = update({"w": jnp.full((2, 2), 1.0)}, state, params)
        moved = optax.apply_updates(params, updates)
        if float(moved["w"].max()) < float(params["w"].min()) - 1e-6:
            return count
        params = moved
    return count


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_reversed_gradient_moves_the_weight_at_the_next_step(name):
    make = OPTIMIZERS[name]
    glued = steps_until_it_moves(optax.chain(make(), volax.volumize(1.0)))
    assert glued > 1
    assert steps_until_it_moves(volax.volumized(make(), 1.0)) == 1


def test_inside_multi_steps_too():
    tx = volax.volumized(optax.MultiSteps(optax.adam(0.1), 1), 1.0)
    assert steps_until_it_moves(tx) == 1


@pytest.mark.parametrize("alpha", [0.5, 0.0, -0.5, -1.0])
def test_the_moment_is_scaled_where_the_wall_was_hit_and_only_there(alpha):
    params = {"w": jnp.array([0.9, 0.0, -0.9])}
    g = {"w": jnp.array([-1.0, -1.0, 1.0])}
    tx = volax.volumized(optax.sgd(0.5, 0.9), 1.0, alpha)
    _, state = tx.update(g, tx.init(params), params)
    expected = np.array([-alpha, -1.0, alpha])
    np.testing.assert_array_equal(optax.tree.get(state, "trace")["w"], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("jitted", [False, True])
def test_the_wall_is_hit_where_the_tentative_weight_lies_outside(dtype, jitted):
    wall, rng = 0.1, np.random.default_rng(0)
    p = jnp.asarray(rng.uniform(-2 * wall, 2 * wall, 4000), dtype)
    g = jnp.asarray(rng.normal(size=4000) * wall, dtype)
    tx = volax.volumized(optax.sgd(1.0, 0.9), wall)
    update = jax.jit(tx.update) if jitted else tx.update
    _, state = update({"w": g}, tx.init({"w": p}), {"w": p})
    tentative = np.asarray(p, float) - np.asarray(g, float)
    # Close to the wall, a hit is a question of rounding.
    clear = np.abs(np.abs(tentative) - wall) > 2 * float(jnp.finfo(dtype).eps) * wall
    trace = np.asarray(optax.tree.get(state, "trace")["w"])
    expected = np.where(np.abs(tentative) > wall, 0, np.asarray(g))
    np.testing.assert_array_equal(trace[clear], expected[clear])
    assert clear.mean() > 0.9


def test_a_narrow_weight_at_the_wall_gathers_momentum_to_leave_it():
    params = {"w": jnp.array([0.25], jnp.bfloat16)}  # the ulp below is 2**-10
    tx = volax.volumized(optax.sgd(1e-4, 0.9), 0.25)
    state = tx.init(params)
    for _ in range(8):
        updates, state = tx.update({"w": jnp.ones(1, jnp.bfloat16)}, state, params)
        params = optax.apply_updates(params, updates)
    assert float(params["w"][0]) < 0.25


def test_masked_leaves_keep_their_moment():
    params = {"in": jnp.array([0.9]), "out": jnp.array([0.9])}
    mask = volax.path_matches("in")
    tx = volax.volumized(optax.sgd(1.0, 0.9), 1.0, mask=mask)
    updates, state = tx.update(
        jax.tree.map(lambda x: -x, params), tx.init(params), params
    )
    trace = optax.tree.get(state, "trace")
    assert float(trace["in"][0]) == 0
    np.testing.assert_array_equal(trace["out"], -params["out"])
    np.testing.assert_array_equal(updates["out"], params["out"])


def test_a_field_of_another_name():
    params = {"w": jnp.array([[0.9]])}
    tx = volax.volumized(optax.contrib.adopt(1.0), 1.0, momentum=("mu",))
    chex.assert_trees_all_equal_shapes(
        tx.update(params, tx.init(params), params)[0], params
    )
    tx = volax.volumized(optax.adan(1.0), 1.0, momentum="m")
    _, state = tx.update({"w": jnp.array([[-1.0]])}, tx.init(params), params)
    assert float(optax.tree.get(state, "m")["w"][0, 0]) == 0


@pytest.mark.parametrize("make", [lambda: optax.adafactor(0.1), lambda: optax.sgd(0.1)])
def test_no_moment_is_an_error(make):
    params = {"w": jnp.ones((2, 2))}
    tx = volax.volumized(make(), 1.0)
    with pytest.raises(ValueError, match=r"no field named mu or trace or ema"):
        tx.update(params, tx.init(params), params)


def test_moments_in_bfloat16_stay_bfloat16():
    params = {"w": jnp.array([[0.9]])}
    tx = volax.volumized(optax.adam(1.0, mu_dtype=jnp.bfloat16), 1.0, -0.3)
    state = tx.init(params)
    _, after = tx.update({"w": jnp.array([[-1.0]])}, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
