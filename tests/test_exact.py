"""Exact outcomes after ``optax.apply_updates``, in every dtype, from the first step."""

import functools
import itertools
import math
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import volax
from tests.cases import Tree

pytestmark = pytest.mark.usefixtures("as_users_compile")
NARROW = [jnp.float32, jnp.bfloat16, jnp.float16]
PAIRS = [
    *itertools.product(NARROW, NARROW),
    *itertools.product([jnp.float64], [*NARROW, jnp.float64]),
    *itertools.product(NARROW, [jnp.float64]),
]
every_dtype = pytest.mark.parametrize(
    ("p_dtype", "u_dtype"), PAIRS, ids=[f"{a.__name__}-{b.__name__}" for a, b in PAIRS]
)
fuzzed = hypothesis.settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@functools.cache
def compiled(tx) -> tuple[Any, Any]:
    """The update, and the update with what applies it."""

    def step(params, updates):
        out, _ = tx.update(updates, tx.init(params), params)
        return optax.apply_updates(params, out)

    return jax.jit(tx.update), jax.jit(step)


def apply(tx, params, updates, how) -> Tree:
    """One step: eager, with the update jitted, or with update and apply fused."""
    if how == "fused":
        return compiled(tx)[1](params, updates)
    update = compiled(tx)[0] if how == "jitted" else tx.update
    out, _ = update(updates, tx.init(params), params)
    return optax.apply_updates(params, out)


AS_IT_IS = optax.identity()
SNAPPING = volax.lp_decay(0.1, 0.3, 1.0, mask="all", snap_below=0.2)
STICKY = volax.lp_decay(0.1, 0.3, 1.0, mask="all")
UNITS = {
    mode: volax.path_prox(1.0, 0.3, volax.pair("a", "v"), normalize=mode)
    for mode in ("project", "rescale", "none")
}


def draw(seed, p_dtype, u_dtype, size=4096, spread=1.0):
    """Weights and steps over several orders of magnitude around ``spread``."""
    rng = np.random.default_rng(seed)

    def some(dtype, powers):
        x = rng.normal(size=size) * spread * 2.0 ** rng.integers(*powers, size=size)
        return jnp.asarray(x, dtype)

    return some(p_dtype, (-6, 4)), some(u_dtype, (-6, 4))


def exact(x):
    return np.asarray(x).astype(np.float64)


@every_dtype
@fuzzed
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    volume=st.floats(1e-3, 100.0),
    alpha=st.sampled_from([0.0, -0.25, -1.0]),
    how=st.sampled_from(["eager", "jitted", "fused"]),
)
def test_no_weight_leaves_the_volume(x64, p_dtype, u_dtype, seed, volume, alpha, how):
    params, updates = draw(seed, p_dtype, u_dtype, spread=volume)
    new = apply(volax.volumize(volume, alpha, mask="all"), params, updates, how)
    assert new.dtype == p_dtype
    assert np.max(np.abs(exact(new))) <= volume
    # The wall does not pull weights in: a clipped weight sits a few ulp below at most.
    if alpha == 0.0:
        eps = float(jnp.finfo(p_dtype).eps)
        assert np.max(np.abs(exact(new))) >= volume * (1 - 4 * eps)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind", ["array", "schedule", "relative"])
def test_a_wall_that_is_an_array_bounds_as_well(dtype, kind):
    """A float32 wall of 0.1 is no 16-bit number; it must round toward zero."""
    params, updates = draw(3, dtype, dtype, spread=0.1)
    wall = jnp.float32(0.1)
    if kind == "relative":
        wall = 0.3 * jnp.abs(params).max().astype(jnp.float32)
    volume = {
        "array": wall,
        "schedule": optax.constant_schedule(wall),
        "relative": volax.relative_to_init(0.3),
    }[kind]
    new = apply(volax.volumize(volume, mask="all"), params, updates, "jitted")
    assert np.max(np.abs(exact(new))) <= float(wall)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("volume", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("how", ["eager", "jitted", "fused"])
def test_every_16_bit_weight_lands_inside(dtype, volume, how):
    bits = jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16)
    params = jax.lax.bitcast_convert_type(bits, dtype)
    params = params[jnp.abs(params) < jnp.finfo(dtype).max / 4]
    for step in (0.0, 3 * volume, -volume / 3):
        updates = jnp.full(params.shape, step, dtype)
        new = exact(apply(volax.volumize(volume, mask="all"), params, updates, how))
        assert np.max(np.abs(new)) <= volume


def test_the_naive_update_breaks_the_bound():
    """What the contract is there for; if this fails, it may have become simpler."""
    params, updates = draw(0, jnp.float32, jnp.float32, size=2**16, spread=0.1)
    naive = params + (jnp.clip(params + updates, -0.1, 0.1) - params)
    assert np.mean(np.abs(exact(naive)) > 0.1) > 0.001


@every_dtype
@fuzzed
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1), how=st.sampled_from(["eager", "jitted", "fused"])
)
def test_zeros_are_exactly_zero(x64, p_dtype, u_dtype, seed, how):
    params, updates = draw(seed, p_dtype, u_dtype, size=512)
    new = exact(apply(SNAPPING, params, updates, how))
    assert np.all((new == 0) | (np.abs(new) > 0.19))
    assert np.any(new == 0)
    pruned = params.at[::2].set(0)
    sticky = exact(apply(STICKY, pruned, updates, how))
    assert np.all(sticky[::2] == 0)
    assert np.any(sticky[1::2] != 0)


@every_dtype
@fuzzed
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    how=st.sampled_from(["eager", "jitted", "fused"]),
    normalize=st.sampled_from(["project", "rescale", "none"]),
)
def test_dead_units_are_exactly_zero(x64, p_dtype, u_dtype, seed, how, normalize):
    (a, v), (da, dv) = zip(
        *(draw(seed + k, p_dtype, u_dtype, size=64, spread=0.1) for k in range(2))
    )
    params = {"a": a.reshape(4, 16), "v": v.reshape(16, 4)}
    updates = {"a": da.reshape(4, 16), "v": dv.reshape(16, 4)}
    new = apply(UNITS[normalize], params, updates, how)
    norms = np.linalg.norm(exact(new["v"]), axis=1)
    w = {k: exact(params[k]) + exact(updates[k]) for k in params}
    path = np.linalg.norm(w["v"], axis=1)
    if normalize == "rescale":
        path = path * np.linalg.norm(w["a"], axis=0)
    if normalize == "none":
        path = path / np.linalg.norm(exact(params["a"]), axis=0)
    assert np.all(norms[path < 0.29] == 0)
    assert np.all(norms[path > 0.31] > 0)


@every_dtype
@pytest.mark.parametrize(("over", "p"), [("consumers", 1.0), ("all", 0.5)])
def test_units_below_the_threshold_are_exactly_zero(x64, p_dtype, u_dtype, over, p):
    (a, v), (da, dv) = zip(
        *(draw(7 + k, p_dtype, u_dtype, size=64, spread=0.1) for k in range(2))
    )
    params = {"a": a.reshape(4, 16), "v": v.reshape(16, 4)}
    updates = {"a": da.reshape(4, 16), "v": dv.reshape(16, 4)}
    prox = volax.group_prox(1.0, 0.15, volax.pair("a", "v"), over=over, p=p)
    new = {k: exact(x) for k, x in apply(prox, params, updates, "fused").items()}
    w = {k: exact(params[k]) + exact(updates[k]) for k in params}
    units = [w["v"]] if over == "consumers" else [w["a"].T, w["v"]]
    size = np.sqrt(np.mean(np.square(np.concatenate(units, 1)), 1))
    limit = 0.15 if p == 1 else 1.5 * 0.15 ** (2 / 3)
    left = np.abs(new["v"]).max(1)
    assert np.all(left[size < 0.97 * limit] == 0)
    assert np.all(left[size > 1.03 * limit] > 0)
    assert 0 < (left == 0).sum() < 16
    moved = exact(apply(AS_IT_IS, params, updates, "fused")["a"])
    if over == "consumers":
        np.testing.assert_array_equal(new["a"], moved)
    else:
        assert np.all(new["a"][:, left == 0] == 0)


@pytest.mark.thinned
@every_dtype
@pytest.mark.parametrize("how", ["eager", "jitted", "fused"])
@pytest.mark.parametrize("freeze", [True, False])
def test_units_that_are_not_kept_are_exactly_zero(x64, p_dtype, u_dtype, how, freeze):
    """The others are what the rest of the chain made them, bit for bit."""
    shapes = {"a": (4, 16), "b": (16,), "v": (16, 4)}
    params, updates = (
        {
            path: draw(seed + k, *[dtype] * 2, size=math.prod(shape))[0].reshape(shape)
            for k, (path, shape) in enumerate(shapes.items())
        }
        for seed, dtype in ((0, p_dtype), (10, u_dtype))
    )
    pair = volax.pair("a", "v", bias="b")
    new = apply(volax.keep_units(0.5, pair, freeze=freeze), params, updates, how)
    plain = apply(AS_IT_IS, params, updates, how)
    gone = np.all(exact(new["v"]) == 0, axis=1)
    assert gone.sum() == 8
    for path, units in (("a", 1), ("b", 0), ("v", 0)):
        zeroed = gone if freeze or path == "v" else np.zeros(16, bool)
        ours, theirs = (
            np.moveaxis(exact(tree[path]), units, 0) for tree in (new, plain)
        )
        assert np.all(ours[zeroed] == 0)
        np.testing.assert_array_equal(ours[~zeroed], theirs[~zeroed])


@every_dtype
@pytest.mark.parametrize("how", ["eager", "jitted", "fused"])
def test_what_a_proximal_map_removes_is_exactly_zero(x64, p_dtype, u_dtype, how):
    params, updates = draw(5, p_dtype, u_dtype, size=512, spread=0.5)
    w = np.abs(exact(params) + exact(updates))
    l1 = volax.proximal(0.5, 0.4, volax.prox.soft_threshold, mask="all")
    new = exact(apply(l1, params, updates, how))
    assert np.all(new[w < 0.19] == 0)
    assert np.all(new[w > 0.21] != 0)
    rows = functools.partial(volax.prox.group_soft_threshold, axis=1)
    group = volax.proximal(0.5, 1.5, rows)
    shape = (128, 4)
    new = apply(group, params.reshape(shape), updates.reshape(shape), how)
    norms = np.linalg.norm(w.reshape(shape), axis=1)
    left = np.abs(exact(new)).max(axis=1)
    assert np.all(left[norms < 0.73] == 0)
    assert np.all(left[norms > 0.77] > 0)
    assert (norms < 0.73).any()


@pytest.mark.thinned
@every_dtype
@pytest.mark.parametrize("how", ["eager", "jitted", "fused"])
@pytest.mark.parametrize("name", ["volumize", "lp_decay"])
def test_masked_leaves_are_bit_identical(x64, p_dtype, u_dtype, how, name):
    p, u = draw(5, p_dtype, u_dtype)
    mask = volax.path_matches("^in$")
    tx = {
        "volumize": volax.volumize(0.1, mask=mask),
        "lp_decay": volax.lp_decay(0.1, 0.5, 1.0, mask=mask),
    }[name]
    new = apply(tx, {"in": p, "out": p}, {"in": u, "out": u}, how)
    plain = apply(AS_IT_IS, {"out": p}, {"out": u}, how)
    np.testing.assert_array_equal(exact(new["out"]), exact(plain["out"]))
    assert np.any(exact(new["in"]) != exact(plain["out"]))


@every_dtype
@pytest.mark.parametrize("how", ["eager", "jitted", "fused"])
def test_no_wall_and_no_strength_change_nothing(x64, p_dtype, u_dtype, how):
    p, u = draw(6, p_dtype, u_dtype)
    plain = exact(apply(AS_IT_IS, p, u, how))
    for tx in (
        volax.volumize(np.inf, mask="all"),
        volax.volumize(0.1, 1.0, mask="all"),
        volax.lp_decay(0.1, 0.0, 1.0, mask="all"),
        volax.lp_decay(0.0, 0.1, 0.5, mask="all"),
        volax.lp_decay(0.1, optax.constant_schedule(0.0), 0.7, mask="all"),
    ):
        np.testing.assert_array_equal(exact(apply(tx, p, u, how)), plain)


@pytest.mark.parametrize("alpha", [0.0, -0.5, -1.0])
def test_a_box_smaller_than_the_overshoot(alpha):
    tx = volax.volumize(0.1, alpha, mask="all")
    new = apply(tx, jnp.array([0.0, 0.0]), jnp.array([50.0, -jnp.inf]), "eager")
    assert np.max(np.abs(exact(new))) <= 0.1


NONFINITE = [np.nan, np.inf, -np.inf]
ROW, COLUMN = np.indices((4, 4))
# The entries of a and v that a bad weight at a[1, 2] may change: itself for an
# elementwise rule, the weights of its unit for a rule of units.
ITSELF = ((ROW == 1) & (COLUMN == 2), ROW < 0)
FROM_A = (COLUMN == 2, ROW == 2)
INTO_A = (ROW == 1, COLUMN == 1)
IN_A = (ROW == 1, ROW < 0)


@pytest.mark.parametrize("bad", NONFINITE)
@pytest.mark.parametrize("where", ["params", "updates"])
@pytest.mark.parametrize(
    ("tx", "touched"),
    [
        (volax.volumize(0.5), ITSELF),
        (volax.volumize(0.5, -0.5), ITSELF),
        (volax.volumize(0.5, optax.constant_schedule(0.0)), ITSELF),
        *((volax.lp_decay(0.1, 0.5, p), ITSELF) for p in (0.5, 0.7, 1.0, 2.0, 3.0)),
        (volax.lp_decay(0.1, 0.5, optax.constant_schedule(0.7)), ITSELF),
        *(
            (volax.path_prox(0.1, 0.5, volax.pair(*sides), normalize=mode), touched)
            for sides, touched in (("av", FROM_A), ("va", INTO_A))
            for mode in ("rescale", "project", "none")
        ),
        (volax.path_prox(0.1, 0.5, volax.pair("a", "v"), p=0.5), FROM_A),
        *(
            (volax.group_prox(0.1, 0.5, volax.pair("v", "a"), p=p), IN_A)
            for p in (1.0, 0.5, 0.0)
        ),
        (volax.group_prox(0.1, 0.5, volax.pair("v", "a"), over="all"), INTO_A),
    ],
)
def test_a_bad_weight_does_not_spread(tx, touched, bad, where):
    rng = np.random.default_rng(0)
    params, updates = (
        {"a": rng.normal(size=(4, 4)), "v": rng.normal(size=(4, 4))} for _ in range(2)
    )
    clean = apply(
        tx,
        jax.tree.map(jnp.float32, params),
        jax.tree.map(jnp.float32, updates),
        "eager",
    )
    {"params": params, "updates": updates}[where]["a"][1, 2] = bad
    new = apply(
        tx,
        jax.tree.map(jnp.float32, params),
        jax.tree.map(jnp.float32, updates),
        "eager",
    )
    for name, places, itself in zip(("a", "v"), touched, ITSELF):
        assert np.isfinite(new[name][~itself]).all()
        np.testing.assert_array_equal(new[name][~places], clean[name][~places])


def test_an_infinite_step_stops_at_the_wall_and_nan_stays():
    params, updates = jnp.zeros(3), jnp.array([jnp.inf, -jnp.inf, jnp.nan])
    for alpha in (0.0, optax.constant_schedule(0.0)):
        new = apply(volax.volumize(0.5, alpha, mask="all"), params, updates, "jitted")
        np.testing.assert_array_equal(new, [0.5, -0.5, np.nan])


@pytest.mark.parametrize("p", [0.0, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("scheduled", [False, True])
def test_lp_decay_at_zero_and_at_the_smallest_weights(p, scheduled):
    order = optax.constant_schedule(p) if scheduled else p
    tiny = np.array([0.0, -0.0, 1e-45, 1e-38, 1e-20, 1e30], np.float32)
    for zeros in ("sticky", "free"):
        tx = volax.lp_decay(0.1, 0.3, order, mask="all", zeros=zeros)
        new = apply(tx, jnp.asarray(tiny), jnp.full(6, 0.25), "eager")
        assert np.isfinite(new).all()
        moves = p >= 2 or zeros == "free"
        assert (new[0] != 0) == moves
        assert (new[1] != 0) == moves
