"""Closed forms and optimality of the proximal maps."""

import hypothesis
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
def test_lp_shrink_factor_against_float64(p):
    sizes = np.concatenate([np.geomspace(1e-12, 1e3, 500), [1.0]]).astype(np.float32)
    k = np.float32(1e-4)
    actual = prox.lp_shrink(jnp.ones(sizes.size), jnp.asarray(sizes), k, p)
    power = sizes.astype(np.float64) ** (2.0 - p)
    expected = power / (power + np.float64(k))
    keep = expected > 1e-30
    np.testing.assert_allclose(np.asarray(actual)[keep], expected[keep], rtol=2e-6)


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
