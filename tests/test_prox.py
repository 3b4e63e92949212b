"""Closed forms and optimality of the proximal maps."""

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


@pytest.mark.parametrize("p", [0, 0.5, 2 / 3, 0.8, 1, 4 / 3, 1.5, 2, 2.5, 3, 4])
@pytest.mark.parametrize("k", [1e-10, 1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("traced", [False, True])
def test_lp_shrink_factor_against_float64(p, k, traced):
    sizes = np.geomspace(1.2e-38, 3e38, 100_001).astype(np.float32)
    k, order = np.float32(k), np.float64(np.float32(p) if traced else p)
    given = jnp.float32(p) if traced else p
    shrink = jax.jit(lambda x, k: prox.lp_shrink(jnp.ones_like(x), x, k, given))
    actual = np.asarray(shrink(sizes, k), np.float64)
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


def test_hard_threshold_keeps_what_is_large_enough():
    w = jnp.array([0.1, -0.1, 0.05, -0.2, 0.0, jnp.nan])
    t = prox.hard_threshold(w, 0.1)
    np.testing.assert_array_equal(t, jnp.array([0.1, -0.1, 0.0, -0.2, 0.0, jnp.nan]))
