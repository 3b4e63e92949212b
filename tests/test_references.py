"""Every rule against the papers' updates in float64, 200 steps."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax
from tests import reference
from volax.prox._path_shrinkage import path_shrinkage

STEPS = 200
OPTIMIZERS = {
    "sgd": (lambda lr: optax.sgd(lr), reference.Sgd),
    "momentum": (lambda lr: optax.sgd(lr, 0.9), lambda: reference.Sgd(0.9)),
    "adam": (lambda lr: optax.adam(lr), reference.Adam),
}


def exact_schedule(count):
    """A learning rate that float64 JAX and NumPy compute alike."""
    return 0.05 / (1.0 + 0.25 * (count // 20))


def draw(shapes, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    params = {k: rng.normal(size=s) for k, s in shapes.items()}
    grads = [
        {k: size * rng.normal(size=s) for k, s in shapes.items()} for _ in range(STEPS)
    ]
    return params, grads


def run_jax(tx, params, grads, dtype):
    """All steps in one scan; the parameters after every step."""
    params = {k: jnp.asarray(v, dtype) for k, v in params.items()}
    stacked = {k: jnp.asarray(np.stack([g[k] for g in grads]), dtype) for k in params}

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda c: jax.lax.scan(step, c, stacked)[1])(
        (params, tx.init(params))
    )


def run_reference(optimizer, rule, params, grads):
    params = {k: v.copy() for k, v in params.items()}
    for count, g in enumerate(grads):
        lr = exact_schedule(count)
        before = params
        params = {k: before[k] + optimizer(k, g[k], lr) for k in before}
        rule(before, params, lr)
    return params


def assert_equal_in_float64(tx, rule, shapes, optimizer, size=1.0):
    params, grads = draw(shapes, size=size)
    history = run_jax(tx, params, grads, jnp.float64)
    expected = run_reference(optimizer, rule, params, grads)
    for key, value in expected.items():
        assert history[key].dtype == jnp.float64
        np.testing.assert_allclose(history[key][-1], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.5, -1.0, 1.0])
def test_volumize_equals_its_definition(x64, name, alpha):
    make, expected = OPTIMIZERS[name]
    tx = optax.chain(make(exact_schedule), volax.volumize(0.7, alpha, mask="all"))

    def rule(before, w, lr):
        w.update({k: reference.volumize(v, 0.7, alpha) for k, v in w.items()})

    assert_equal_in_float64(tx, rule, {"w": (5, 7), "b": (3,)}, expected())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("p", [0, 0.5, 2 / 3, 0.8, 1, 1.5, 2, 3])
@pytest.mark.parametrize("where", ["before", "after"])
def test_lp_decay_equals_the_paper(x64, name, p, where):
    make, expected = OPTIMIZERS[name]
    decay = volax.lp_decay(exact_schedule, 0.3, p, mask="all", reference=where)

    def rule(before, w, lr):
        for k in w:
            w[k] = reference.lp_decay(before[k], w[k], lr * 0.3, p, reference=where)

    tx = optax.chain(make(exact_schedule), decay)
    # Near 0 the rule multiplies a difference in the weight before the step by up to
    # |gradient| / strength: below one, rounding dies out instead of growing.
    shapes = {"w": (5, 7), "b": (3,)}
    assert_equal_in_float64(tx, rule, shapes, expected(), size=0.1)


ALL = slice(None)
# For each layout: shapes, the hand-written pair, and the units as index expressions.
PAIRS = {
    "dense": (
        {"a": (6, 5), "b": (5,), "v": (5, 3)},
        volax.pair("a", "v", bias="b"),
        lambda x: [
            ([(x["a"], (ALL, j))], [(x["b"], j)], [(x["v"], j)]) for j in range(5)
        ],
    ),
    "conv": (
        {"a": (3, 3, 2, 5), "b": (5,), "v": (3, 3, 5, 4)},
        volax.pair("a", "v", bias="b"),
        lambda x: [
            ([(x["a"], (..., j))], [(x["b"], j)], [(x["v"], (ALL, ALL, j))])
            for j in range(5)
        ],
    ),
    "flatten": (
        {"a": (3, 3, 2, 4), "b": (4,), "v": (24, 3)},
        volax.pair("a", volax.member("v", positions=6), bias="b"),
        lambda x: [
            ([(x["a"], (..., j))], [(x["b"], j)], [(x["v"], slice(j, None, 4))])
            for j in range(4)
        ],
    ),
    "concatenated": (
        {"a": (6, 4), "b": (4,), "v": (10, 3)},
        volax.pair("a", volax.member("v", offset=3), bias="b"),
        lambda x: [
            ([(x["a"], (ALL, j))], [(x["b"], j)], [(x["v"], 3 + j)]) for j in range(4)
        ],
    ),
    "flattened concatenation": (
        {"a": (6, 4), "b": (4,), "v": (30, 3)},
        volax.pair("a", volax.member("v", offset=5, positions=3, stride=10), bias="b"),
        lambda x: [
            ([(x["a"], (ALL, j))], [(x["b"], j)], [(x["v"], [5 + j, 15 + j, 25 + j])])
            for j in range(4)
        ],
    ),
    "stacked": (
        {"a": (3, 6, 5), "b": (3, 5), "v": (3, 5, 4)},
        volax.pair("a", "v", bias="b", layers=1),
        lambda x: [
            ([(x["a"], (i, ALL, j))], [(x["b"], (i, j))], [(x["v"], (i, j))])
            for i in range(3)
            for j in range(5)
        ],
    ),
    "two consumers": (
        {"a": (6, 5), "b": (5,), "v": (5, 3), "u": (5, 2)},
        volax.pair("a", ["v", "u"], bias="b"),
        lambda x: [
            ([(x["a"], (ALL, j))], [(x["b"], j)], [(x["v"], j), (x["u"], j)])
            for j in range(5)
        ],
    ),
    "out first": (
        {"a": (5, 6), "b": (5,), "v": (3, 5)},
        volax.pair(volax.member("a", 0), volax.member("v", 1), bias="b"),
        lambda x: [
            ([(x["a"], j)], [(x["b"], j)], [(x["v"], (ALL, j))]) for j in range(5)
        ],
    ),
}


MODES = ["rescale", "none", "project"]


@pytest.mark.thinned
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", PAIRS)
@pytest.mark.parametrize("normalize", MODES)
def test_path_prox_equals_the_paper(x64, name, layout, normalize):
    make, expected = OPTIMIZERS[name]
    shapes, pair, units = PAIRS[layout]
    prox = volax.path_prox(exact_schedule, 2.0, pair, normalize=normalize)

    def rule(before, w, lr):
        reference.path_prox(units(w), lr * 2.0, normalize, units(before))

    tx = optax.chain(make(exact_schedule), prox)
    assert_equal_in_float64(tx, rule, shapes, expected())


PATH = volax.pair("a", "v")


def stepped(strength, second_moments=None, **options) -> Any:
    """Weights of four units, with five outgoing weights each, after one step."""
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 5))}
    tx = volax.path_prox(0.1, strength, PATH, **options)
    zeros = jax.tree.map(jnp.zeros_like, params)
    given = {"second_moments": second_moments} if second_moments else {}
    updates, _ = tx.update(zeros, tx.init(params), params, **given)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("normalize", MODES)
def test_the_penalty_scales_with_the_outgoing_weights(x64, normalize, p):
    options = {"normalize": normalize, "p": p}
    scaled = stepped(0.3, scale_by_size=True, **options)
    chex.assert_trees_all_close(scaled, stepped(0.3 * 5 ** (1 - p / 2), **options))
    assert not np.allclose(scaled["v"], stepped(0.3, **options)["v"])


@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("normalize", MODES)
def test_the_penalty_is_divided_by_the_size_of_the_gradients(x64, normalize, p):
    options = {"normalize": normalize, "p": p}
    squares = {"a": jnp.full((3, 4), 9.0), "v": jnp.full((4, 5), 9.0)}
    expected = stepped(0.1, **options)
    chex.assert_trees_all_close(stepped(0.3, squares, **options), expected)
    # One of four units has no gradient yet: a tenth of the root mean square of all.
    squares["v"] = squares["v"].at[0].set(0)
    new = stepped(0.3, squares, **options)
    chex.assert_trees_all_close(new["v"][1:], expected["v"][1:])
    size = 0.1 * np.sqrt(9 * 3 / 4)
    if normalize == "project":  # where a's side has no part
        first = stepped(0.3 / size, **options)["v"][0]
        np.testing.assert_allclose(new["v"][0], first)
    assert (np.linalg.norm(new["v"][0]) < np.linalg.norm(expected["v"][0])).all()


def test_adam_without_its_metric_is_adam_and_path_prox(x64):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 5))}
    tx = volax.path_prox_adam(0.1, 2.0, PATH, metric=False, p=1.0, scale_by_size=False)
    plain = optax.chain(optax.adam(0.1), volax.path_prox(0.1, 2.0, PATH))
    own, _ = tx.update(params, tx.init(params), params)
    expected, _ = plain.update(params, plain.init(params), params)
    chex.assert_trees_all_close(own, expected)


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_both_sides_of_a_unit_may_take_steps_of_their_own(x64, p):
    t, k, m = np.array([2.0, 0.9, 1e-3]), 0.05, 0.4
    z = t * np.asarray(path_shrinkage(jnp.asarray(t), k, p, m))
    assert z[2] == 0
    z = z[:2]
    again = (z + k * p * z ** (p - 1)) * (1 + m * p * z**p)
    np.testing.assert_allclose(again, t[:2], rtol=1e-12)


def test_second_moments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 5\) at 'v'.*got \(4, 1\)"):
        stepped(0.3, {"a": jnp.ones((3, 4)), "v": jnp.ones((4, 1))})
    with pytest.raises(ValueError, match=r"shape \(3, 4\) at 'a'.*got None"):
        stepped(0.3, {"v": jnp.ones((4, 5))})


@pytest.mark.thinned
@pytest.mark.parametrize("p", [1, 0.5, 0])
@pytest.mark.parametrize("over", ["consumers", "all"])
@pytest.mark.parametrize("layout", PAIRS)
def test_group_prox_equals_its_definition(x64, layout, over, p):
    shapes, pair, units = PAIRS[layout]
    prox = volax.group_prox(exact_schedule, 2.0, pair, over=over, p=p)

    def rule(before, w, lr):
        sides = units(w)
        if over == "consumers":
            sides = [((), (), outgoing) for _, _, outgoing in sides]
        reference.group_prox([[*a, *b, *v] for a, b, v in sides], lr * 2.0, p)

    tx = optax.chain(optax.adam(exact_schedule), prox)
    assert_equal_in_float64(tx, rule, shapes, reference.Adam())


@pytest.mark.parametrize("width", [1, 3, 8])
def test_overlapping_groups_go_by_their_size_then_in_order(x64, width):
    """A unit of the first group has 9 weights, one of the second 6 + width."""
    shapes = {"k1": (4, 6), "k2": (6, 5), "k3": (5, width)}
    pairs = [volax.pair("k1", "k2"), volax.pair("k2", "k3")]

    def rule(before, w, lr):
        sides = [
            [[(w["k1"], (ALL, j)), (w["k2"], j)] for j in range(6)],
            [[(w["k2"], (ALL, j)), (w["k3"], j)] for j in range(5)],
        ]
        for units in sides if width >= 3 else reversed(sides):
            reference.group_prox(units, lr, 1)

    prox = volax.group_prox(exact_schedule, 1.0, pairs, over="all")
    tx = optax.chain(optax.sgd(exact_schedule), prox)
    assert_equal_in_float64(tx, rule, shapes, reference.Sgd())


@pytest.mark.parametrize("normalize", ["rescale", "none"])
def test_chained_pairs_equal_their_definition(x64, normalize):
    shapes = {"k1": (4, 6), "k2": (6, 5), "k3": (5, 3)}
    pairs = [volax.pair("k1", "k2"), volax.pair("k2", "k3")]

    def rule(before, w, lr):
        def units(x):
            first = [([(x["k1"], (ALL, j))], [], [(x["k2"], j)]) for j in range(6)]
            second = [([(x["k2"], (ALL, j))], [], [(x["k3"], j)]) for j in range(5)]
            return first + second

        reference.path_prox(units(w), lr, normalize, units(before))

    prox = volax.path_prox(exact_schedule, 1.0, pairs, normalize=normalize)
    tx = optax.chain(optax.sgd(exact_schedule), prox)
    assert_equal_in_float64(tx, rule, shapes, reference.Sgd())


# In float32 each step is compared on its own: the reference starts from the float32
# weights, so that only the rounding of that step counts.
ROUNDING = {
    "volumize": (
        volax.volumize(0.7, -0.5),
        lambda p, w: {k: reference.volumize(w[k], 0.7, -0.5) for k in w},
    ),
    **{
        f"lp_decay p={p:.3g}": (
            volax.lp_decay(0.1, 0.3, p),
            lambda b, w, p=p: {k: reference.lp_decay(b[k], w[k], 0.03, p) for k in w},
        )
        for p in [0, 0.5, 2 / 3, 0.8, 1, 1.5, 2, 3]
    },
    **{
        f"path_prox {mode}": (
            volax.path_prox(0.1, 1.0, volax.pair("a", "v"), normalize=mode),
            lambda b, w, mode=mode: _proxed(b, w, mode),
        )
        for mode in MODES
    },
    **{
        f"group_prox p={p}": (
            volax.group_prox(0.1, 1.0, volax.pair("a", "v"), p=p),
            lambda b, w, p=p: _grouped(w, p),
        )
        for p in (1, 0.5, 0)
    },
}


def _proxed(before, w, mode):
    def units(x):
        return [([(x["a"], (ALL, j))], [], [(x["v"], j)]) for j in range(8)]

    w = {k: v.copy() for k, v in w.items()}
    reference.path_prox(units(w), 0.1, mode, units(before))
    return w


def _grouped(w, p):
    w = {k: v.copy() for k, v in w.items()}
    reference.group_prox([[(w["v"], (j,))] for j in range(8)], 0.1, p)
    return w


@pytest.mark.parametrize("name", ROUNDING)
def test_a_float32_step_is_right_to_a_few_ulp(name):
    tx, rule = ROUNDING[name]
    params, steps = draw({"a": (6, 8), "v": (8, 5)}, seed=1)
    steps = [{k: 0.05 * v for k, v in s.items()} for s in steps]
    history = run_jax(tx, params, steps, jnp.float32)
    before = {k: np.float32(v) for k, v in params.items()}
    for count in range(STEPS):
        p = {k: v.astype(np.float64) for k, v in before.items()}
        w = {k: p[k] + steps[count][k].astype(np.float32) for k in p}
        expected = rule(p, w)
        before = {k: np.asarray(v[count]) for k, v in history.items()}
        for k, t in expected.items():
            # The step p + u itself rounds to half an ulp of its largest operand.
            scale = np.maximum.reduce([abs(p[k]), abs(w[k] - p[k]), abs(w[k]), abs(t)])
            ulp = np.spacing(scale.astype(np.float32))
            assert np.max(abs(before[k] - t) / ulp) <= 4, (count, k)


def network(x, params):
    """Two pairs in series with a linear layer and biases everywhere between."""
    h = jax.nn.relu(x @ params["a1"] + params["b1"]) @ params["v1"] + params["c1"]
    h = h @ params["m"] + params["d"]
    h = jax.nn.relu(h @ params["a2"] + params["b2"]) @ params["v2"] + params["c2"]
    return h


SHAPES = {
    "a1": (6, 8), "b1": (8,), "v1": (8, 5), "c1": (5,), "m": (5, 4), "d": (4,),
    "a2": (4, 9), "b2": (9,), "v2": (9, 3), "c2": (3,),
}  # fmt: skip
BY_HAND = [
    volax.pair("a1", "v1", bias="b1", output_bias=("c1", "d")),
    volax.pair("a2", "v2", bias="b2", output_bias="c2"),
]


def found_pairs(params):
    pairs = volax.find_pairs(lambda p, x: network(x, p), params, jnp.ones((1, 6)))
    return pairs.disjoint()


def balanced(params, pairs, normalize="rescale"):
    tx = volax.path_prox(0.1, 0.0, pairs, balance=True, normalize=normalize)
    none = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(none, tx.init(params), params)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize("normalize", ["rescale", "none"])
@pytest.mark.parametrize("source", ["by hand", "found", "found, in reverse"])
def test_balance_equalises_the_path_norms_and_keeps_the_function(
    x64, source, normalize
):
    params, _ = draw(SHAPES)
    params["v2"] *= 30.0
    params = {k: jnp.asarray(v) for k, v in params.items()}
    pairs = BY_HAND if source == "by hand" else list(found_pairs(params))
    pairs = pairs[::-1] if source.endswith("reverse") else pairs
    totals = [float(n.sum()) for n in volax.path_norm(params, pairs)]
    new = balanced(params, pairs, normalize)
    after = [float(n.sum()) for n in volax.path_norm(new, pairs)]
    np.testing.assert_allclose(after, np.sqrt(np.prod(totals)), rtol=1e-12)
    assert max(totals) > 10 * min(totals)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(16, 6)))
    np.testing.assert_allclose(network(x, new), network(x, params), rtol=1e-11)


def test_a_dead_pair_does_not_stop_the_balance_of_the_others(x64):
    def model(p, x):
        return network(x, p) + jax.nn.relu(x @ p["a3"] + p["b3"]) @ p["v3"]

    params, _ = draw(SHAPES | {"a3": (6, 4), "b3": (4,), "v3": (4, 3)})
    params = {k: jnp.asarray(v) for k, v in params.items()} | {"v3": jnp.zeros((4, 3))}
    # The branch is written as the middle one of three pairs in a row.
    pairs = [BY_HAND[0], volax.pair("a3", "v3", bias="b3", output_bias=()), BY_HAND[1]]
    new = balanced(params, pairs)
    first, dead, last = (float(n.sum()) for n in volax.path_norm(new, pairs))
    np.testing.assert_allclose(first, last, rtol=1e-12)
    assert dead == 0
    x = jnp.asarray(np.random.default_rng(2).normal(size=(16, 6)))
    np.testing.assert_allclose(model(new, x), model(params, x), rtol=1e-11)


def test_path_norm_is_the_product_of_both_norms():
    x, _ = draw({"a": (6, 5), "v": (5, 3), "u": (5, 2)})
    params = {k: jnp.asarray(v, jnp.float32) for k, v in x.items()}
    (norms,) = volax.path_norm(params, volax.pair("a", ["v", "u"]))
    a = np.linalg.norm(x["a"], axis=0)
    v = np.linalg.norm(np.concatenate([x["v"], x["u"]], 1), axis=1)
    np.testing.assert_allclose(norms, a * v, rtol=1e-5)


def test_path_norm_has_finite_gradients_at_dead_units():
    params = {"a": jnp.array([[3.0, 1.0], [4.0, 0.0]]), "v": jnp.array([[2.0], [0.0]])}
    pair = volax.pair("a", "v")
    slopes = jax.grad(lambda p: jnp.sum(volax.path_norm(p, pair)[0]))(params)
    np.testing.assert_allclose(slopes["a"], [[1.2, 0.0], [1.6, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(slopes["v"], [[5.0], [0.0]], rtol=1e-6)
