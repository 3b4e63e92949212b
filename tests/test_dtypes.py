"""bfloat16 parameters where JAX promotes no dtype by itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax
from tests.cases import CASES, PAIR, params
from tests.prox.maps import MAPS

# Optax's Adam divides by its integer count, so it does not run here itself.
THEIRS = ("lp_adam", "volumized_adam", "path_prox_adam")
OURS = {name: case for name, case in CASES.items() if name not in THEIRS}
NUMBERS = {"numbers": lambda v: v, "schedules": optax.constant_schedule}


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def dead(dtype=jnp.bfloat16):
    tree = params(dtype=dtype)
    tree["l2"]["kernel"] = tree["l2"]["kernel"].at[1].set(0)
    return tree


def fn(params, x):
    hidden = jax.nn.relu(x @ params["l1"]["kernel"] + params["l1"]["bias"])
    return hidden @ params["l2"]["kernel"] + params["l2"]["bias"]


@pytest.mark.parametrize("made", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("case", OURS.values(), ids=OURS.keys())
def test_every_rule(case, made):
    numbers = {
        k: made(v)
        for k, v in case.kwargs.items()
        if isinstance(v, float) and k != "momentum"
    }
    tx, tree = case.make(**numbers), params(dtype=jnp.bfloat16)

    @jax.jit
    def update(grads, state, tree):
        return tx.update(grads, state, tree)

    updates, state = update(params(7, jnp.bfloat16), tx.init(tree), tree)
    chex.assert_trees_all_equal_dtypes(updates, tree)
    with jax.numpy_dtype_promotion("standard"):
        free, _ = tx.update(params(7, jnp.bfloat16), tx.init(tree), tree)
    as_float = [
        [np.asarray(x, np.float32) for x in jax.tree.leaves(t)] for t in (updates, free)
    ]
    chex.assert_trees_all_close(*as_float, atol=0.02)
    if not case.alone:
        updates, _ = update(params(7), state, tree)  # float32 beside bfloat16
        chex.assert_trees_all_equal_dtypes(updates, params())


# Where strengths come from: a number, the weights' own dtype, a schedule, one a matrix.
STRENGTHS = {
    "number": 0.5,
    "bfloat16": jnp.bfloat16(0.5),
    "float32": jnp.float32(0.5),
    "array": np.full((4, 1, 1), 0.5, np.float32),
}


@pytest.mark.parametrize("strength", STRENGTHS.values(), ids=STRENGTHS.keys())
@pytest.mark.parametrize("name", MAPS)
def test_every_map_and_its_penalty(name, strength):
    x = jax.random.normal(jax.random.key(0), (4, 3, 2), jnp.bfloat16)
    found = [MAPS[name].call(x, strength), MAPS[name].penalty(x)]
    assert [y.dtype for y in found] == [jnp.bfloat16, jnp.float32]
    with jax.numpy_dtype_promotion("standard"):
        free = [MAPS[name].call(x, strength), MAPS[name].penalty(x)]
    chex.assert_trees_all_equal(found, free)


@pytest.mark.parametrize("name", MAPS)
def test_every_map_behind_an_optimizer(name):
    call = MAPS[name].call
    tx, tree = volax.proximal(0.1, 0.5, lambda x, strength: call(x, strength)), params()
    tree = {"w": tree["l1"]["kernel"].astype(jnp.bfloat16)}
    updates, _ = tx.update(tree, tx.init(tree), tree)
    chex.assert_trees_all_equal_dtypes(updates, tree)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_path_norms_and_a_smaller_model(dtype):
    tree, x = dead(dtype), jnp.ones((2, 3), dtype)
    assert volax.path_norm(tree, PAIR)[0].dtype == jnp.float32
    tx = optax.sgd(0.1, momentum=0.9)
    pairs = volax.find_pairs(fn, tree, x)
    small = volax.compact(tree, pairs, opt_state=tx.init(tree), check=(fn, fn, (x,)))
    assert small.sizes["l1/kernel"] == (3, 3)
    assert small.params["l1"]["kernel"].dtype == dtype
    (difference,) = volax.check_groups(PAIR, fn, tree, x)
    assert difference < 0.1
    assert "l1/kernel" in str(volax.report(tree, PAIR))


@pytest.mark.parametrize("volume", [None, 0.3])
@pytest.mark.parametrize(("bits", "make"), [(1, volax.binarize), (2, volax.ternarize)])
def test_packed_weights(bits, make, volume):
    rough = make(params(dtype=jnp.bfloat16), volume=volume)
    packed = volax.pack(rough, bits=bits)
    chex.assert_trees_all_equal(volax.unpack(packed), rough)
    for dtype in (jnp.bfloat16, jnp.float32):
        product = jnp.ones((2, 3), dtype) @ packed["l1"]["kernel"]
        assert product.dtype == dtype
