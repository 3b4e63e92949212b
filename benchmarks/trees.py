"""The trees that are measured, with their pairs, and the models around them."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import volax

Tree = tuple[Any, list[Any]]


def bare(size: int = 20_000_000) -> Tree:
    """Eight square leaves, of which six form three pairs."""
    side = round((size / 8) ** 0.5)
    keys = jax.random.split(jax.random.key(0), 8)
    params = {
        f"k{i}": jax.random.normal(k, (side, side)) / 30 for i, k in enumerate(keys)
    }
    return params, [volax.pair(f"k{i}", f"k{i + 1}") for i in (0, 2, 4)]


def dense(width: int = 2048) -> Tree:
    """Six dense layers, of which each two form a pair."""
    sizes = [784, *[width] * 5, 10]
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        params[f"k{i}"] = jax.random.normal(jax.random.key(i), (a, b)) / a**0.5
        params[f"b{i}"] = jnp.zeros(b)
    return params, [_pair(i) for i in (0, 2, 4)]


def vgg(scale: int = 1) -> Tree:
    """VGG19 for images of 32 x 32: 16 convolutions, three dense layers, nine pairs."""
    widths = [c // scale for c in (64, 64, 128, 128, *[256] * 4, *[512] * 8)]
    sizes = [3, *widths, 512 // scale, 512 // scale, 10]
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        shape = (3, 3, a, b) if i < 16 else (a, b)
        fan_in = 9 * a if i < 16 else a
        noise = jax.random.normal(jax.random.key(i), shape)
        params[f"k{i}"] = noise * (2 / fan_in) ** 0.5
        params[f"b{i}"] = jnp.zeros(b)
    return params, [_pair(i) for i in range(0, 18, 2)]


def many(count: int = 1000) -> Tree:
    """Many small leaves of 1,000 weights."""
    keys = jax.random.split(jax.random.key(0), count)
    return {
        f"k{i:04}": jax.random.normal(k, (25, 40)) / 30 for i, k in enumerate(keys)
    }, []


def _pair(i: int) -> Any:
    return volax.pair(f"k{i}", f"k{i + 1}", bias=f"b{i}", output_bias=f"b{i + 1}")


def dense_loss(params: Any, x: jax.Array) -> jax.Array:
    """A matmul-dominated model: each two layers with a ReLU between."""
    for i in range(6):
        x = x @ params[f"k{i}"] + params[f"b{i}"]
        x = x if i % 2 else jax.nn.relu(x)
    return jnp.mean(x**2)


def vgg_loss(params: Any, x: jax.Array) -> jax.Array:
    """VGG19 on images [batch, 32, 32, 3]."""
    for i in range(16):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, params[f"k{i}"], (1, 1), "SAME", dimension_numbers=layout
        )
        x = jax.nn.relu(x + params[f"b{i}"])
        if i in (1, 3, 7, 11, 15):
            x = jax.lax.reduce_window(
                x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
    x = x.reshape(x.shape[0], -1)
    for i in (16, 17, 18):
        x = x @ params[f"k{i}"] + params[f"b{i}"]
        x = jax.nn.relu(x) if i < 18 else x
    return jnp.mean(x**2)


def update_step(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """Update and apply on given gradients, jitted, donating parameters and state."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train_step(tx: optax.GradientTransformation, loss: Any) -> Callable[..., Any]:
    """The same, with the gradient made inside."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x):
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    return step


def gradients(params: Any) -> Any:
    """Some gradients of the size of weights."""
    return jax.tree.map(lambda x: jnp.roll(x, 1) * 0.1, params)


def arm(step: Any, tx: Any, params: Any, data: Any) -> Callable[[], Any]:
    """A call that takes one step from where the last one ended; returns where it is."""
    carry = [(jax.tree.map(jnp.copy, params), tx.init(params))]

    def run():
        carry[0] = step(*carry[0], data)
        return jax.block_until_ready(carry)

    return run
