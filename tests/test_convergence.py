"""Training to an optimum: without a regularizer in the way, and to its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax


def minimise(tx, loss, params, steps):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, tx.init(params))
    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0][0])(carry)


OFF = {
    "volumize": lambda lr: volax.volumize(np.inf),
    "volumize-wide": lambda lr: volax.volumize(10.0, -0.5),
    "lp_decay": lambda lr: volax.lp_decay(lr, 0.0, 0.8, mask="all"),
    "path_prox": lambda lr: volax.path_prox(lr, 0.0, volax.pair("a", "v")),
}
off = pytest.mark.parametrize("make", OFF.values(), ids=OFF.keys())


@off
def test_parabola_with_strength_0(make):
    target = {"a": jnp.array([[1.0, -1.0]]), "v": jnp.array([[0.6], [-0.3]])}

    def loss(x):
        return sum(jnp.sum((x[k] - target[k]) ** 2) for k in target)

    start = {"a": jnp.array([[0.5, -0.2]]), "v": jnp.array([[1.5], [-2.0]])}
    tx = optax.chain(optax.sgd(0.1), make(0.1))
    # The optimum has incoming norms of one, so that normalising keeps it.
    new = minimise(tx, loss, start, 300)
    for k in target:
        np.testing.assert_allclose(new[k], target[k], atol=1e-5)


@off
def test_rosenbrock_with_strength_0(make):
    def loss(params):
        x, y = (params["a"] @ params["v"])[0]
        return (1 - x) ** 2 + 10 * (y - x**2) ** 2

    start = {"a": jnp.array([[0.5, 0.4]]), "v": jnp.array([[0.2, 0.1], [0.3, -0.5]])}
    tx = optax.chain(optax.adam(0.02), make(0.02))
    new = minimise(tx, loss, start, 6000)
    np.testing.assert_allclose((new["a"] @ new["v"])[0], [1.0, 1.0], atol=1e-3)


TARGET = np.array([[2.0, -1.0, 0.4, 0.05]])


def test_volumize_ends_at_the_projection():
    tx = optax.chain(optax.sgd(0.1), volax.volumize(0.7))
    new = minimise(tx, lambda x: jnp.sum((x - TARGET) ** 2), jnp.ones((1, 4)), 300)
    np.testing.assert_allclose(new, np.clip(TARGET, -0.7, 0.7), atol=1e-6)


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_lp_decay_2_ends_at_the_ridge_optimum(strength):
    # w = (w - lr (w - y)) / (1 + lr s) holds at w = y / (1 + s).
    tx = optax.chain(optax.sgd(0.1), volax.lp_decay(0.1, strength, 2))
    new = minimise(tx, lambda x: jnp.sum((x - TARGET) ** 2) / 2, jnp.ones((1, 4)), 500)
    np.testing.assert_allclose(new, TARGET / (1 + strength), rtol=1e-5)


def test_lp_decay_1_ends_at_the_lasso_optimum():
    tx = volax.lp_sgd(0.1, 0.1, 1, snap_below=1e-13)
    new = minimise(tx, lambda x: jnp.sum((x - TARGET) ** 2) / 2, jnp.ones((1, 4)), 2000)
    expected = np.sign(TARGET) * np.maximum(abs(TARGET) - 0.1, 0)
    np.testing.assert_allclose(new, expected, atol=1e-5)
    assert new[0, 3] == 0


@pytest.mark.parametrize("p", [0.5, 0.8, 1.5, 3])
def test_lp_decay_ends_where_loss_and_penalty_balance(p):
    # The fixed point of the update: w - y + s sign(w) |w|^(p-1) = 0.
    tx = volax.lp_sgd(0.1, 0.1, p)
    new = np.asarray(
        minimise(tx, lambda x: jnp.sum((x - TARGET) ** 2) / 2, jnp.ones((1, 4)), 3000),
        np.float64,
    )
    large = abs(TARGET) >= 1
    w, y = new[large], TARGET[large]
    residual = w - y + 0.1 * np.sign(w) * abs(w) ** (p - 1)
    np.testing.assert_allclose(residual, 0, atol=1e-5)


@pytest.mark.parametrize("normalize", ["rescale", "project"])
def test_path_prox_ends_at_the_path_optimum(normalize):
    # One unit with scalar weights, loss (a v - y)^2 / 2. With "project" the minimum of
    # loss + s |a v| is the soft threshold of y. "rescale" keeps the radial part of a's
    # gradient, so that the product moves by lr (1 + (a v)^2) times its own gradient and
    # the fixed point is that of s * arctan |a v|. Below s the unit dies in both.
    for y in (2.0, -1.0, 0.3):
        expected = np.sign(y) * max(abs(y) - 0.5, 0)
        if normalize == "rescale" and expected:
            for _ in range(100):
                expected = y - np.sign(y) * 0.5 / (1 + expected**2)
        params = {"a": jnp.array([[0.7]]), "v": jnp.array([[0.4 * np.sign(y)]])}
        tx = volax.path_prox_sgd(0.01, 0.5, volax.pair("a", "v"), normalize=normalize)
        new = minimise(
            tx, lambda x, y=y: jnp.sum((x["a"] @ x["v"] - y) ** 2) / 2, params, 6000
        )
        np.testing.assert_allclose(new["a"] @ new["v"], [[expected]], atol=2e-3)
        assert (expected == 0) == (float(new["v"][0, 0]) == 0)
