"""Biases behind a pair: scaled with its consumers, they scale every output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import volax

SHAPES = {
    "a": (6, 8), "b": (8,), "v": (8, 6), "c": (6,), "m": (6, 6), "d": (6,), "e": (6,),
    "s": (6,),
}  # fmt: skip
RNG = np.random.default_rng(0)
PARAMS = {k: jnp.asarray(RNG.normal(size=s), jnp.float32) for k, s in SHAPES.items()}
INPUTS = jnp.asarray(RNG.normal(size=(5, 6)), jnp.float32)


def pair(p, x):
    return jax.nn.relu(x @ p["a"] + p["b"]) @ p["v"]


def looped(p, x):
    def body(h, _):
        return jax.nn.relu(h @ p["m"]), None

    return jax.lax.scan(body, pair(p, x), length=2)[0]


KNOWN = {
    "a bias": (lambda p, x: pair(p, x) + p["c"], ("c",)),
    "none": (pair, ()),
    "layers": (
        lambda p, x: jax.nn.leaky_relu(pair(p, x) + p["c"]) @ p["m"] + p["d"],
        ("c", "d"),
    ),
    "a scale": (lambda p, x: (pair(p, x) + p["c"]) * p["s"] + p["d"], ("c", "d")),
    "a bias used twice": (
        lambda p, x: (lambda h: jnp.where(h > 0, h, p["c"]) + p["c"])(pair(p, x)),
        ("c",),
    ),
    "a bias laid out otherwise": (
        lambda p, x: pair(p, x).reshape(-1, 2, 3) + p["c"].reshape(2, 3),
        ("c",),
    ),
    "two branches": (
        lambda p, x: (lambda h: h @ p["m"] + jnp.abs(h + p["c"]))(pair(p, x)),
        ("c",),
    ),
    "outputs": (lambda p, x: (pair(p, x) + p["c"], pair(p, x).max(1)), ("c",)),
}
REFUSED = {
    "a residual connection": lambda p, x: pair(p, x) + x,
    "a smooth activation": lambda p, x: jnp.tanh(pair(p, x)),
    "a softmax": lambda p, x: jax.nn.softmax(pair(p, x)),
    "a constant": lambda p, x: pair(p, x) + 1,
    "a bound": lambda p, x: jnp.minimum(pair(p, x), 6),
    "no rule": lambda p, x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, pair(p, x)),
    "a loop": looped,
    "a bias before the pair as well": lambda p, x: pair(p, x + p["e"]) + p["e"],
    "a bias that is changed": lambda p, x: pair(p, x) + jnp.exp(p["c"]),
    "another output": lambda p, x: (pair(p, x), x @ p["m"]),
    "a square": lambda p, x: pair(p, x) ** 2,
    "a product with itself": lambda p, x: pair(p, x) * pair(p, x),
    "a comparison": lambda p, x: jnp.where(pair(p, x) > 0, 1.0, 0.0),
    "the weights elsewhere": lambda p, x: pair(p, x) + x @ p["v"].T[:, :6],
}


def first(model):
    (found,) = (
        g for g in volax.find_pairs(model, PARAMS, INPUTS) if g.name == "a -> v"
    )
    return found


def scaled(paths):
    return {k: 3 * v if k in paths else v for k, v in PARAMS.items()}


@pytest.mark.parametrize("name", KNOWN)
def test_scaling_them_scales_every_output(name):
    model, expected = KNOWN[name]
    group = first(model)
    assert group.downstream == expected
    assert group.unbalanced == ""
    new = jax.tree.leaves(model(scaled({"v", *expected}), INPUTS))
    for got, was in zip(new, jax.tree.leaves(model(PARAMS, INPUTS))):
        np.testing.assert_allclose(got, 3 * was, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_where_there_are_none_the_record_says_why(name):
    found = [
        g for g in volax.find_pairs(REFUSED[name], PARAMS, INPUTS) if g.name == "a -> v"
    ]
    for group in found:
        assert group.downstream is None
        assert group.unbalanced
    assert found or name == "the weights elsewhere"


def test_consumers_that_read_other_units_as_well():
    def model(p, x):
        h = jnp.concatenate([jax.nn.relu(x @ p["a"]), jax.nn.relu(x @ p["m"])], 1)
        return h @ p["w"]

    params = PARAMS | {"w": jnp.ones((14, 2))}
    for group in volax.find_pairs(model, params, INPUTS):
        assert group.unbalanced == "w reads other units as well"
