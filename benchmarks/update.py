"""What a regularizer adds to the update of plain Adam.

*bare*: update and apply on given gradients, 20 M weights in 8 leaves. *step*: the
gradient made inside the same jitted step by six layers of 2048, batch 128.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import volax
from benchmarks.timing import Ratio, alternate

RATE = 1e-3


class Row(NamedTuple):
    """One line of the table: what is added to Adam, and how it may be measured."""

    name: str
    make: Any  # the whole optimizer, given the tree's pairs
    bytes: float  # floor: bytes moved a float32 weight, Adam's 28 included
    bare: float | None  # the ratio to stay under
    step: float | None


def _decay(p, **options):
    return lambda pairs: optax.chain(
        optax.adam(RATE), volax.lp_decay(RATE, 0.1, p, **options)
    )


def _prox(**options):
    return lambda pairs: optax.chain(
        optax.adam(RATE), volax.path_prox(RATE, 1e-3, pairs, **options)
    )


def _injected(pairs):
    return optax.chain(
        optax.adam(RATE),
        optax.inject_hyperparams(volax.lp_decay)(RATE, 0.1, 0.8, mask="matrices"),
    )


ROWS = (
    Row("adam (against itself)", lambda pairs: optax.adam(RATE), 28, None, None),
    Row("volumize", lambda pairs: optax.chain(
        optax.adam(RATE), volax.volumize(0.05)), 28, 1.06, 1.03),
    Row("volumize alpha=-0.5", lambda pairs: optax.chain(
        optax.adam(RATE), volax.volumize(0.05, -0.5)), 28, 1.06, 1.03),
    Row("volumized", lambda pairs: volax.volumized_adam(RATE, 0.05), 36, 1.40, 1.10),
    *(Row(f"lp_decay p={p}", _decay(p), 28, 1.10, 1.04) for p in (0.5, 1, 1.5, 2)),
    Row("lp_decay p=2/3", _decay(2 / 3), 28, 1.35, 1.10),
    Row("lp_decay p=4/3", _decay(4 / 3), 28, 1.35, 1.10),
    Row("lp_decay p=0.8", _decay(0.8), 28, 1.35, 1.10),
    Row("lp_decay p scheduled", _decay(optax.linear_schedule(2.0, 0.5, 10**6)),
        28, 1.55, 1.15),
    Row("lp_decay p injected", _injected, 28, 1.55, 1.15),
    Row("path_prox", _prox(), 40, 1.90, 1.25),
    Row("path_prox balance", _prox(balance=True), 40, 1.90, 1.25),
    Row("path_prox rescale", _prox(normalize="rescale"), 40, 1.90, 1.25),
)  # fmt: skip


def bare_tree(size: int = 20_000_000) -> tuple[Any, Any]:
    """Eight square leaves (of which six form three pairs) and the pairs."""
    side = round((size / 8) ** 0.5)
    keys = jax.random.split(jax.random.key(0), 8)
    params = {
        f"k{i}": jax.random.normal(k, (side, side)) / 30 for i, k in enumerate(keys)
    }
    pairs = [volax.pair(f"k{i}", f"k{i + 1}") for i in (0, 2, 4)]
    return params, pairs


def step_tree(width: int = 2048) -> tuple[Any, Any]:
    """Six layers, of which each two form a pair, and the pairs."""
    sizes = [784, *[width] * 5, 10]
    params = {}
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        params[f"k{i}"] = jax.random.normal(jax.random.key(i), (a, b)) / a**0.5
        params[f"b{i}"] = jnp.zeros(b)
    pairs = [
        volax.pair(f"k{i}", f"k{i + 1}", bias=f"b{i}", output_bias=f"b{i + 1}")
        for i in (0, 2, 4)
    ]
    return params, pairs


def loss(params: Any, x: jax.Array) -> jax.Array:
    """A matmul-dominated model: each two layers with a ReLU between."""
    for i in range(6):
        x = x @ params[f"k{i}"] + params[f"b{i}"]
        x = x if i % 2 else jax.nn.relu(x)
    return jnp.mean(x**2)


def bare_arm(tx: optax.GradientTransformation, params: Any) -> Any:
    """A call that updates and applies once, donating parameters and state."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    grads = jax.tree.map(lambda x: jnp.roll(x, 1) * 0.1, params)
    return _threaded(step, tx, params, grads)


def step_arm(tx: optax.GradientTransformation, params: Any) -> Any:
    """A call that makes the gradient, updates and applies, donating."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x):
        grads = jax.grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return _threaded(step, tx, params, jax.random.normal(jax.random.key(9), (128, 784)))


def _threaded(step: Any, tx: Any, params: Any, data: Any) -> Any:
    carry = [(jax.tree.map(jnp.copy, params), tx.init(params))]

    def run():
        carry[0] = step(*carry[0], data)
        jax.block_until_ready(carry[0])

    return run


def rows(setting: str, rounds: int, only: str) -> Iterator[tuple[Row, Ratio]]:
    """Measures the rows whose name contains ``only``."""
    tree, arm = {"bare": (bare_tree, bare_arm), "step": (step_tree, step_arm)}[setting]
    params, pairs = tree()
    for row in ROWS:
        if only in row.name:
            plain = arm(optax.adam(RATE), params)
            yield row, alternate(arm(row.make(pairs), params), plain, rounds)
