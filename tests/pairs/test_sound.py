"""Programs in which a careless tracer cuts what it should keep.

The oracle is plain: kill units, ``compact`` without ``check``, run both.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

import volax
from volax import find_groups, find_pairs
from volax.pairs import _layout

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4)).astype(np.float32)
SHAPES = {"w1": (4, 8), "b1": (8,), "s": (8,), "w2": (8, 3)}
PARAMS = {k: RNG.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}


def made(p, x):
    return x @ p["w1"] + p["b1"]


def hidden(p, x):
    return jax.nn.relu(made(p, x))


def between(f):
    return lambda p, x: f(hidden(p, x)) @ p["w2"]


def added(f):
    """A network that adds an array, made from its width and an input, to its units."""
    return lambda p, x: (
        jnp.tanh(made(p, x) + f(p["w1"].shape[1], jnp.tile(x[0], 4))) @ p["w2"]
    )


def killed(group, params, members):
    """The parameters with three units' weights at zero in the given members."""
    alive = np.ones(group.sizes, np.float32)
    alive.reshape(-1)[[0, 2, -1]] = 0
    factors = jnp.asarray(alive)
    new = dict(params)
    for m in members:
        new[m.path] = np.asarray(_layout.scale(m, group.sizes, new[m.path], factors))
    return new


def check_cuts(fn, params, x, **how):
    """Compares the small model with the full one, for units unread and unfed."""
    groups = find_groups(fn, params, x, **how)
    left = []
    for group in groups:
        for members in (group.consumers, group.producers + group.biases):
            full = killed(group, params, members)
            small = volax.compact(full, groups)
            expected = fn(full, x)
            got = fn(jax.tree.map(jnp.asarray, small.params), x)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
            left.append(small)
    return groups, left


def repeated_scan(h):
    first = jnp.zeros(h.shape[1], h.dtype)
    return lax.scan(lambda c, r: (jnp.exp(r), c), first, h)[1]


PLACES = {
    "cumsum": lambda n, x: jnp.cumsum(jnp.ones(n)),
    "cumsum_data": lambda n, x: jnp.cumsum(x[:n]),
    "sort": lambda n, x: jnp.sort(x[:n]),
    "reverse": lambda n, x: x[:n][::-1],
    "strided": lambda n, x: jnp.arange(2.0 * n)[::2],
    "written": lambda n, x: lax.dynamic_update_slice(
        jnp.zeros(n, x.dtype), x[:2], (3,)
    ),
    "looked_up": lambda n, x: lax.dynamic_slice(x, (jnp.int32(x[0] > 9),), (n,)),
    "one_hot": lambda n, x: jax.nn.one_hot(2, n),
    "padded": lambda n, x: jnp.pad(x[:1], (0, n - 1)),
    "bits": lambda n, x: lax.bitcast_convert_type(
        jnp.zeros((n // 2, 2), jnp.uint16) + 1, jnp.uint32
    ).astype(float).repeat(2)[:n],
    "random": lambda n, x: jax.random.normal(jax.random.key(0), (n,)),
    "gamma": lambda n, x: jax.random.gamma(jax.random.key(0), 2.0, (n,)),
    "keys": lambda n, x: jax.vmap(jax.random.normal)(
        jax.random.split(jax.random.key(0), n)
    ),
    "generator": lambda n, x: lax.rng_uniform(0.0, 1.0, (n,)),
    "permuted": lambda n, x: jax.random.permutation(jax.random.key(0), n) * 1.0,
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES, ids=str)
def test_entries_that_differ_by_their_place_are_not_cut(case):
    _, left = check_cuts(added(PLACES[case]), PARAMS, X)
    assert all(c.sizes["w1"] == (4, 8) for c in left)


UNFED = {
    "place_of_an_extreme": (
        between(lambda h: lax.top_k(h.T, 2)[1].T.astype(jnp.float32)), True,
    ),
    "later_steps_of_a_scan": (between(repeated_scan), True),
    "scale_that_is_not_zero": (
        lambda p, x: jnp.tanh(jnp.exp(x @ p["w1"]) * p["s"]) @ p["w2"], True,
    ),
    "scale_of_zero": (lambda p, x: jnp.tanh(made(p, x) * p["s"]) @ p["w2"], False),
    "filling": (
        between(lambda h: jnp.tanh(
            jnp.take(h, jnp.array([0, 9]), axis=0, mode="fill", fill_value=1.0)
        )), True,
    ),
    "no_filling": (
        between(lambda h: jnp.tanh(jnp.take(h, jnp.array([0, 2]), axis=0))), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFED, ids=str)
def test_a_unit_that_nothing_feeds_goes_only_if_it_is_zero(case):
    fn, stays = UNFED[case]
    groups, _ = check_cuts(fn, PARAMS, X)
    assert [g.keeps_zero for g in groups] == [not stays]


def test_what_is_not_finite_at_zero_is_not_zero():
    for f in (jnp.exp, jax.scipy.special.gammaln, jax.scipy.special.digamma):
        fn = between(lambda h, f=f: h * f(1 / h if f is jnp.exp else h))
        (group,) = find_groups(fn, PARAMS, X)
        assert not group.keeps_zero


EXPONENTS = {
    "1.005": (lambda h: h**1.005, False),
    "a third in float32": (lambda h: (h**0.3333333) ** 3, False),
    "cbrt": (lambda h: jnp.cbrt(h) ** 3, True),
    "rsqrt": (lambda h: 1 / lax.rsqrt(h) ** 2, True),
    "rounded on the way": (
        lambda h: h ** (jnp.float32(1e8) + 1 - 1e8 + 0.5) ** 2, False,
    ),
    "wrapped around": (lambda h: h ** (jnp.uint8(255) + jnp.uint8(2)), True),
    "divided": (lambda h: h ** (jnp.int32(7) // 4).astype(float), True),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPONENTS, ids=str)
def test_exponents_are_exact(case):
    power, is_pair = EXPONENTS[case]
    pairs = find_pairs(between(lambda h: power(h + 0.0)), PARAMS, X)
    if is_pair and pairs:
        volax.check_groups(pairs, between(power), PARAMS, X)
    assert is_pair or not pairs


NO_PAIRS = {
    "filling": lambda h: jnp.take(
        h, jnp.array([0, 9]), axis=0, mode="fill", fill_value=1.0
    ),
    "eight_bits": lambda h: h.astype(jnp.float8_e4m3fn).astype(jnp.float32),
    "eight_bits_too": lambda h: lax.reduce_precision(h, 4, 3),
    "lost_in_rounding": lambda h: h + (jnp.float32(1e8) + 1 - 1e8 - 1),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_PAIRS, ids=str)
def test_no_pair(case):
    assert not find_pairs(between(NO_PAIRS[case]), PARAMS, X)


def test_scaling_passes_what_changes_no_value():
    for f in (
        lambda h: jnp.take(h, jnp.array([0, 9]), axis=0, mode="fill", fill_value=0.0),
        lambda h: jnp.take(h, jnp.array([0, 2]), axis=0),
        lambda h: jax.device_put((h, h))[1],
        lambda h: lax.reduce_precision(h, 5, 10),
    ):
        pairs = find_pairs(between(f), PARAMS, X)
        volax.check_groups(pairs, between(f), PARAMS, X, tolerance=2e-3)
        assert [p.name for p in pairs] == ["w1 -> w2"]


def test_parameters_that_are_not_trained_cannot_be_cut():
    params = PARAMS | {"on": np.array([1, 0] * 4)}
    (pair,) = find_groups(lambda p, x: hidden(p, x) * p["on"] @ p["w2"], params, X)
    assert pair.note == "carries on"


def test_units_beside_others_along_one_axis_are_not_numbered_with_them():
    def fn(p, x):
        h = hidden(p, x)
        return h @ p["w2"] + h[:, :3] @ p["w2"][:3]

    def split(p, x):
        h = hidden(p, x)
        return h @ p["w2"] + h[:, :3] @ p["w3"]

    params = PARAMS | {"w3": PARAMS["w2"][:3]}
    groups = find_groups(split, params, X)
    assert [g.sizes for g in groups] == [(3,), (5,)]
    volax.check_groups(groups, split, params, X)
    assert sorted(g.sizes for g in find_groups(fn, PARAMS, X)) == [(3,), (5,)]


def written(r, h):
    r[...] = h


def in_a_jit(r, h):
    jax.jit(written)(r, h)


def in_a_scan(r, h):
    lax.scan(lambda c, row: (c, written(r, h)), 0, h)


def in_a_remat(r, h):
    jax.checkpoint(lambda h: written(r, h))(h)


def in_a_custom_rule(r, h):
    rule = jax.custom_jvp(lambda h: written(r, h))
    rule.defjvp(lambda h, d: (None, None))
    rule(h)


def in_a_branch(r, h):
    lax.cond(h[0, 0] > 0, lambda: written(r, h), lambda: None)


def at_an_index(r, h):
    r[2] = h[2]


WRITES = [written, in_a_jit, in_a_scan, in_a_remat, in_a_custom_rule, in_a_branch,
          at_an_index]  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_what_a_mutable_array_holds_is_refused(write):
    def fn(p, x):
        h = hidden(p, x)
        ref = jax.new_ref(jnp.zeros((5, 8), h.dtype))
        write(ref, h)
        return h @ p["w2"] + ref[...].sum(-1, keepdims=True)

    groups = find_groups(fn, PARAMS, X)
    assert not len(groups)
    assert any("side effects" in r.reason for r in groups.refused if r.path == "w1")


def test_a_mutable_array_of_other_units_is_no_obstacle():
    def fn(p, x):
        h = hidden(p, x)[:, :3]
        ref = jax.new_ref(jnp.zeros((5, 3), h.dtype))
        ref[...] = h
        return hidden(p, x) @ p["w2"] + ref[...]

    (pair,) = find_groups(fn, PARAMS, X)
    assert pair.size == 5
    volax.check_groups(pair, fn, PARAMS, X)


def test_a_callback_refuses_and_a_debug_print_does_not():
    def printed(p, x):
        h = hidden(p, x)
        jax.debug.print("{}", h)
        jax.debug.callback(lambda h: None, h.sum(), ordered=True)
        lax.cond(x[0, 0] > 0, lambda: jax.debug.print("{}", h), lambda: None)
        h = lax.scan(lambda c, r: (c, jax.debug.print("{}", r) or r), 0, h)[1]
        return h @ p["w2"]

    assert [g.name for g in find_pairs(printed, PARAMS, X)] == ["w1 -> w2"]
    for call in (
        lambda h: io_callback(lambda h: None, None, h) or h,
        lambda h: jax.pure_callback(lambda h: h, h, h),
    ):
        groups = find_groups(between(call), PARAMS, X)
        assert not len(groups)
        assert any("callback" in r.reason for r in groups.refused if r.path == "w1")
