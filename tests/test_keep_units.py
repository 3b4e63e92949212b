"""The projection onto nets of few units, beside NumPy and beside compacting."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax
from tests.compress.models import STACKED, drawn, mlp_params, stacked_params
from tests.compress.test_heads import X
from tests.pairs.test_cost import attention_block, attention_params
from volax import _paths
from volax.pairs import _cost
from volax.pairs._layout import unit_indices
from volax.pairs._trace.count import multiply_adds

ADAM = optax.adam(0.03)


def net(params, x, act=jax.nn.relu):
    for k in (1, 2):
        x = act(x @ params[f"l{k}"]["kernel"] + params[f"l{k}"]["bias"])
    return x @ params["l3"]["kernel"] + params["l3"]["bias"]


INPUTS = jax.random.normal(jax.random.key(0), (8, 5))
PAIRS = volax.find_pairs(net, mlp_params(), INPUTS)  # 12 and 9 units, one after another


def losses(fn, x):
    return jax.grad(lambda p: jnp.mean(jnp.sin(3 * fn(p, x))))


def init(tx, params) -> Any:
    return tx.init(params)


def stepped(tx, params, state, grads, **extra) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state


def supports(params, groups):
    """For each group which units have an outgoing weight, and which have any."""
    leaves = {k: np.asarray(v) for k, v in _paths.named_leaves(params).items()}
    found = []
    for group in groups:
        read = _lives(group, group.consumers, leaves)
        found.append((read, _lives(group, group.members + group.fixed, leaves)))
    return found


def _lives(group, members, leaves):
    alive = np.zeros(group.size, bool)
    for m in members:
        leaf = leaves[m.path]
        carrying = {a.axis for a in m.axes}
        rest = tuple(i for i in range(leaf.ndim) if i not in carrying)
        used = (leaf != 0).any(axis=rest).reshape(-1)
        alive |= used[unit_indices(m, group.sizes, leaf.shape)[0]].any(axis=-1)
    return alive.reshape(group.sizes)


def in_numpy(params, steps, shares):
    """Plain SGD steps on two hidden layers, with the units chosen one by one."""
    w = {k: np.asarray(v, np.float64) for k, v in _paths.named_leaves(params).items()}
    alive = [np.ones(12, bool), np.ones(9, bool)]
    for grads, share in zip(steps, shares):
        worth = [
            np.linalg.norm(w[f"l{k}/kernel"], axis=0)
            * np.linalg.norm(w[f"l{k + 1}/kernel"], axis=1)
            for k in (1, 2)
        ]
        for k, score in enumerate(worth):
            order = sorted(range(len(score)), key=lambda i: (-score[i], i))
            stays = set(order[: math.ceil(share * len(score) - 1e-9)])
            alive[k] = np.array([a and i in stays for i, a in enumerate(alive[k])])
        for path, g in _paths.named_leaves(grads).items():
            w[path] = w[path] - 0.1 * np.asarray(g, np.float64)
        for k, live in enumerate(alive, 1):
            w[f"l{k}/kernel"][:, ~live] = 0
            w[f"l{k}/bias"][~live] = 0
            w[f"l{k + 1}/kernel"][~live] = 0
    return w, alive


def test_the_units_are_those_that_numpy_chooses():
    params = mlp_params()
    steps = [
        jax.tree.map(lambda x, s=s: jnp.roll(x, s) + 0.1 * s, params) for s in range(5)
    ]
    share = volax.cubic_ramp(1.0, 0.3, 0, 4)
    tx = optax.chain(optax.sgd(0.1), volax.keep_units(share, PAIRS))
    step = jax.jit(lambda p, s, g: stepped(tx, p, s, g))
    new, state = params, init(tx, params)
    for g in steps:
        new, state = step(new, state, g)
    shares = [0.3 + 0.7 * (1 - t / 4) ** 3 for t in range(5)]
    expected, alive = in_numpy(params, steps, shares)
    assert [int(a.sum()) for a in alive] == [4, 3]
    for path, leaf in _paths.named_leaves(new).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(leaf) == 0, expected[path] == 0)
    for found, wanted in zip(state[1].alive, alive):
        np.testing.assert_array_equal(found, wanted)


def gelu_net(params, x):
    return net(params, x, jax.nn.gelu)


def wide_params():
    return mlp_params(widths=(5, 12, 12, 3))


# The program, its parameters and inputs, and what is compared.
PHASES = {
    "relu": (net, wide_params, INPUTS, "layer"),
    "gelu": (gelu_net, wide_params, INPUTS, "layer"),
    "gelu-global": (gelu_net, mlp_params, INPUTS, "global"),
    "attention-global": (attention_block, attention_params, X, "global"),
}


@pytest.mark.parametrize("name", PHASES)
def test_training_is_that_of_the_compacted_model(x64, name):
    """The same ramp on the whole model, and on models that are cut at every step."""
    fn, make, x, scope = PHASES[name]
    # In float32 Adam makes whole steps of what rounding leaves of a gradient of zero.
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (make(), x))
    groups = volax.find_groups(fn, params, x)
    ramp: Any = volax.cubic_ramp(1.0, 0.4, 0, 3)
    tx = optax.chain(ADAM, volax.keep_units(ramp, groups, scope=scope))

    def step(tx):
        return jax.jit(lambda p, s: stepped(tx, p, s, losses(fn, x)(p)))

    step_whole, run = step(tx), jax.jit(fn)
    whole, state = params, init(tx, params)
    small, moments, left = params, init(ADAM, params), groups
    total = sum(groups.multiply_adds.values())
    for t in range(4):
        whole, state = step_whole(whole, state)
        if scope == "layer":
            share = math.ceil(float(ramp(t)) * 12 - 1e-4) / left[0].size
        else:
            share = min(float(ramp(t)) * total / sum(left.multiply_adds.values()), 1.0)
        cutting = optax.chain(ADAM, volax.keep_units(share, left, scope=scope))
        before = moments, init(cutting, small)[1]
        small, (moments, _) = step(cutting)(small, before)
        done = volax.compact(small, left, opt_state=moments)
        small, moments, left = done.params, done.opt_state, done.groups
        counts = [int(_cost.units_left(a)) for a in state[1].alive]
        assert [g.sizes[-1] for g in left] == counts
        np.testing.assert_allclose(run(small, x), run(whole, x), rtol=1e-9)
    assert sum(counts) < sum(g.sizes[-1] for g in groups)
    if scope == "global":
        assert sum(left.multiply_adds.values()) <= 0.4 * total


def test_what_is_dead_is_zero_in_all_its_weights_and_compact_removes_it():
    params = attention_params()
    groups = volax.find_groups(attention_block, params, X)
    tx = optax.chain(optax.adam(0.1), volax.keep_units(0.5, groups))
    new, state = params, init(tx, params)
    for _ in range(3):
        new, state = stepped(tx, new, state, losses(attention_block, X)(new))
    for (read, used), alive in zip(supports(new, groups), state[1].alive):
        np.testing.assert_array_equal(read & ~alive, False)
        np.testing.assert_array_equal(used & ~alive, False)
    small = volax.compact(new, groups, check=(attention_block, None, (X,)))
    assert [g["left"] for g in small.manifest["groups"]] == [4, 2, 1, 2]


def test_free_units_come_back():
    params = {"a": jnp.array([[3.0, 2.0, 1.0]]), "v": jnp.array([[1.0], [1.0], [1.0]])}
    pair = volax.pair("a", "v")
    push = {"a": jnp.zeros((1, 3)), "v": jnp.array([[0.0], [0.0], [-30.0]])}
    for freeze, expected in ((True, [1, 1, 0]), (False, [1, 0, 1])):
        tx = optax.chain(optax.sgd(0.1), volax.keep_units(0.6, pair, freeze=freeze))
        new, state = stepped(
            tx, params, init(tx, params), jax.tree.map(jnp.zeros_like, push)
        )
        assert ((new["v"][:, 0] != 0) == jnp.array([1, 1, 0])).all()
        assert (new["a"][0, 2] == 0) == freeze
        new, state = stepped(tx, new, state, push)
        assert ((new["v"][:, 0] != 0) == jnp.array(expected)).all()


@pytest.mark.parametrize("freeze", [True, False])
def test_units_are_chosen_at_every_so_many_steps(freeze):
    share = volax.cubic_ramp(1.0, 0.25, 0, 6)
    tx = volax.keep_units(share, PAIRS, every=3, freeze=freeze)
    params = mlp_params()
    state = init(tx, params)
    left = []
    for _ in range(8):
        grads = jax.tree.map(jnp.ones_like, params)
        params, state = jax.jit(lambda p, s, g: stepped(tx, p, s, g))(
            params, state, grads
        )
        left.append(int(state.alive[0].sum()))
        read, _ = supports(params, PAIRS)[0]
        np.testing.assert_array_equal(read, state.alive[0])
    assert left == [12, 12, 12, 5, 5, 5, 3, 3]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("freeze", "expected"), [(True, [3, 3]), (False, [3, 12])])
def test_a_share_that_rises_brings_back_free_units_alone(scope, freeze, expected):
    share = optax.piecewise_constant_schedule(0.25, {1: 4.0})
    pair = volax.pair("a", "v")
    tx = volax.keep_units(share, pair, scope=scope, freeze=freeze)
    tree = one_row(np.arange(12))
    state, left = init(tx, tree), []
    for _ in range(2):
        tree, state = stepped(tx, tree, state, jax.tree.map(jnp.ones_like, tree))
        left.append(int(state.alive[0].sum()))
    assert left == expected


def one_row(scores):
    """A pair whose units have these path norms."""
    scores = jnp.asarray(scores, jnp.float32)
    return {"a": scores[None, :], "v": jnp.ones((len(scores), 1))}


def chosen(tree, share, **options):
    tx = volax.keep_units(share, volax.pair("a", "v"), **options)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    _, state = stepped(tx, tree, init(tx, tree), zeros)
    return np.flatnonzero(state.alive[0]).tolist()


def test_ties_go_by_index_and_nan_goes_first():
    assert chosen(one_row([1, 1, 1, 1]), 0.5) == [0, 1]
    assert chosen(one_row([np.nan, 0, np.nan, 2]), 0.75) == [0, 1, 3]
    assert chosen(one_row([np.inf, 1, 2, np.nan]), 0.5) == [0, 2]
    assert chosen(one_row([0, 0, 0, 0]), 0.5, scope="global") == [0, 1]
    assert chosen(one_row([np.inf, 1, np.nan, 2]), 0.5, scope="global") == [0, 3]


@pytest.mark.parametrize("given", [float, jnp.float32, optax.constant_schedule])
@pytest.mark.parametrize("units", [50, 100])  # 0.3 of them is 30.000001 in float32
def test_shares_of_decimals_are_counted_exactly(given, units):
    tree = one_row(np.arange(units))
    for tenths in range(11):
        kept = chosen(tree, given(tenths / 10))
        assert len(kept) == max(tenths * units // 10, 1)


def test_floor_and_multiples():
    tree = one_row(np.arange(10))
    assert len(chosen(tree, 0.0)) == 1
    assert len(chosen(tree, 0.0, floor=3)) == 3
    assert len(chosen(tree, 0.25, round_to=4)) == 4
    assert len(chosen(tree, 0.85, round_to=4)) == 10
    assert len(chosen(tree, 0.45, scope="global", round_to=4)) == 4
    assert len(chosen(tree, 0.4, scope="global")) == 4


def test_stacked_layers_lose_as_many_units_each():
    params = stacked_params()
    tx = volax.keep_units(0.5, STACKED)
    new, state = stepped(
        tx, params, init(tx, params), jax.tree.map(jnp.zeros_like, params)
    )
    assert state.alive[0].sum(axis=-1).tolist() == [4, 4, 4]
    norms = np.linalg.norm(params["up"], axis=1) * np.linalg.norm(
        params["down"], axis=2
    )
    for live, norm in zip(state.alive[0], norms):
        assert set(np.flatnonzero(live)) == set(np.argsort(-norm)[:4])
    assert volax.compact(new, STACKED).sizes["up"] == (3, 5, 4)


def test_taylor_scores_are_averaged_changes_of_the_loss():
    params, (pair, _) = mlp_params(), PAIRS
    grads = [jax.tree.map(lambda x, s=s: jnp.roll(x, s), params) for s in range(1, 4)]
    tx = optax.chain(
        optax.sgd(0.01), volax.keep_units(0.5, pair, score="taylor", score_decay=0.8)
    )
    expected, new, state = np.zeros(12), params, init(tx, params)
    for g in grads:
        w, h = (_paths.named_leaves(tree) for tree in (new, g))
        change = np.sum(w["l1/kernel"] * h["l1/kernel"], axis=0)
        change += w["l1/bias"] * h["l1/bias"]
        change += np.sum(w["l2/kernel"] * h["l2/kernel"], axis=1)
        expected = 0.8 * expected + 0.2 * np.abs(change)
        new, state = stepped(tx, new, state, g, grad=g)
    np.testing.assert_allclose(state[1].scores[0], expected, rtol=1e-5, atol=1e-7)
    assert int(state[1].alive[0].sum()) == 6
    with pytest.raises(
        ValueError, match=r"keep_units: .*needs the gradients: pass grad"
    ):
        tx.update(grads[0], state, new)
    with pytest.raises(ValueError, match=r"grad must hold .*'l1/bias'.* got None"):
        tx.update(grads[0], state, new, grad={"l2": grads[0]["l2"]})


@pytest.mark.parametrize("round_to", [1, 2])
@pytest.mark.parametrize("share", [0.9, 0.45])
def test_global_removal_is_the_least_that_meets_the_target(share, round_to):
    params = attention_params()
    groups = volax.find_groups(attention_block, params, X)
    total = sum(groups.multiply_adds.values())
    tx = volax.keep_units(share, groups, scope="global", round_to=round_to)
    new, state = stepped(
        tx, params, init(tx, params), jax.tree.map(jnp.zeros_like, params)
    )
    small = volax.compact(new, groups, check=(attention_block, None, (X,)))
    left = multiply_adds(attention_block, small.params, (X,))
    assert sum(left.values()) <= share * total
    counts = [int(_cost.units_left(a)) for a in state.alive]
    assert all(n % round_to == 0 or n == g.sizes[-1] for n, g in zip(counts, groups))
    # One unit more, of the group whose turn was last, and it would be too many.
    cost = _cost.cost(groups, params, products=groups.products)
    more = []
    for k, group in enumerate(groups):
        if counts[k] < group.sizes[-1]:
            again = [n + round_to * (j == k) for j, n in enumerate(counts)]
            more.append(float(cost.share(again)) > share)
    assert any(more)


def test_layers_lose_like_parts_whatever_their_units_cost():
    """Units of 54 and of 9 multiply-adds: the last of either layer go in turn."""
    params = {
        "a": jnp.ones((50, 8)), "b": jnp.ones((8, 4)),
        "c": jnp.full((5, 8), 9.0), "d": jnp.ones((8, 4)),
    }  # fmt: skip
    pairs = [volax.pair("a", "b"), volax.pair("c", "d")]
    tx = volax.keep_units(0.7, pairs, scope="global")
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = stepped(tx, params, init(tx, params), zeros)
    first, second = (int(a.sum()) for a in state.alive)
    assert first == 5  # 342 of 504 with all of the other, and 396 are too many
    assert abs(first - second) <= 1


def test_a_share_that_cannot_be_reached_is_an_error():
    tree = one_row(np.arange(10))
    with pytest.raises(ValueError, match=r"share=0.2 .* cannot be reached.* 0.3 are"):
        chosen(tree, 0.2, scope="global", floor=3)
    scheduled = optax.constant_schedule(0.2)
    assert len(chosen(tree, scheduled, scope="global", floor=3)) == 3


def test_groups_that_cannot_be_cut_are_left_alone():
    scale = jnp.arange(1.0, 7)

    def fn(params, x):
        hidden = jax.nn.relu(x @ params["a"] * scale) @ params["b"]
        return jax.nn.relu(hidden) @ params["c"]

    params = drawn(0, a=(5, 6), b=(6, 4), c=(4, 3))
    groups = volax.find_groups(fn, params, jnp.ones((1, 5)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    for scope in ("layer", "global"):
        tx = volax.keep_units(0.7, groups, scope=scope)
        _, state = stepped(tx, params, init(tx, params), zeros)
        assert bool(state.alive[0].all())
        assert not bool(state.alive[1].all())
    tx = volax.keep_units(0.5, groups[:1])
    with pytest.raises(ValueError, match=r"can be cut: a -> b: a captured array lies"):
        tx.update(zeros, init(tx, params), params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, r"share must be a finite number in \[0, 1\]"),
        ({"share": -0.1}, "share must be"),
        ({"groups": ()}, "groups is empty"),
        ({"groups": ["a"]}, "must hold records"),
        ({"scope": "all"}, "scope must be 'layer' or 'global', got 'all'"),
        ({"score": "l1"}, "score must be 'path_norm' or 'consumers' or 'taylor'"),
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"round_to": 2.0}, "round_to must be an integer"),
        ({"floor": True}, "floor must be an integer"),
        ({"score": "taylor", "freeze": False}, "freeze must be True"),
        ({"score_decay": 1.0}, r"score_decay must be .* in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        volax.keep_units(**({"share": 0.5, "groups": PAIRS} | options))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1.0, 0.2, 10, 10), "end must be behind begin=10, got 10"),
        ((np.nan, 0.2, 0, 10), "start must be"),
        ((1.0, 0.2, -1, 10), "begin must be"),
    ],
)
def test_a_ramp_needs_a_beginning_and_an_end(numbers, message):
    with pytest.raises(ValueError, match=f"cubic_ramp: {message}"):
        volax.cubic_ramp(*numbers)


def test_a_group_that_is_masked_out_by_half_is_an_error():
    params = mlp_params()
    mask = {
        k: {n: (k, n) != ("l2", "kernel") for n in ("kernel", "bias")} for k in params
    }
    tx = optax.masked(volax.keep_units(0.5, PAIRS), mask)
    with pytest.raises(ValueError, match="group l1/kernel -> l2/kernel is masked out"):
        tx.update(params, init(tx, params), params)
