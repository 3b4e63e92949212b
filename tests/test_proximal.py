"""Proximal steps behind an optimizer reach the optima that other solvers find."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, MultiTaskLasso

import volax
from tests.cases import train
from volax import prox

TIGHT = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}


def standard(x):
    return (x - x.mean(0)) / x.std(0)


def designs():
    """Design ``[n, d]`` and targets ``[n, 3]``: real, random, and with d above n."""
    data: Any = load_diabetes()
    x, y = data.data, data.target
    yield "diabetes", standard(x), standard(np.stack([y, x[:, 2], x[:, 3] * y], 1))
    for name, shape in (("random", (80, 12)), ("wide", (30, 40))):
        rng = np.random.default_rng(7)
        x, w = rng.normal(size=shape), rng.normal(size=(shape[1], 3))
        w[rng.random(shape[1]) < 0.6] = 0
        yield name, x, x @ w + 0.3 * rng.normal(size=(shape[0], 3))


every_design = pytest.mark.parametrize(
    ("x", "y"), [d[1:] for d in designs()], ids=[d[0] for d in designs()]
)


def trained(tx, loss, start, steps):
    @jax.jit
    def run(w):
        def step(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, tx.init(w)), None, length=steps)[0][0]

    return np.asarray(run(start))


def squares(x, y):
    """Half the mean square, as scikit-learn has it, and the largest stable rate."""
    curvature = np.linalg.eigvalsh(x.T @ x / len(x)).max()
    return lambda w: 0.5 * jnp.sum((x @ w - y) ** 2) / len(x), 1 / curvature


def same(w, expected):
    np.testing.assert_allclose(w, expected, atol=1e-6)
    np.testing.assert_array_equal(w == 0, expected == 0)
    assert (w == 0).any()
    assert (w != 0).any()


PROBLEMS = {
    "lasso": (prox.soft_threshold, lambda s: Lasso(alpha=s, **TIGHT), 0),
    "elastic-net": (
        functools.partial(prox.elastic_net, ratio=0.5),
        lambda s: ElasticNet(alpha=s, l1_ratio=0.5, **TIGHT),
        0,
    ),
    "group-lasso": (
        functools.partial(prox.group_soft_threshold, axis=1),
        lambda s: MultiTaskLasso(alpha=s, **TIGHT),
        slice(None),
    ),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS)


@every_design
@every_problem
def test_sgd_reaches_the_optimum_of_coordinate_descent(x64, x, y, problem):
    call, make, tasks = PROBLEMS[problem]
    y = y[:, tasks]
    expected = make(0.15).fit(x, y).coef_.T
    loss, rate = squares(x, y)
    tx = optax.chain(optax.sgd(rate), volax.proximal(rate, 0.15, call, mask="all"))
    same(trained(tx, loss, jnp.zeros(expected.shape), 15_000), expected)


@every_design
@every_problem
def test_proximal_adam_reaches_the_same_optimum(x64, x, y, problem):
    """In Adam's metric the fixed points are those of the objective."""
    call, make, tasks = PROBLEMS[problem]
    y = y[:, tasks]
    expected = make(0.15).fit(x, y).coef_.T
    rate = optax.exponential_decay(2e-2, 1500, 0.5)
    tx = volax.proximal_adam(rate, 0.15, call, mask="all")
    w = trained(tx, squares(x, y)[0], jnp.zeros(expected.shape), 25_000)
    same(w, expected)


def test_a_plain_step_behind_adam_finds_another_optimum(x64):
    """What proximal_adam is there for."""
    _, x, y = next(designs())
    expected = Lasso(alpha=0.15, **TIGHT).fit(x, y[:, 0]).coef_
    rate = optax.exponential_decay(2e-2, 1500, 0.5)
    tx = optax.chain(
        optax.adam(rate), volax.proximal(rate, 0.15, prox.soft_threshold, mask="all")
    )
    w = trained(tx, squares(x, y[:, 0])[0], jnp.zeros(expected.shape), 25_000)
    assert np.abs(w - expected).max() > 1e-2


def test_matrix_completion_reaches_the_known_optimum(x64):
    """By the optimality conditions: the residual is U V^T plus what is orthogonal."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(12, 2)) @ rng.normal(size=(2, 9))
    seen, strength = rng.random((12, 9)) < 0.6, 0.5
    tx = optax.chain(optax.sgd(1.0), volax.proximal(1.0, strength, prox.nuclear))
    loss = lambda w: 0.5 * jnp.sum(jnp.where(seen, w - truth, 0) ** 2)  # noqa: E731
    w = trained(tx, loss, jnp.zeros((12, 9)), 10_000)
    u, size, vt = np.linalg.svd(w)
    rank = int((size > 1e-9).sum())
    assert 1 <= rank < 5
    residual = np.where(seen, truth - w, 0) / strength
    inner = u[:, :rank].T @ residual @ vt[:rank].T
    np.testing.assert_allclose(inner, np.eye(rank), atol=1e-6)
    outer = u[:, rank:].T @ residual @ vt[rank:].T
    assert np.linalg.norm(outer, 2) <= 1 + 1e-6
    assert np.abs(u[:, :rank].T @ residual @ vt[rank:].T).max() < 1e-6


@pytest.mark.parametrize(
    "call",
    [
        optax.projections.projection_simplex,
        optax.projections.projection_non_negative,
        functools.partial(optax.projections.projection_box, lower=0.1, upper=0.2),
        functools.partial(optax.projections.projection_l2_ball, scale=0.5),
        jax.jit(optax.projections.projection_non_negative),
        lambda w: w,
    ],
    ids=["simplex", "non_negative", "box", "l2_ball", "jitted", "own"],
)
def test_projections_of_optax_are_called_with_the_weights_alone(call):
    w = jax.random.normal(jax.random.key(0), (4, 3))
    tx = volax.proximal(0.1, 7.0, call)
    new, _ = train(tx, w, [jnp.zeros_like(w)])
    np.testing.assert_allclose(new, call(w), atol=1e-6)


@pytest.mark.parametrize("make", [volax.proximal, volax.proximal_adam])
@pytest.mark.parametrize(
    ("call", "match"),
    [
        ("soft", "prox must be a function .* got str; .* static_args"),
        (jnp.ones(()), "prox must be a function"),
        (prox.group_soft_threshold, r"leaves axis open; .*axis=\.\.\."),
        (prox.box, "leaves low, high open"),
    ],
)
def test_what_is_no_map_is_refused_at_once(make, call, match):
    with pytest.raises(ValueError, match=rf"^{make.__name__}: {match}|{match}"):
        make(0.1, 1.0, call)


def test_a_projection_has_no_metric():
    with pytest.raises(ValueError, match="no argument called strength"):
        volax.proximal_adam(0.1, 1.0, optax.projections.projection_simplex)


@pytest.mark.parametrize(
    ("make", "call", "match"),
    [
        (volax.proximal, functools.partial(prox.group_soft_threshold, axis=2),
         r"leaf 'a/w' of shape \(2, 2\): group_soft_threshold: axis 2"),
        (volax.proximal, lambda x, strength: x[0],
         r"made float(\d+)\[2\] of leaf 'a/w', expected the float\1\[2, 2\]"),
        (volax.proximal, lambda x, strength: x.astype(jnp.bfloat16),
         r"made bfloat16\[2, 2\] of leaf 'a/w'"),
        (volax.proximal_adam, prox.nuclear, r"leaf 'a/w' .* differs inside a matrix"),
    ],
    ids=["axis", "shape", "dtype", "metric"],
)  # fmt: skip
def test_a_map_that_fails_on_a_leaf_names_it(make, call, match):
    tree = {"a": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}
    tx = make(0.1, 1.0, call)
    with pytest.raises(ValueError, match=match):
        tx.update(tree, tx.init(tree), tree)


def test_negative_strengths_are_refused():
    with pytest.raises(ValueError, match="proximal: strength must be a finite number"):
        volax.proximal(0.1, -1.0, prox.soft_threshold)


def test_under_injection_the_map_is_a_static_argument():
    tree = {"w": jnp.full((2, 2), 0.3)}
    injected = optax.inject_hyperparams(volax.proximal, static_args="prox")
    tx = injected(0.5, 0.5, prox.soft_threshold)
    new, _ = train(tx, tree, [jax.tree.map(jnp.zeros_like, tree)])
    np.testing.assert_allclose(new["w"], 0.05, rtol=1e-6)
    forgotten = optax.inject_hyperparams(volax.proximal)(0.5, 0.5, prox.soft_threshold)
    with pytest.raises(TypeError, match="strength"):  # Optax calls it with the count
        forgotten.init(tree)


def test_the_metric_is_adams():
    """One step against NumPy: strength * rate / (sqrt(nu) + eps) for each weight."""
    w, g = np.array([[1.0, -0.5, 0.2]]), np.array([[3.0, -0.1, 0.01]])
    tx = volax.proximal_adam(0.01, 0.05, prox.soft_threshold)
    tree, grads = jnp.asarray(w, jnp.float32), jnp.asarray(g, jnp.float32)
    new, state = train(tx, tree, [grads])
    moved = w - 0.01 * np.sign(g)
    short = 0.01 * 0.05 / np.abs(g)
    expected = np.sign(moved) * np.maximum(np.abs(moved) - short, 0)
    np.testing.assert_allclose(new, expected, rtol=1e-5)
    np.testing.assert_allclose(optax.tree.get(state, "nu"), 1e-3 * g**2, rtol=1e-5)
