"""Attention: whole heads go, and several groups cut one projection."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import volax
from tests.compress.models import marks, same_gradients
from volax.compress import compact

HEADS, SIZE, REPEATS = 4, 3, 2


def normal(seed, *shape):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


X = normal(0, 2, 5, 6)


def grouped(params, x):
    """Each head of keys and values serves several of queries."""
    q = jnp.einsum("btd,dkgh->btkgh", x, params["q"])
    k, v = (jnp.einsum("btd,dkh->btkh", x, params[n]) for n in "kv")
    v = v + params["bias"]
    weights = jax.nn.softmax(jnp.einsum("btkgh,bskh->bkgts", q, k), -1)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v)
    return jnp.einsum("btkgh,kghd->btd", out, params["o"])


def grouped_params():
    return {
        "q": normal(1, 6, HEADS, REPEATS, SIZE),
        "k": normal(2, 6, HEADS, SIZE),
        "v": normal(3, 6, HEADS, SIZE),
        "bias": normal(5, HEADS, SIZE),
        "o": normal(4, HEADS, REPEATS, SIZE, 6),
    }


def no_head(params):
    params["o"] = params["o"].at[1].set(0)


def no_value(params):
    params["v"] = params["v"].at[:, 2].set(0)
    params["bias"] = params["bias"].at[2].set(0)


def no_channel(params):
    for head, channel in enumerate((0, 2, 1, 0)):
        params["o"] = params["o"].at[head, :, channel].set(0)


def no_query(params):
    for head, repeat in enumerate((1, 0, 0, 1)):
        params["o"] = params["o"].at[head, repeat].set(0)


run = jax.jit(grouped)
KILLS = (no_head, no_value, no_channel, no_query)
CHOICES = [c for n in range(5) for c in itertools.combinations(KILLS, n)]


@pytest.mark.parametrize(
    "kills", CHOICES, ids=lambda c: "+".join(k.__name__ for k in c) or "none"
)
def test_several_groups_cut_the_axes_of_one_projection(kills):
    params = grouped_params()
    for kill in kills:
        kill(params)
    groups = volax.find_groups(grouped, params, X)
    assert sorted(g.sizes for g in groups) == [(4,), (4, 2), (4, 3)]
    small = compact(params, groups, opt_state=marks(params), check=(run, None, (X,)))
    heads = HEADS - (no_head in kills) - (no_value in kills)
    repeats, size = REPEATS - (no_query in kills), SIZE - (no_channel in kills)
    assert small.sizes["o"] == (heads, repeats, size, 6)
    assert small.sizes["k"] == (6, heads, SIZE)
    full = run(params, X)
    np.testing.assert_allclose(run(small.params, X), full, rtol=1e-5, atol=1e-6)
    same_gradients(lambda p: grouped(p, X), params, lambda p: grouped(p, X), small)
    assert all(kept.units for kept in small.kept)
    if repeats > 1:
        assert small.groups.groups == volax.find_groups(grouped, small.params, X).groups


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.attention = nnx.MultiHeadAttention(
            HEADS, in_features=6, qkv_features=HEADS * SIZE, out_features=8,
            decode=False, rngs=rngs,
        )  # fmt: skip
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(x))


@pytest.mark.parametrize("side", ["value", "output"])
def test_a_dead_head_of_an_nnx_attention_goes(side):
    model = Net()
    attention = model.attention
    for projection in (attention.query, attention.key):
        assert projection.bias is not None
        projection.bias[...] = normal(7, HEADS, SIZE)
    if side == "value":
        attention.value.kernel[...] = attention.value.kernel[...].at[:, 1].set(0)
    else:
        attention.out.kernel[...] = attention.out.kernel[...].at[1].set(0)
    small = compact(model, volax.find_groups(model, X), check=(X,))
    after = small.params.attention
    assert (after.num_heads, after.head_dim, after.qkv_features) == (3, 3, 9)
    assert after.query.out_features == after.key.out_features == (3, 3)
    assert (after.in_features, after.out_features) == (6, 8)
    np.testing.assert_allclose(small.params(X), model(X), rtol=1e-5, atol=1e-6)
    loads = nnx.grad(lambda m: (m(X) ** 2).sum())(small.params)
    assert loads["attention"]["key"]["kernel"].shape == (6, 3, 3)


def test_a_pair_of_channels_leaves_none_for_the_head():
    params = grouped_params()
    pairs = volax.find_pairs(grouped, params, X)
    assert [p.sizes for p in pairs] == [(HEADS, SIZE)]
    tx = volax.path_prox(0.1, 0.1, pairs)
    tx.update(params, tx.init(params), params)
