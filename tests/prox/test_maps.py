"""Every map beats every other point on its own objective, and meets its limits."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.prox.maps import CONSTRAINTS, MAPS, SEPARABLE
from volax import prox

every_map = pytest.mark.parametrize("name", MAPS)
fuzzed = hypothesis.settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**32 - 1)


@functools.cache
def compiled(name):
    """The map of a matrix, compiled once for all of a test's draws."""
    return jax.jit(MAPS[name].call)


@functools.cache
def compiled_each(name):
    """The map of each weight by itself, with a strength of its own."""
    return jax.jit(jax.vmap(jax.vmap(MAPS[name].call)))


def objective(m, z, x, s):
    """strength R(z) + |z - x|^2 / 2; with strengths s_i in the metric 1 / s_i."""
    if np.ndim(s) == 0:
        return s * m.of(z) + ((z - x) ** 2).sum((-1, -2)) / 2
    return m.of(z) + ((z - x) ** 2 / (2 * s)).sum((-1, -2))


def least(m, z, x, s, rng):
    """Asserts that no one of 10,000 perturbations of any size has a lower objective."""
    found = objective(m, z, x, s)
    assert np.isfinite(found)
    size = 10.0 ** rng.uniform(-7, 1, (10_000, 1, 1))
    moved = z + rng.normal(size=(10_000, *z.shape)) * size
    moved[::4] *= rng.random((2_500, *z.shape)) < 0.5  # zeros are candidates too
    moved = np.concatenate([moved, x[None], np.zeros((1, *x.shape))])
    others = objective(m, moved, x, s)
    assert others.min() >= found - 1e-12 * max(1.0, abs(found))


@every_map
@fuzzed
@hypothesis.given(seed=seeds, size=st.floats(-2, 1), strength=st.floats(-2, 1.5))
def test_a_map_beats_10_000_perturbations(x64, name, seed, size, strength):
    rng = np.random.default_rng(seed)
    x, s = rng.normal(size=(3, 2)) * 10.0**size, 10.0**strength
    least(MAPS[name], np.asarray(compiled(name)(jnp.asarray(x), s)), x, s, rng)


@pytest.mark.parametrize("name", [n for n in MAPS if n != "nuclear"])
@fuzzed
@hypothesis.given(seed=seeds, size=st.floats(-2, 1), spread=st.floats(0.0, 1.5))
def test_strengths_inside_a_group_are_a_metric(x64, name, seed, size, spread):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 2)) * 10.0**size
    s = 10.0 ** rng.uniform(-spread, spread, size=(3, 2))
    z = np.asarray(compiled(name)(jnp.asarray(x), jnp.asarray(s)))
    if name in SEPARABLE and name not in CONSTRAINTS:
        single = compiled_each(name)(jnp.asarray(x), jnp.asarray(s))
        np.testing.assert_allclose(z, np.asarray(single), rtol=1e-13)
    # The scad and mcp shapes are multiplied by the strength, so the metric is one too.
    least(MAPS[name], z, x, s, rng)


@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize("strength", [1e-3, 0.1, 0.69, 0.71, 2.0, 30.0])
def test_a_map_of_single_weights_beats_a_dense_grid(x64, name, strength):
    grid = np.linspace(-6, 6, 60_001)
    xs = np.linspace(-5, 5, 41)
    zs = np.asarray(MAPS[name].call(jnp.asarray(xs), strength))
    penalty = strength * MAPS[name].entries(grid)
    for x, z in zip(xs, zs):
        best = (penalty + (grid - x) ** 2 / 2).min()
        found = strength * MAPS[name].entries(z) + (z - x) ** 2 / 2
        assert found <= best + 1e-12


@pytest.mark.parametrize(
    ("p", "name"), [(1, "soft"), (0.5, "half"), (2 / 3, "two-thirds")]
)
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_lp_agrees_with_the_closed_forms(x64, p, name, traced, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=4000) * 10.0 ** rng.uniform(-6, 6, 4000), dtype)
    order = jnp.asarray(p, dtype) if traced else p
    for s in (1e-8, 1e-3, 0.5, 3.0, 1e6):
        actual = prox.lp(x, s, order)
        # What is left of a weight near the threshold is as exact as the weight was.
        error = jnp.abs(actual - MAPS[name].call(x, s))
        assert bool((error <= 8 * jnp.finfo(dtype).eps * jnp.abs(x)).all())


@every_map
def test_strength_0_is_the_identity_and_infinity_the_limit(name):
    x = jnp.array([[0.3, -2.0], [5.0, 0.0], [-1e-20, 1e3]])
    np.testing.assert_array_equal(MAPS[name].call(x, 0.0), x)
    limit = MAPS[name].call(x, jnp.inf)
    if name in CONSTRAINTS:
        np.testing.assert_array_equal(limit, MAPS[name].call(x, 1.0))
    else:
        np.testing.assert_array_equal(limit, 0)


@every_map
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_shape_and_dtype_stay_and_strengths_broadcast(name, dtype):
    x = jax.random.normal(jax.random.key(0), (4, 3, 2), dtype)
    s = jnp.full((4, 1, 1), 0.5)
    z = MAPS[name].call(x, 0.5)
    assert (z.shape, z.dtype) == (x.shape, x.dtype)
    if name not in ("group", "sparse_group", "max_norm"):  # their axis is not 0 here
        np.testing.assert_array_equal(MAPS[name].call(x, s), z)
        each = jax.vmap(MAPS[name].call)(x, jnp.full(4, 0.5))
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            *(np.asarray(t, np.float64) for t in (each, z)), rtol=4 * eps, atol=4 * eps
        )


@pytest.mark.parametrize("name", ["group", "sparse_group", "max_norm"])
def test_equal_strengths_are_no_metric(name):
    x = jax.random.normal(jax.random.key(0), (5, 4))
    full = MAPS[name].call(x, jnp.full((5, 4), 0.5))
    np.testing.assert_allclose(full, MAPS[name].call(x, 0.5), rtol=2e-6, atol=1e-7)
    batched = jax.vmap(MAPS[name].call, (0, None))(jnp.stack([x, 2 * x]), 0.5)
    np.testing.assert_allclose(batched[1], MAPS[name].call(2 * x, 0.5), rtol=2e-6)


@pytest.mark.parametrize("name", SEPARABLE)
def test_a_weight_that_is_not_finite_stays_alone(name):
    x = jnp.array([[jnp.nan, 1.0], [jnp.inf, -jnp.inf], [0.2, -3.0]])
    z = MAPS[name].call(x, 0.5)
    assert bool(jnp.isnan(z[0, 0]))
    assert not bool(jnp.isnan(z.reshape(-1)[1:]).any())
    finite = jnp.where(jnp.isfinite(x), x, 0)
    kept = jnp.isfinite(x)
    np.testing.assert_array_equal(z[kept], MAPS[name].call(finite, 0.5)[kept])


@pytest.mark.parametrize("name", ["group", "sparse_group", "max_norm"])
def test_a_group_that_is_not_finite_stays_alone(name):
    x = jnp.array([[jnp.nan, 1.0], [1.0, 2.0], [0.2, -3.0]])
    z = MAPS[name].call(x, 0.5)
    np.testing.assert_array_equal(z[:, 1:], MAPS[name].call(x[:, 1:], 0.5))
    assert bool(jnp.isfinite(z[:, 1]).all())


def smooth_points(name):
    """A matrix whose objective has no kink or jump of the map near by."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        x, s = rng.normal(size=(3, 2)) * 1.3, rng.uniform(0.2, 0.9)
        near = [np.asarray(MAPS[name].call(jnp.asarray(x + e), s + d))
                for e, d in ((-2e-4, 0), (2e-4, 0), (0, -2e-4), (0, 2e-4))]  # fmt: skip
        here = np.asarray(MAPS[name].call(jnp.asarray(x), s))
        same = all(((z == 0) == (here == 0)).all() for z in near)
        if same and max(np.abs(z - here).max() for z in near) < 3e-3 and here.any():
            return x, s
    raise AssertionError("no point found")


@every_map
def test_derivatives_are_those_of_finite_differences(x64, name):
    x, s = smooth_points(name)
    dx, ds = np.random.default_rng(4).normal(size=(3, 2)), 0.3
    call = jax.jit(MAPS[name].call)
    _, tangent = jax.jvp(call, (jnp.asarray(x), s), (dx, ds))
    h = 1e-6
    expected = (call(x + h * dx, s + h * ds) - call(x - h * dx, s - h * ds)) / (2 * h)
    np.testing.assert_allclose(tangent, expected, rtol=1e-6, atol=1e-8)
    assert float(jnp.abs(tangent).max()) > 1e-3
    gradient = jax.grad(lambda x: jnp.vdot(call(x, s), dx))(jnp.asarray(x))
    assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize("p", [0.7, 1.4])
def test_the_derivative_by_p_is_that_of_finite_differences(x64, p):
    x = jnp.array([2.0, -3.0, 0.01])
    slope = jax.jacobian(lambda p: prox.lp(x, 0.5, p))(p)
    h = 1e-6
    expected = (prox.lp(x, 0.5, p + h) - prox.lp(x, 0.5, p - h)) / (2 * h)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


@every_map
@pytest.mark.parametrize("strength", [0.0, 0.5, float("inf")])
def test_derivatives_are_finite_everywhere(name, strength):
    """At zero weights, zero and infinite strengths, equal singular values."""
    points = [jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.eye(3, 2), 1e-30 * jnp.eye(3, 2)]
    both = jax.jit(jax.grad(lambda x, s: MAPS[name].call(x, s).sum(), (0, 1)))
    for x in points:
        for gradient in both(x, jnp.float32(strength)):
            assert bool(jnp.isfinite(gradient).all())


@every_map
@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_maps_lower_for_every_platform(name, platform):
    x, s = (
        jax.ShapeDtypeStruct((3, 2), jnp.float32),
        jax.ShapeDtypeStruct((), "float32"),
    )
    exported = jax.export.export(jax.jit(MAPS[name].call), platforms=[platform])(x, s)
    assert exported.platforms == (platform,)


@every_map
def test_penalties_equal_their_definitions(x64, name):
    for x in (
        np.random.default_rng(0).normal(size=(3, 2)),
        np.eye(3, 2),
        np.zeros((3, 2)),
    ):
        np.testing.assert_allclose(MAPS[name].penalty(jnp.asarray(x)), MAPS[name].of(x))


def test_lp_for_p_above_1_makes_no_zeros_and_below_1_jumps():
    x = jnp.arange(-50, 51) / 50
    assert bool(((prox.lp(x, 0.5, 1.2) == 0) == (x == 0)).all())
    z = jnp.abs(prox.lp(x * 3, 0.5, 0.5))
    assert 0.6 < float(z[z > 0].min()) < 0.7  # beta = strength^(2/3) = 0.63


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: prox.lp(jnp.ones(2), 1.0, 0.0), r"p must be in \(0, 2\), got 0.0"),
        (lambda: prox.lp(jnp.ones(2), 1.0, 2), r"p must be in \(0, 2\), got 2"),
        (lambda: prox.group_soft_threshold(jnp.ones(2), 1.0, 1), r"axis 1 .*\(2,\)"),
        (lambda: prox.group_norm(jnp.ones((2, 2)), (0, 0)), "different axes"),
        (lambda: prox.max_norm(jnp.ones(2), axis=-2, limit=1.0), "max_norm: axis -2"),
        (lambda: prox.nuclear(jnp.ones(2), 1.0), r"must be a matrix, got shape \(2,\)"),
        (lambda: prox.nuclear(jnp.ones((2, 2)), jnp.ones((2, 2))), "inside a matrix"),
        (lambda: prox.soft_threshold(jnp.arange(2), 1.0), "got dtype int"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
