"""The group soft threshold of whole units: its map, its fixed points, its groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax
from benchmarks import transformer
from tests import cases
from tests.compress import models
from tests.compress.test_heads import grouped, grouped_params
from volax._paths import named_leaves
from volax.compress._dead import positions
from volax.pairs import Axis, Group, Member, _judge


def normal(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}


def gelu(params, x):
    return jax.nn.gelu(x @ params["w1"] + params["b1"]) @ params["w2"]


def gelu_params():
    return normal(0, w1=(5, 12), b1=(12,), w2=(12, 3))


def step(tx, params):
    """The parameters after one step without a gradient."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return cases.apply(params, cases.update(tx, zeros, params)[0])


UNITS = {
    "consumers": lambda t: [[(t["w2"], (k,))] for k in range(12)],
    "all": lambda t: [
        [(t["w1"], (slice(None), k)), (t["b1"], (k,)), (t["w2"], (k,))]
        for k in range(12)
    ],
}


def joint(unit):
    """All weights of a unit as one vector."""
    return np.concatenate([np.ravel(x[i]) for x, i in unit])


@pytest.mark.parametrize("p", [1.0, 0.7, 0.5, 0.0])
@pytest.mark.parametrize("over", UNITS)
def test_the_step_minimises_its_objective(x64, over, p):
    """Against 10,000 perturbations and against removing or restoring single units."""
    start, k = gelu_params(), {1.0: 0.8, 0.7: 0.7}.get(p, 0.4)
    groups = volax.find_groups(gelu, start, jnp.ones((1, 5)))
    new = step(volax.group_prox(0.5, 2 * k, groups, over=over, p=p), start)
    before, after = ([joint(u) for u in UNITS[over](t)] for t in (start, new))
    dead = [not x.any() for x in after]
    assert any(dead) != all(dead)

    def objective(units):  # of one unit, [draws, weights]
        n, norm = units[0].shape[-1], np.linalg.norm(units[0], axis=-1)
        power = (norm > 0) if p == 0 else norm**p
        return k * n ** (1 - p / 2) * power + ((units[0] - units[1]) ** 2).sum(-1) / 2

    rng = np.random.default_rng(1)
    for w, t in zip(before, after):
        found = objective((t, w))
        size = 10.0 ** rng.uniform(-6, 0.5, (10_000, 1))
        near = t + size * rng.normal(size=(10_000, t.size))
        scaled = np.linspace(0, 1.5, 1001)[:, None] * w
        for others in (near, scaled):
            assert found <= objective((others, w)).min() + 1e-12


def dual(w, trees, k, sweeps=4000):
    """The map of the sum over nested groups, by ascent on its dual in NumPy.

    Each group has a vector on its weights of at most its threshold; projecting the
    residual onto one ball after another converges to the dual's solution in any order
    (Jenatton et al. 2011, algorithm 1 without its insight that one sweep does).
    """
    parts = [np.zeros_like(w) for _ in trees]
    for _ in range(sweeps):
        for part, (inside, weight) in zip(parts, trees):
            rest = np.where(inside, w - sum(parts) + part, 0)
            part[...] = rest * min(1, k * weight / max(np.linalg.norm(rest), 1e-300))
    return w - sum(parts)


def attention(params, x):
    q, k, v = (jnp.einsum("btd,dkh->btkh", x, params[n]) for n in "qkv")
    weights = jax.nn.softmax(jnp.einsum("btkh,bskh->bkts", q, k), -1)
    return jnp.einsum("bkts,bskh,khd->btd", weights, v, params["o"])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["heads first", "last"])
@pytest.mark.parametrize("over", ["consumers", "all"])
def test_nested_groups_take_the_exact_map_of_their_sum(x64, over, order):
    """Channels of values inside heads."""
    kernel = (6, 4, 3)
    start = normal(3, q=kernel, k=kernel, v=kernel, o=(4, 3, 5))
    groups = volax.find_groups(attention, start, jnp.ones((2, 5, 6)))
    assert [g.sizes for g in groups] == [(4,), (4, 3)]
    groups, k = [groups[k] for k in order], 0.4 if over == "consumers" else 0.7
    new = step(volax.group_prox(0.5, 2 * k, groups, over=over), start)

    names = ["o"] if over == "consumers" else ["q", "k", "v", "o"]
    flat = lambda t: np.concatenate([np.ravel(t[n]) for n in names])  # noqa: E731

    def inside(*where):
        marked = {n: np.zeros(start[n].shape, bool) for n in names}
        for name, index in where:
            if name in marked:
                marked[name][index] = True
        chosen = flat(marked)
        return chosen, np.sqrt(chosen.sum())

    rows = slice(None)
    trees = [inside(("o", h), *((n, (rows, h)) for n in "qkv")) for h in range(4)]
    trees += [
        inside(("o", (h, c)), ("v", (rows, h, c))) for h in range(4) for c in range(3)
    ]
    expected = dual(flat(start), trees, k)
    np.testing.assert_allclose(flat(new), expected, atol=1e-9)
    heads = np.abs(np.asarray(new["o"])).sum((1, 2))
    channels = np.abs(np.asarray(new["o"])).sum(2)
    assert 0 < (channels == 0).sum() < 12
    if over == "consumers":
        assert (heads == 0).any()
    assert (heads > 0).any()


@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("over", UNITS)
def test_sgd_ends_where_loss_and_penalty_are_stationary(x64, over, p):
    """Finite differences of the whole objective, around and at its corners."""
    start = jax.tree.map(lambda x: x / 2, gelu_params())
    x, y = (normal(5, x=(40, 5), y=(40, 3))[k] for k in "xy")
    groups = volax.find_groups(gelu, start, x)
    strength, rate = 0.02, 0.1

    @jax.jit
    def loss(params):
        # Weights that the penalty leaves out would grow for ever to let others shrink.
        decay = 0.01 * sum(jnp.sum(params[n] ** 2) for n in ("w1", "b1"))
        return jnp.mean((gelu(params, x) - y) ** 2) + decay

    def objective(params):
        total = float(loss(params))
        for unit in UNITS[over](params):
            v = joint(unit)
            total += strength * v.size ** (1 - p / 2) * np.linalg.norm(v) ** p
        return total

    tx = optax.chain(
        optax.sgd(rate), volax.group_prox(rate, strength, groups, over=over, p=p)
    )

    @jax.jit
    def train(carry):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, carry, length=60_000)[0]

    end, _ = train((start, tx.init(start)))
    end = {k: np.array(v) for k, v in end.items()}
    dead = np.array([not joint(u).any() for u in UNITS[over](end)])
    assert 0 < dead.sum() < 12
    value, rng, h = objective(end), np.random.default_rng(0), 1e-5
    for name, leaf in end.items():
        for index in np.ndindex(leaf.shape):
            unit = index[-1] if name in ("w1", "b1") else index[0]
            if dead[unit]:
                continue
            moved = []
            for sign in (1, -1):
                other = end | {name: leaf.copy()}
                other[name][index] += sign * h
                moved.append(objective(other))
            assert abs(moved[0] - moved[1]) / (2 * h) < 1e-5, (name, index)
    for k in np.flatnonzero(dead):
        for _ in range(20):
            other = {n: v.copy() for n, v in end.items()}
            unit = UNITS[over](other)[k]
            for view, index in unit:
                view[index] += h * rng.normal(size=np.shape(view[index]))
            assert objective(other) > value


def expert(params, x):
    return jnp.einsum("bi,eih->beh", x, params["a"])


ZOO = {
    "gelu": (gelu, gelu_params, (4, 5)),
    "attention": (grouped, grouped_params, (2, 5, 6)),
    "swiglu": (
        lambda p, x: (jax.nn.silu(x @ p["g"]) * (x @ p["a"])) @ p["v"],
        lambda: normal(1, g=(5, 12), a=(5, 12), v=(12, 3)),
        (4, 5),
    ),
    "experts": (
        lambda p, x: jnp.einsum(
            "be,beo->bo",
            jax.nn.sigmoid(x @ p["gate"]),
            jnp.einsum("beh,eho->beo", jax.nn.silu(expert(p, x)), p["v"]),
        ),
        lambda: normal(2, gate=(5, 4), a=(4, 5, 6), v=(4, 6, 3)),
        (4, 5),
    ),
    **{name: (fn, make, shape) for name, (fn, make, _, shape) in models.MODELS.items()},
}


def weakest(group, over, leaves):
    """The median root mean square of the units, and who is below."""
    members = list(group.consumers)
    if over == "all":
        members += [*group.producers, *group.biases, *group.scales, *group.fixed]
    squares, n = np.zeros(group.sizes), 0
    for m in members:
        leaf = np.square(np.asarray(leaves[m.path], np.float64))
        for unit in np.ndindex(group.sizes):
            chosen = np.zeros(group.sizes, bool)
            chosen[unit] = True
            own = np.broadcast_to(positions(m, chosen, leaf.shape), leaf.shape)
            squares[unit] += leaf[own].sum()
        n += own.sum()
    size = np.sqrt(squares / n)
    return np.median(size), size < np.median(size)


@pytest.mark.parametrize("over", ["consumers", "all"])
@pytest.mark.parametrize("name", ZOO)
def test_what_dies_is_cut_and_the_function_stays(name, over):
    fn, make, shape = ZOO[name]
    params = jax.tree.map(jnp.float32, make())
    x = jax.random.normal(jax.random.key(0), shape)
    groups = volax.find_groups(fn, params, x)
    for group in groups:
        median, weak = weakest(group, over, named_leaves(params))
        params = step(volax.group_prox(1.0, median, group, over=over), params)
        leaves = named_leaves(params)
        for m in (*group.members, *group.fixed):
            zero = np.asarray(leaves[m.path]) == 0
            own = np.broadcast_to(positions(m, weak, zero.shape), zero.shape)
            if m.role == "consumer" or over == "all":
                assert zero[own].all()
        assert weak.any()
    expected = [_judge.judge(g, leaves).unread for g in groups]
    small = volax.compact(params, groups, check=(fn, None, (x,)))
    for group, dead in zip(small.manifest["groups"], expected):
        assert group["left"] == max(
            (~dead).reshape(-1, dead.shape[-1]).sum(-1).max(), 1
        )


def lying(path, role, axis):
    """A member that has entries for the second index of a unit alone."""
    return Member(path, role, 0, (Axis(axis, 0, (4,), (1,), (1,)),))


SUMMED = Group((2, 4), (lying("w1", "producer", 1),), (lying("w2", "consumer", 0),))


def test_groups_that_cannot_be_cut_are_left_out():
    mask = jnp.arange(4.0)

    def masked(params, x):
        h = jax.nn.relu(x @ params["w1"]) * mask  # a captured array along the units
        return jax.nn.gelu(h @ params["w2"]) @ params["w3"]

    params = normal(0, w1=(3, 4), w2=(4, 5), w3=(5, 2))
    params = jax.tree.map(jnp.float32, params)
    groups = volax.find_groups(masked, params, jnp.ones((1, 3)))
    assert [bool(g.carries) for g in groups] == [True, False]
    new = step(volax.group_prox(1.0, 100.0, groups), params)
    np.testing.assert_array_equal(new["w2"], params["w2"])
    assert not new["w3"].any()
    with pytest.raises(
        ValueError, match=r"none .* can be cut: w1 -> w2: a captured ar"
    ):
        volax.group_prox(1.0, 100.0, groups[:1])
    with pytest.raises(ValueError, match=r"w1 -> w2: entries of 'w1' are shared"):
        volax.group_prox(1.0, 100.0, SUMMED)


def test_running_statistics_are_left_alone():
    params = models.cnn_params()
    (group,) = volax.find_groups(models.cnn, params, jnp.ones((2, 4, 4, 3)))
    new = named_leaves(step(volax.group_prox(1.0, 100.0, group, over="all"), params))
    left = {path for path, leaf in new.items() if leaf.any()}
    assert left == {"head/bias", *(m.path for m in group.states)}
    new = named_leaves(step(volax.group_prox(1.0, 100.0, group), params))
    assert [path for path, leaf in new.items() if not leaf.any()] == ["head/kernel"]


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("over", ["consumers", "all"])
def test_a_dead_unit_comes_back_unless_it_is_frozen(over, freeze):
    tree, grads = cases.params(), cases.params(7)
    dead = tree["l2"]["kernel"].at[1].set(0)
    tree["l2"]["kernel"] = dead
    if over == "all":
        tree["l1"] = {
            "kernel": tree["l1"]["kernel"].at[:, 1].set(0),
            "bias": tree["l1"]["bias"].at[1].set(0),
        }
    tx = volax.group_prox(0.1, 0.1, cases.PAIR, over=over, freeze_dead=freeze)
    new = cases.apply(tree, cases.update(tx, grads, tree)[0])
    assert bool(new["l2"]["kernel"][1].any()) != freeze
    assert new["l2"]["kernel"][0].any()
    if over == "all":
        assert bool(new["l1"]["kernel"][:, 1].any()) != freeze


def test_a_tied_kernel_counts_once():
    """The same entries make the units and read them: an autoencoder."""

    def tied(params, x):
        return jax.nn.gelu(x @ params["w"]) @ params["w"].T

    params = {"w": jnp.array([[3.0, 0.1], [4.0, 0.1]])}
    groups = volax.find_groups(tied, params, jnp.ones((1, 2)))
    for over in ("consumers", "all"):
        new = step(volax.group_prox(1.0, 0.5, groups, over=over), params)
        kept = 1 - 0.5 * 2**0.5 / 5
        np.testing.assert_allclose(new["w"], [[3 * kept, 0], [4 * kept, 0]], rtol=1e-6)


def test_a_transformer_under_adam_loses_units_channels_and_heads():
    """Layer norms, attention and GELU MLPs, on text of a small grammar."""
    size = transformer.Size(2, 16, heads=4, channels=4, units=32, length=16, batch=16)
    text, steps = transformer.grammar(20_000), 300
    params = transformer.init(size, jax.random.key(0), kinds=27)
    x = jnp.asarray(text[:32].reshape(2, 16))
    groups = volax.find_groups(transformer.forward, params, x)
    rate = optax.cosine_decay_schedule(1e-2, steps)
    prox = volax.group_prox(rate, 0.1, groups, over="all", p=0.5)
    tx = optax.chain(optax.adam(rate), prox)
    params, _ = transformer.trained(tx, params, text[:18_000], steps, size, seed=0)
    left = transformer.alive(params, size)
    assert 0 < left["units"] < 60
    assert 0 < left["channels"] < 24
    assert 0 < left["heads"] < 8
    small = volax.compact(params, groups, check=(transformer.forward, None, (x,)))
    units = [small.sizes[f"block{k}/up"][1] for k in range(2)]
    heads = [small.sizes[f"block{k}/out"][0] for k in range(2)]
    channels = [small.sizes[f"block{k}/value"][2] for k in range(2)]
    assert (sum(units), sum(heads)) == (left["units"], left["heads"])
    assert min(channels) < 4
    losses = [
        transformer.held_out(tree, text[18_000:], 16) for tree in (params, small.params)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[1] < 1.7  # 2.9 where only the frequencies of letters are known
