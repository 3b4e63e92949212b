"""Closed forms and optimality of the proximal maps."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from volax import prox

fuzzed = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


@fuzzed
@hypothesis.given(seed=seeds, threshold=st.floats(0.01, 3.0))
def test_group_shrinkage_minimises_its_objective(seed, threshold):
    """theta ||v|| + ||v - w||^2 / 2 has no smaller value nearby, or far away."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=5)
    norm = np.float32(np.linalg.norm(w))
    v = w * float(prox.group_shrinkage(jnp.asarray(norm), threshold))

    def objective(v):
        return threshold * np.linalg.norm(v, axis=-1) + ((v - w) ** 2).sum(-1) / 2

    others = v + rng.normal(size=(200, 5)) * 10.0 ** rng.uniform(-4, 1, (200, 1))
    assert np.all(objective(others) >= objective(v) - 1e-5)


@fuzzed
@hypothesis.given(seed=seeds, volume=st.floats(0.0, 2.0))
def test_a_clipping_wall_is_the_projection(seed, volume):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=20).astype(np.float32)
    t = np.asarray(prox.wall(jnp.asarray(w), volume, 0.0))
    inside = rng.uniform(-volume, volume, (50, 20))
    assert np.all(np.abs(t) <= np.float32(volume))
    assert np.all(np.abs(inside - w) >= np.abs(t - w) - 1e-6)


def test_wall_with_volume_0_is_decay_by_alpha():
    w = jnp.array([1.0, -2.0, 0.0])
    np.testing.assert_array_equal(prox.wall(w, 0.0, 0.5), 0.5 * w)
    np.testing.assert_array_equal(prox.wall(w, 0.0, -0.5), 0.0 * w)


@functools.cache
def factor(p):
    """The factor that a reference sets, compiled once for all strengths."""
    if p is None:
        return jax.jit(lambda x, k, p: prox.lp_shrink(jnp.ones_like(x), x, k, p))
    return jax.jit(lambda x, k, _: prox.lp_shrink(jnp.ones_like(x), x, k, p))


@pytest.mark.parametrize("p", [0, 0.5, 2 / 3, 0.8, 1, 4 / 3, 1.5, 2, 2.5, 3, 4])
@pytest.mark.parametrize("k", [1e-10, 1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("traced", [False, True])
def test_lp_shrink_factor_against_float64(as_users_compile, p, k, traced):
    sizes = np.geomspace(1.2e-38, 3e38, 100_001).astype(np.float32)
    k, order = np.float32(k), np.float64(np.float32(p) if traced else p)
    shrunk = factor(None if traced else p)(sizes, k, jnp.float32(p))
    actual = np.asarray(shrunk, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        expected = 1 / (1 + np.float64(k) / sizes.astype(np.float64) ** (2 - order))
    # The factor itself must be a normal number, with a little room.
    normal = expected > 1e-36
    large = normal & (sizes >= 1e-12)
    np.testing.assert_allclose(actual[large], expected[large], rtol=2e-6)
    np.testing.assert_allclose(actual[normal], expected[normal], rtol=1e-5)
    assert np.all(actual[~normal] < 2e-36)


@pytest.mark.parametrize("p", [0, 0.5, 1, 1.5, 2, 2.5, 3])
def test_lp_shrink_agrees_for_static_and_traced_p(p):
    w = jnp.array([0.0, 1e-6, 0.3, -2.0])
    static = prox.lp_shrink(w, w, 0.1, p)
    traced = prox.lp_shrink(w, w, jnp.float32(0.1), jnp.float32(p))
    np.testing.assert_allclose(static, traced, rtol=2e-6)


def test_snap_keeps_what_is_large_enough():
    w = jnp.array([0.1, -0.1, 0.05, -0.2, 0.0, jnp.nan])
    t = prox.snap(w, 0.1)
    np.testing.assert_array_equal(t, jnp.array([0.1, -0.1, 0.0, -0.2, 0.0, jnp.nan]))


def slopes_by_differences(f, args, argument, step=1e-6):
    """Central differences of the sum of f by each entry of one argument."""
    x = np.asarray(args[argument], np.float64)
    slopes = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = []
        for sign in (1, -1):
            near = x.copy()
            near[index] += sign * step
            given = [*args[:argument], jnp.asarray(near), *args[argument + 1 :]]
            moved.append(float(jnp.sum(f(*given))))
        slopes[index] = (moved[0] - moved[1]) / (2 * step)
    return slopes


def assert_gradients(f, args, rtol=1e-6, atol=1e-7):
    """All gradients against differences in float64, and float32 against float64."""
    args = [jnp.asarray(x, jnp.float64) for x in args]
    every = tuple(range(len(args)))
    grads = jax.grad(lambda *x: jnp.sum(f(*x)), every)
    exact = jax.jit(grads)(*args)
    for argument, slope in enumerate(exact):
        expected = slopes_by_differences(f, args, argument)
        np.testing.assert_allclose(slope, expected, rtol=rtol, atol=atol)
    narrow = grads(*(x.astype(jnp.float32) for x in args))
    for slope, expected in zip(narrow, exact):
        assert slope.dtype == jnp.float32
        np.testing.assert_allclose(slope, expected, rtol=2e-5, atol=2e-6)


W = [-1.3, -0.4, 0.02, 0.3, 0.9, 2.0]
R = [0.5, -0.03, 0.2, -1.1, 0.7, 0.06]


@pytest.mark.parametrize("p", [0, 0.5, 2 / 3, 0.8, 1, 4 / 3, 1.5, 2, 2.5, 3])
@pytest.mark.parametrize("k", [0.3, 1e-3])
@pytest.mark.parametrize("traced", [False, True], ids=["static", "traced"])
def test_lp_shrink_has_the_gradients_of_its_formula(x64, p, k, traced):
    if traced:
        p = max(p, 0.1)  # differences need room on both sides
        assert_gradients(prox.lp_shrink, [W, R, k, p])
    else:
        assert_gradients(lambda w, r, k: prox.lp_shrink(w, r, k, p), [W, R, k])


def test_lp_shrink_without_strength_has_the_gradient_by_strength(x64):
    w, r = jnp.asarray(W), jnp.asarray(R)
    slope = jax.grad(lambda k: jnp.sum(prox.lp_shrink(w, r, k, 0.8)))(0.0)
    expected = -np.sum(np.asarray(W) * np.abs(R) ** -1.2)
    np.testing.assert_allclose(slope, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("zeros", ["sticky", "free"])
@pytest.mark.parametrize("p", [0, 0.5, 0.8, 1, 1.5, 2, 2.5, 3])
@pytest.mark.parametrize("traced", [False, True], ids=["static", "traced"])
def test_lp_shrink_has_finite_gradients_at_zero(x64, dtype, zeros, p, traced):
    w, r = jnp.asarray([0.5, 0.0, 0.3], dtype), jnp.asarray([0.0, 0.0, 1e-40], dtype)
    r = r[:2] if dtype == jnp.float64 else r  # 1e-40 is no subnormal in float64
    w = w[: r.size]
    order = jnp.asarray(p, dtype) if traced else p

    def total(w, r, k):
        return jnp.sum(prox.lp_shrink(w, r, k, order, zeros=zeros))

    by_w, by_r, by_k = jax.grad(total, (0, 1, 2))(w, r, jnp.asarray(0.25, dtype))
    moves = {True: 0.8, False: 1.0 if p > 2 or zeros == "free" else 0.0}[p == 2]
    np.testing.assert_allclose(by_w, np.full(w.shape, moves), rtol=1e-6)
    np.testing.assert_array_equal(by_r, np.zeros(w.shape))
    expected = -0.64 * float(w.sum()) if p == 2 else 0.0
    np.testing.assert_allclose(by_k, expected, rtol=1e-6)
    if traced:
        by_p = jax.grad(lambda p: prox.lp_shrink(w, r, 0.25, p, zeros=zeros).sum())
        assert float(by_p(order)) == 0.0


def test_lp_shrink_gradients_of_extreme_weights_are_finite():
    sizes = jnp.asarray(np.geomspace(1.2e-38, 3e38, 2001), jnp.float32)
    for p in (0.0, 0.8, 1.0, 1.5, 2.5):
        for k in (0.0, 1e-30, 1e-3, 1.0):
            f = lambda w, r, k, p: prox.lp_shrink(w, r, k, p)  # noqa: E731
            slopes = jax.vmap(jax.grad(f, (0, 1)), (0, 0, None, None))(
                sizes, sizes, jnp.float32(k), jnp.float32(p)
            )
            assert all(np.isfinite(s).all() for s in slopes)


def test_lp_shrink_under_vmap_and_twice_differentiated(x64):
    w, r = jnp.asarray(W), jnp.asarray(R)
    one = jax.jit(jax.grad(prox.lp_shrink, (0, 1, 2, 3)))
    each = jax.vmap(one, (0, 0, None, None))(w, r, 0.3, 0.8)
    for k in range(w.size):
        for slope, expected in zip(each, one(w[k], r[k], 0.3, 0.8)):
            np.testing.assert_allclose(slope[k], expected, rtol=1e-14)
    forward = jax.jacfwd(prox.lp_shrink, (0, 1, 2, 3))(w[0], r[0], 0.3, 0.8)
    np.testing.assert_allclose(forward, [s[0] for s in each], rtol=1e-14)
    for argument in range(4):
        first = lambda *x, a=argument: jnp.sum(jax.grad(  # noqa: E731
            lambda *y: jnp.sum(prox.lp_shrink(*y)), a)(*x))  # fmt: skip
        assert_gradients(jax.jit(first), [W, R, 0.3, 0.8], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("volume", [0.5, [0.5, 0.1, 0.7, 1e-3, 0.35, 1.0]])
def test_wall_has_the_gradients_of_its_formula(x64, alpha, volume):
    assert_gradients(lambda w, v: prox.wall(w, v, alpha), [W, volume])
    assert_gradients(prox.wall, [W, volume, alpha])


def test_wall_at_infinity_has_finite_gradients():
    w = jnp.asarray(W)
    for alpha in (-0.5, 0.0, 0.5, 1.0):
        f = lambda w, alpha: jnp.sum(prox.wall(w, jnp.inf, alpha))  # noqa: E731
        by_w, by_alpha = jax.grad(f, (0, 1))(w, alpha)
        np.testing.assert_array_equal(by_w, np.ones(len(W)))
        assert float(by_alpha) == 0.0


@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_wall_agrees_for_static_and_traced_alpha(alpha):
    # Powers of two leave nothing for a fused multiply-add to round differently.
    drawn = [*np.random.default_rng(0).normal(size=999), np.inf, -np.inf]
    w = jnp.asarray(drawn, jnp.float32)
    traced = jax.jit(prox.wall)(w, jnp.float32(0.3), jnp.float32(alpha))
    np.testing.assert_array_equal(prox.wall(w, 0.3, alpha), traced)


def test_thresholds_have_the_gradients_of_their_formulas(x64):
    assert_gradients(prox.snap, [W, 0.35])
    norms = [0.2, 0.5, 1.0, 3.0]
    assert_gradients(prox.group_shrinkage, [norms, 0.35])
    # At 0 units the right-hand derivatives: a threshold is never negative.
    by_norm, by_threshold = jax.grad(
        lambda n, t: jnp.sum(prox.group_shrinkage(n, t)), (0, 1)
    )(jnp.asarray([0.0, 0.5]), 0.0)
    np.testing.assert_array_equal(by_norm, [0.0, 0.0])
    assert float(by_threshold) == -2.0
    dead = jax.grad(lambda n: prox.group_shrinkage(n, 0.1))(0.0)
    assert float(dead) == 0.0
