"""What is left by the polynomial, beside a smaller model that is counted."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import volax
from tests.compress.models import MODELS, drawn, killed
from tests.compress.test_heads import X, grouped, grouped_params
from tests.pairs import zoo_others as others
from tests.pairs.test_zoo import KEY, RAW
from volax import _paths
from volax.compress import compact
from volax.pairs import _cost
from volax.pairs._trace.count import multiply_adds


def attention_block(params, x):
    """Heads, channels of heads, a gated layer, and products of two activations."""
    x = x + grouped(params, x)
    hidden = jax.nn.silu(x @ params["gate"]) * (x @ params["up"])
    return (x + hidden @ params["down"]).reshape(len(x), -1) @ params["out"]


def attention_params():
    shapes = {"gate": (6, 8), "up": (6, 8), "down": (8, 6), "out": (30, 2)}
    return grouped_params() | drawn(9, **shapes)


PROGRAMS = {
    **{
        name: (fn, functools.partial(others.normal, KEY, **shapes), inputs)
        for name, (fn, shapes, inputs, _, _) in RAW.items()
        if name != "masked"  # its masks would have to be cut as well
    },
    **{
        name: (fn, make, (jnp.ones(shape),))
        for name, (fn, make, _, shape) in MODELS.items()
    },
    "attention block": (attention_block, attention_params, (X,)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_polynomial_is_what_compact_leaves(name):
    fn, make, inputs = PROGRAMS[name]
    params = make()
    groups = volax.find_groups(fn, params, *inputs)
    assert groups.multiply_adds == multiply_adds(fn, params, inputs)
    leaves = _paths.named_leaves(params)
    costs = {
        measure: _cost.cost(groups, leaves, measure, groups.products)
        for measure in _cost.MEASURES
    }
    for seed in range(3):
        dead, _ = killed(params, groups, seed, (0.25, 0.5, 0.8)[seed])
        small = compact(dead, groups)
        left = [group["left"] for group in small.manifest["groups"]]
        found = {k: float(c.share(left)) * c.total for k, c in costs.items()}
        counted = multiply_adds(fn, small.params, inputs)
        assert found["multiply_adds"] == pytest.approx(sum(counted.values()), 1e-6)
        assert small.groups.multiply_adds == counted
        stored = sum(x.nbytes for x in jax.tree.leaves(small.params))
        assert found["bytes"] == pytest.approx(stored, 1e-6)


def test_products_of_activations_grow_with_their_units():
    groups = volax.find_groups(grouped, grouped_params(), X)
    found = [p for p in groups.products if p.path == "(activations)"]
    # Queries with keys by heads and repeats, weights with values by channels as well.
    each = 2 * 4 * 2 * 5 * 5 * 3
    assert [(p.multiply_adds, p.units) for p in found] == [
        (each, (0, 1)), (each, (0, 1, 2)),
    ]  # fmt: skip
    (pair,) = groups.pairs
    assert pair == groups[2]
    kept = {p.units for p in groups.pairs.products}
    assert kept == {(), (0,)}
    assert groups[1:].multiply_adds == groups.multiply_adds


def test_the_record_keeps_them_in_json():
    groups = volax.find_groups(grouped, grouped_params(), X)
    again = volax.pairs.Groups.from_json(groups.to_json())
    assert again.products == groups.products
    old = json.loads(groups.to_json())
    del old["products"]
    assert volax.pairs.Groups.from_json(json.dumps(old)).multiply_adds == {}


def test_without_a_program_each_weight_of_a_matrix_counts_once():
    params = drawn(0, a=(5, 6), b=(6,), v=(6, 3))
    pair = volax.pair("a", "v", bias="b").fit(params)
    cost = _cost.cost([pair], params)
    assert cost.total == 48
    assert float(cost.share([2])) == pytest.approx(16 / 48)


def test_groups_that_cannot_be_cut_keep_their_units():
    scale = jnp.arange(1.0, 7)

    def fn(params, x):
        return jax.nn.relu(x @ params["a"] * scale) @ params["v"]

    params = drawn(0, a=(5, 6), v=(6, 3))
    groups = volax.find_groups(fn, params, jnp.ones((1, 5)))
    assert groups[0].carries
    cost = _cost.cost(groups, params, products=groups.products)
    assert float(cost.share([1])) == 1


@pytest.mark.parametrize("jitted", [False, True])
def test_the_units_of_a_row_are_counted(jitted):
    alive = np.zeros((2, 5), bool)
    alive[0, :2] = alive[1, 1:4] = True
    count = jax.jit(_cost.units_left) if jitted else _cost.units_left
    assert int(count(alive)) == 3
    assert int(count(alive & False)) == 1
