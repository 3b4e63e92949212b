"""Units that share an axis with others: what is left lies where the program looks."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import volax
from tests.compress.models import MODELS, killed, marks, same_gradients
from volax import _paths
from volax.compress import compact
from volax.pairs import _layout

SIZES = {"g": 3, "u": 5, "w": 4}


def normal(seed, *shape):
    rng = np.random.default_rng(seed)
    return jax.device_put(rng.normal(size=shape).astype(np.float32))


def same(fn, params, small, x, rtol=1e-5):
    """Both models on the same inputs; ``compact`` ran without ``check``."""
    run = jax.jit(fn)
    full, after = run(params, x), run(small.params, x)
    np.testing.assert_allclose(after, full, rtol=rtol, atol=rtol * np.abs(full).max())


def units_at_random(params, groups, seed):
    """Kills another random choice of units in every row, all but two at most."""
    rng = np.random.default_rng(seed)
    leaves = dict(_paths.named_leaves(params))
    for group in groups:
        factors = np.ones(group.sizes, np.float32)
        for row in factors.reshape(-1, group.sizes[-1]):
            count = rng.integers(1, row.size - 1)
            row[rng.permutation(row.size)[:count]] = 0
        for m in group.consumers:
            leaves[m.path] = _layout.scale(
                m, group.sizes, leaves[m.path], jnp.asarray(factors)
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[_paths.key_path(path)], params
    )


def joint(kernel, middle, flat):
    """Units with an index for each letter; they lie in another order at every step."""

    def fn(params, x):
        h = jnp.einsum(f"bi,i{kernel}->b{middle}", x, params["a"])
        h = jax.nn.relu(h + params["bias"])
        h = h.transpose(0, *(1 + middle.index(c) for c in flat))
        h = h.reshape(len(x), -1)
        if "scale" in params:
            h = h * params["scale"]
        return jax.nn.relu(h) @ params["v"]

    shapes = {
        "a": (5, *(SIZES[c] for c in kernel)),
        "bias": tuple(SIZES[c] for c in middle),
        "scale": (math.prod(SIZES[c] for c in flat),),
        "v": (math.prod(SIZES[c] for c in flat), 6),
    }
    return fn, {k: normal(i, *s) for i, (k, s) in enumerate(shapes.items())}


ORDERS = [
    (*orders, seed)
    for letters in ("gu", "guw")
    for seed, orders in enumerate(
        itertools.product(*[["".join(p) for p in itertools.permutations(letters)]] * 3)
    )
]


@pytest.mark.parametrize(
    ("kernel", "middle", "flat", "seed"),
    [*ORDERS[:8], *ORDERS[8::17]],
    ids=lambda x: str(x),
)
def test_joint_units_in_any_order(kernel, middle, flat, seed):
    fn, params = joint(kernel, middle, flat)
    x = normal(9, 7, 5)
    groups = volax.find_groups(fn, params, x)
    assert groups[0].size == math.prod(SIZES[c] for c in kernel)
    params = units_at_random(params, groups, seed)
    # Along the flattened axis a scale needs a check, so it comes second.
    plain = {k: v for k, v in params.items() if k != "scale"}
    for given, check in ((plain, None), (params, (fn, None, (x,)))):
        groups = volax.find_groups(fn, given, x)
        small = compact(given, groups, check=check)
        assert small.sizes["v"][0] < params["v"].shape[0]
        same(fn, given, small, x)
        assert small.groups.groups == volax.find_groups(fn, small.params, x).groups


def mapped(params, x):
    """Members of a ``vmap`` lie behind the units."""
    h = jax.vmap(lambda a: jax.nn.relu(x @ a), in_axes=0, out_axes=2)(params["a"])
    return h.reshape(len(x), -1) @ params["v"]


def shuffled(params, x):
    """The channel shuffle between two grouped convolutions."""
    h = jax.nn.relu(jnp.einsum("bgi,giu->bgu", x.reshape(len(x), 3, -1), params["a"]))
    h = h.swapaxes(1, 2).reshape(len(x), -1)
    return h @ params["v"]


def dense_block(params, x):
    """Channels are joined before positions: the consumer's strides hold both."""
    x = x.reshape(len(x), 3, 2)
    h = jax.nn.relu(x @ params["a"])
    h = jnp.concatenate([h, jax.nn.relu(x @ params["b"]), h], -1)
    return h.reshape(len(x), -1) @ params["v"]


def uneven(params, x):
    """After the cut, the three places of one layer are no longer evenly spaced."""
    a, b, c = (jax.nn.relu(x @ params[k]) for k in "abc")
    return jnp.concatenate([a, b, a, c, a], -1) @ params["v"]


BLOCKS = {
    "vmap behind": (mapped, {"a": (3, 6, 5), "v": (15, 2)}),
    "channel shuffle": (shuffled, {"a": (3, 2, 5), "v": (15, 2)}),
    "concatenated positions": (dense_block, {"a": (2, 6), "b": (2, 5), "v": (51, 2)}),
    "uneven places": (uneven, {"a": (6, 5), "b": (6, 4), "c": (6, 4), "v": (23, 2)}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name, seed):
    fn, shapes = BLOCKS[name]
    params = {k: normal(i, *s) for i, (k, s) in enumerate(shapes.items())}
    x = normal(9, 7, 6)
    params = units_at_random(params, volax.find_groups(fn, params, x), seed)
    groups = volax.find_groups(fn, params, x)
    small = compact(params, groups, opt_state=marks(params))
    assert all(small.sizes[k] < params[k].shape for k in shapes)
    same(fn, params, small, x)
    same_gradients(lambda p: fn(p, x), params, lambda p: fn(p, x), small)
    again = volax.find_groups(fn, small.params, x)
    if name != "uneven places":
        assert small.groups.groups == again.groups
    # The units are the same ones, however their places are written down.
    for ours, theirs in zip(volax.path_norm(small.params, small.groups),
                            volax.path_norm(small.params, again)):  # fmt: skip
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_groups_fit_what_is_left(name):
    fn, make, groups, shape = MODELS[name]
    params, _ = killed(make(), groups)
    small = compact(params, groups)
    assert [g.sizes[-1] for g in small.groups] == [
        g["left"] for g in small.manifest["groups"]
    ]
    again = compact(small.params, small.groups)
    assert again.sizes == small.sizes
    assert again.groups == small.groups
    # One model keeps its statistics among the parameters, which this does not vary.
    if not any(g.states for g in groups):
        volax.check_groups(small.groups, fn, small.params, normal(3, *shape))
