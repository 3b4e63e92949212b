"""Numbers that depend on a width: found, named with their line, and nothing else.

The oracle is plain: units are killed, ``compact`` cuts what it can without ``check``,
and both models run. Either the function is the same, or the group kept its units.
"""

import itertools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import volax
from tests.pairs.programs import units_of
from volax.pairs._trace import widths

KEY = jax.random.key(0)
N = 16
DEAD = jnp.array([1, 2, 5, 11])


def normal(seed, *shape):
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jnp.asarray(drawn / np.sqrt(shape[0], dtype=np.float32))


X = normal(9, 5, 6)


def dying(n=N):
    return {"w1": normal(0, 6, n), "w2": normal(1, n, 3).at[DEAD].set(0)}


def forward(params, x):
    return jax.nn.relu(x @ params["w1"]) @ params["w2"]


@jax.custom_jvp
def divided(y, n):
    return y / n


divided.defjvp(lambda args, dots: (divided(*args), dots[0] / args[1]))


def through_a_loop(y, n):
    return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 0.9), (0, y))


# Every number that a width can go into: outputs y of a layer of n units.
WIDTHS = {
    "n": lambda y, n: y / n,
    "1 / n": lambda y, n: y * (1 / n),
    "8 / n": lambda y, n: y * (8 / n),
    "16 / n": lambda y, n: y * (16 / n),
    "root": lambda y, n: y / jnp.sqrt(n),
    "he": lambda y, n: y * (2 / n) ** 0.5,
    "power": lambda y, n: y * n**-0.25,
    "unbiased": lambda y, n: y * (1 / (n - 1)),
    "log": lambda y, n: y * jnp.log(n),
    "linspace": lambda y, n: (y[..., None] * jnp.linspace(1, n, 4)).sum(-1),
    "threshold": lambda y, n: y * (2 if n > 14 else 1),
    "low threshold": lambda y, n: y * (2 if n > 5 else 1),
    "parity": lambda y, n: y * (n % 2 + 1),
    "half": lambda y, n: y * (n // 2),
    "other code": lambda y, n: y if n > 14 else jnp.tanh(y),
    "narrow": lambda y, n: y.astype(jnp.bfloat16) * jnp.bfloat16(n**-0.5),
    "captured": lambda y, n: y * np.full(3, 1 / n, np.float32),
    "table": lambda y, n: y * jnp.arange(40.0)[n],
    "ones": lambda y, n: y * jnp.ones(n).sum(),
    "indices": lambda y, n: y * jnp.arange(n).sum(),
    "exponent": lambda y, n: y ** (n // 4),
    "branch": lambda y, n: lax.cond(y[0, 0] > 0, lambda y: y / n, lambda y: y, y),
    "call": lambda y, n: jax.jit(lambda y, n: y / n)(y, n),
    "inner": lambda y, n: jax.jit(lambda y: y / n)(y),
    "remat": lambda y, n: jax.checkpoint(lambda y: y / n)(y),
    "custom": lambda y, n: divided(y, jnp.float32(n)),
    "scan": lambda y, n: lax.scan(lambda c, _: (c / n, None), y, None, 2)[0],
    "steps": lambda y, n: lax.fori_loop(0, n, lambda _, c: c * 0.9, y),
    "while": lambda y, n: through_a_loop(y, n)[1],
    "vmap": lambda y, n: jax.vmap(lambda y: y / n)(y),
}  # fmt: skip


@pytest.mark.parametrize("form", WIDTHS)
def test_a_number_that_follows_a_width_keeps_the_group(form):
    def fn(params, x):
        return WIDTHS[form](forward(params, x), params["w1"].shape[1])

    params = dying()
    groups = volax.find_groups(fn, params, X)
    small = volax.compact(params, groups)
    assert small.sizes == {"w1": (6, N), "w2": (N, 3)}
    assert small.kept[0].units == tuple(DEAD.tolist())
    reason = small.kept[0].reason
    assert "test_widths.py:" in reason or form in ("table",)
    assert reason.endswith("check=(fn, small_fn, inputs) would prove it")


# What has the look of a width and is none.
OTHERS = {
    "nothing": lambda y: y,
    "16": lambda y: y / 16.0,
    "root of 16": lambda y: y / jnp.sqrt(16.0),
    "captured": lambda y: y * np.full(3, 1 / 16, np.float32),
    "branch": lambda y: lax.cond(y[0, 0] > 0, lambda y: y / 16, lambda y: y, y),
    "mean": lambda y: jnp.concatenate([y, y, y, y[:1]]).mean(0),
    "variance": lambda y: jnp.var(jnp.concatenate([y, y, y, y[:1]]), 0),
    "layer norm": lambda y: jax.nn.standardize(jnp.tile(y, 5) + 1.0),
    "largest": lambda y: jnp.where(y > jnp.finfo(y.dtype).min, y, 16.0),
    "dead code": lambda y: (y / 16, y)[1],
}  # fmt: skip


@pytest.mark.parametrize("form", OTHERS)
def test_other_numbers_let_a_group_go(form):
    def fn(params, x):
        return OTHERS[form](forward(params, x))

    params = dying()
    small = volax.compact(params, volax.find_groups(fn, params, X))
    assert small.sizes["w1"] == (6, N - 4)
    np.testing.assert_allclose(fn(small.params, X), fn(params, X), rtol=1e-5, atol=1e-6)


def test_dead_code_may_hold_a_width():
    def fn(params, x):
        _ = x / params["w1"].shape[1]
        return forward(params, x)

    params = dying()
    assert not volax.find_groups(fn, params, X)[0].constants


def gelu_of_pixels(params, x):
    return jax.nn.gelu(x / 255 @ params["w1"]) @ params["w2"]


def test_a_gelu_mlp_on_pixels_is_cut():
    params = dying(32)
    small = volax.compact(params, volax.find_groups(gelu_of_pixels, params, X))
    assert small.sizes["w1"] == (6, 28)
    np.testing.assert_allclose(
        gelu_of_pixels(small.params, X), gelu_of_pixels(params, X), rtol=1e-5, atol=1e-6
    )


def block(p, x):
    """Layer norm, attention over two heads, and an MLP with GELU."""
    h = jax.nn.standardize(x) * p["g1"]
    q, k, v = (jnp.einsum("td,dhk->htk", h, p[name]) for name in "qkv")
    a = jax.nn.softmax(q @ k.swapaxes(1, 2) / jnp.sqrt(q.shape[-1]))
    x = x + jnp.einsum("htk,hkd->td", a @ v, p["o"])
    h = jax.nn.standardize(x) * p["g2"]
    return x + jax.nn.gelu(h @ p["up"] + p["b"]) @ p["down"]


def test_a_transformer_block_is_cut():
    shapes = {
        "g1": (8,), "q": (8, 2, 4), "k": (8, 2, 4), "v": (8, 2, 4), "o": (2, 4, 8),
        "g2": (8,), "up": (8, 16), "b": (16,), "down": (16, 8),
    }  # fmt: skip
    params = {k: normal(i, *shape) for i, (k, shape) in enumerate(shapes.items())}
    params["o"] = params["o"].at[:, 1].set(0)
    params["down"] = params["down"].at[DEAD].set(0)
    x = normal(30, 7, 8)
    groups = volax.find_groups(block, params, x)
    small = volax.compact(params, groups)
    assert small.sizes["v"] == (8, 2, 3)
    assert small.sizes["up"] == (8, 12)
    np.testing.assert_allclose(block(small.params, x), block(params, x), atol=1e-5)


# Two widths in one number.
JOINT = {
    "ratio": lambda a, b: a / b,
    "difference": lambda a, b: 1 / (a - b + 1),
    "fan": lambda a, b: (2 / (a + b)) ** 0.5,
    "largest": lambda a, b: max(a, b),
}


@pytest.mark.parametrize("form", JOINT)
def test_a_number_of_two_widths_keeps_both(form):
    def fn(params, x):
        w1, w2, w3 = params
        scale = JOINT[form](w1.shape[1], w2.shape[1])
        return jax.nn.relu(jax.nn.relu(x @ w1) @ w2) @ w3 * scale

    params = [normal(0, 6, N), normal(1, N, N), normal(2, N, 3)]
    groups = volax.find_groups(fn, params, X)
    assert len(groups) == 2
    # The largest of two equal widths changes only where both are cut.
    named = [bool(g.constants) for g in groups]
    assert any(named) if form == "largest" else all(named)
    params = [params[0], params[1].at[DEAD].set(0), params[2].at[DEAD].set(0)]
    small = volax.compact(params, groups)
    np.testing.assert_allclose(fn(small.params, X), fn(params, X), rtol=1e-5, atol=1e-6)


# Sizes that the program takes from the arrays, and that follow a cut as they should.
FOLLOWING = {
    "ones": lambda h: h * jnp.ones(h.shape[-1]),
    "zeros": lambda h: jnp.where(h > 0.1, h, jnp.zeros(h.shape)),
    "reshape": lambda h: h.reshape(-1, h.shape[-1]).reshape(h.shape),
    "slice": lambda h: h[:, : h.shape[1]],
    "scan": lambda h: lax.scan(lambda c, x: (c + x, x), jnp.zeros(h.shape[1]), h)[1],
    "concatenation": lambda h: jnp.concatenate([h, h], 0)[: len(h)],
    "pad": lambda h: jnp.pad(h, ((0, 1), (0, 0)))[:-1],
    "gather": lambda h: h[jnp.array([0, 1, 2, 3, 4])],
    "update": lambda h: lax.dynamic_update_slice(h, h[:2] * 2, (1, 0)),
    "dynamic": lambda h: lax.dynamic_slice_in_dim(h, 0, 5),
}


@pytest.mark.parametrize("form", FOLLOWING)
def test_shapes_may_follow_the_units(form):
    def fn(params, x):
        return FOLLOWING[form](jax.nn.relu(x @ params["w1"])) @ params["w2"]

    params = dying()
    groups = volax.find_groups(fn, params, X)
    assert [g.constants for g in groups] == [()]
    small = volax.compact(params, groups)
    assert small.sizes["w1"] == (6, N - 4)
    np.testing.assert_allclose(fn(small.params, X), fn(params, X), rtol=1e-5, atol=1e-6)


# Places and sizes that the program holds. Where units are told apart by their place,
# those behind the last place may go.
FIXED = {
    "split": lambda h: jnp.concatenate(jnp.split(h, [8], -1), -1),
    "halves": lambda h: jnp.concatenate([h[:, :8], h[:, 8:]], -1),
    "reshape": lambda h: h.reshape(5, 2, 8).reshape(5, 16),
    "broadcast": lambda h: h + jnp.zeros(16),
    "assertion": lambda h: h if h.shape[1] % 8 == 0 else h[:, :, None],
}


@pytest.mark.parametrize("form", FIXED)
def test_a_size_that_the_program_holds_keeps_the_group(form):
    def fn(params, x):
        return FIXED[form](jax.nn.relu(x @ params["w1"])) @ params["w2"]

    params = dying()
    groups = volax.find_groups(fn, params, X)
    small = volax.compact(params, groups)
    np.testing.assert_allclose(fn(small.params, X), fn(params, X), rtol=1e-5, atol=1e-6)
    assert small.sizes["w1"] == (6, N - (form in ("split", "halves")))
    said = [g.constants[0] for g in groups if g.constants]
    assert len(said) == 1
    assert "test_widths.py:" in said[0]


def test_parts_of_a_concatenation_follow_the_units():
    def fn(params, x):
        a, b = (jax.nn.relu(x @ params[name]) for name in "ab")
        both = jnp.concatenate([a, b], -1)
        a, b = jnp.split(both, [a.shape[1]], -1)
        return both @ params["out"] + b @ params["second"]

    params = {
        "a": normal(0, 6, 4), "b": normal(1, 6, 8).at[:, 3].set(0),
        "out": normal(2, 12, 3).at[1].set(0), "second": normal(3, 8, 3),
    }  # fmt: skip
    groups = volax.find_groups(fn, params, X)
    small = volax.compact(params, groups)
    assert small.sizes["a"] == (6, 3)
    assert small.sizes["b"] == (6, 7)
    np.testing.assert_allclose(fn(small.params, X), fn(params, X), rtol=1e-5, atol=1e-6)


# Places within a concatenation that depend on its size, not on what was put together.
BETWEEN = {
    "jnp.split": lambda h: jnp.split(h, 2, -1)[::-1],
    "first half": lambda h: [h[:, : h.shape[-1] // 2]],
    "last half": lambda h: [h[:, h.shape[-1] // 2 :]],
    "rounded up": lambda h: [h[:, : -(-h.shape[-1] // 2)]],
    "reshape": lambda h: [h.reshape(len(h), 2, -1).max(1)],
    "reshape of pairs": lambda h: [h.reshape(len(h), -1, 2).max(2)],
    "thirds": lambda h: jnp.split(h, [h.shape[-1] // 3], -1)[::-1],
    "from the end": lambda h: [h[:, h.shape[-1] // 2 - h.shape[-1] :]],
    "every other": lambda h: [h[:, ::2], h[:, 1::2]],
    "every third": lambda h: [h[:, 1::3]],
    "roll": lambda h: [h + jnp.roll(h, h.shape[-1] // 2, -1)],
    "flip": lambda h: [h * h[:, ::-1]],
    "dynamic": lambda h: [lax.dynamic_slice_in_dim(h, h.shape[-1] // 2, 2, 1)],
    "update": lambda h: [h.at[:, : h.shape[-1] // 2].set(0)],
    "pad": lambda h: [jnp.pad(h[:, h.shape[-1] // 2 :], ((0, 0), (1, 1)))],
    "where": lambda h: [jnp.where(np.arange(h.shape[-1]) < h.shape[-1] // 2, h, -h)],
}  # fmt: skip


@pytest.mark.parametrize(
    "sizes", [(8, 6), (7, 6), (8, 8), (5, 4, 8), (8, 4, 4), (4,) * 6], ids=str
)
@pytest.mark.parametrize("form", BETWEEN)
def test_a_place_between_concatenated_units_follows_or_stays(form, sizes):
    """Whatever is cut, the smaller model is the same function, or fails to run."""

    def fn(params, x):
        h = [jax.nn.relu(x @ w) for w in params["in"]]
        h = jnp.concatenate(BETWEEN[form](jnp.concatenate(h, -1)), -1)
        return h @ params["out"]

    ups = [normal(k, 6, n) for k, n in enumerate(sizes)]
    if sum(sizes) % 2 and form in ("jnp.split", "reshape", "reshape of pairs"):
        return  # only what can be halved runs
    width = jax.eval_shape(
        lambda p: jnp.concatenate(BETWEEN[form](jnp.concatenate(p, -1)), -1), ups
    ).shape[-1]
    params = {"in": ups, "out": normal(9, width, 3)}
    groups = volax.find_groups(fn, params, X)
    rng = np.random.default_rng(0)
    sets = [(k,) for k in range(len(groups))] + [tuple(range(len(groups)))] * 2
    for some in sets:
        killed = {"in": ups, "out": np.array(params["out"])}
        for k in some:
            dead = rng.random(groups[k].size) < 0.6
            for member in groups[k].consumers:
                lost = units_of(member, groups[k].sizes, killed["out"].shape)
                killed["out"][np.append(dead, False)[lost]] = 0
        small = volax.compact(killed, groups)
        try:
            after = fn(small.params, X)
        except (TypeError, ValueError):
            continue  # loud, and no wrong number
        np.testing.assert_allclose(after, fn(killed, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("apart", [1, 2, 4, 5])
def test_two_of_many_widths_are_never_traced_at_one_distance(apart):
    """However many groups lie between the two whose widths one number compares."""

    def fn(params, x):
        for up, down in params:
            x = x + jax.nn.relu(x @ up) @ down
        first, other = params[0][0].shape[1], params[apart][0].shape[1]
        return x * (first - other + 2) * (first // other)

    shapes = [((6, 8), (8, 6))] * 6
    params = [[jax.ShapeDtypeStruct(s, jnp.float32) for s in pair] for pair in shapes]
    groups = volax.find_groups(fn, params, X)
    named = {g.producers[0].path for g in groups if g.constants}
    assert {"0/0", f"{apart}/0"} <= named


def trial_sizes(counts, steps=None):
    return widths._sizes(counts, steps or [1] * len(counts))


@pytest.mark.parametrize(
    "counts", [[2] * 9, [3] * 9, [4, 8, 2, 8], [8] * 40, [64, 256, 3072, 64] * 10]
)
def test_no_line_runs_through_the_sizes_of_two_groups(counts):
    found = trial_sizes(counts)
    assert found == trial_sizes(counts)
    assert all((n - s[0]) % 2 == 1 and 1 not in s for n, s in zip(counts, found))
    less = [(n - s[0], n - s[1]) for n, s in zip(counts, found)]
    for (n, a), (m, b) in itertools.combinations(zip(counts, less), 2):
        assert a[0] * b[1] != a[1] * b[0]
        assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 1
        assert any((n - x) * m != (m - y) * n for x, y in zip(a, b))


def test_sizes_on_a_mesh_are_multiples():
    found = trial_sizes([8, 8, 4], [2, 2, 4])
    assert all(size % step == 0 for s, step in zip(found, [2, 2, 4]) for size in s)


def deep(depth, scaled=()):
    def fn(params, x):
        for k in range(depth):
            up, down = params[f"up{k}"], params[f"down{k}"]
            x = x + jax.nn.relu(jax.nn.standardize(x) @ up) @ down
            if k in scaled:
                x = x / up.shape[1]
        return x

    shapes = {f"up{k}": (6, 8) for k in range(depth)}
    shapes |= {f"down{k}": (8, 6) for k in range(depth)}
    return fn, {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}


@pytest.mark.parametrize("scaled", [(), (3,), (2, 5, 6)], ids=str)
def test_only_the_layers_that_hold_a_width_are_named(scaled):
    fn, params = deep(8, scaled)
    groups = volax.find_groups(fn, params, X)
    named = {g.producers[0].path for g in groups if g.constants}
    assert named == {f"up{k}" for k in scaled}


def test_layers_that_all_hold_a_width_are_named_by_a_few_traces(monkeypatch):
    traces = []
    differing = widths._Trials._differing

    def counted(*args):
        traces.append(1)
        return differing(*args)

    monkeypatch.setattr(widths._Trials, "_differing", counted)
    fn, params = deep(12, range(12))
    assert all(g.constants for g in volax.find_groups(fn, params, X))
    assert len(traces) <= 6


def test_a_program_that_is_never_the_same_is_named():
    calls = iter(range(100))

    def fn(params, x):
        return forward(params, x) * next(calls)

    (group,) = volax.find_groups(fn, dying(), X)
    assert group.constants


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_few_units_are_enough(n):
    for scale in (1, lambda n: n):

        def fn(params, x, scale=scale):
            by = scale(len(params["w2"])) if callable(scale) else scale
            return jax.nn.relu(x @ params["w1"]) @ params["w2"] / by

        params = {"w1": normal(0, 6, n), "w2": normal(1, n, 3)}
        (group,) = volax.find_groups(fn, params, X)
        assert bool(group.constants) == callable(scale)


class Nnx(nnx.Module):
    """A number from an attribute, which follows the arrays, or from a shape."""

    def __init__(self, how):
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(6, N, rngs=rngs)
        self.norm = nnx.BatchNorm(N, use_running_average=True, rngs=rngs)
        self.b = nnx.Linear(N, 3, rngs=rngs)
        self.how = how

    def __call__(self, x):
        h = self.a(x)
        y = self.b(nnx.gelu(self.norm(h)))
        by = {"attribute": self.a.out_features, "shape": h.shape[-1], "none": 2.0}
        return y / by[self.how]


@pytest.mark.parametrize("how", ["attribute", "shape", "none"])
def test_nnx(how):
    model = Nnx(how)
    model.b.kernel[...] = model.b.kernel[...].at[DEAD].set(0)
    small = volax.compact(model, volax.find_groups(model, X))
    assert small.sizes["a/kernel"] == (6, N - 4 * (how == "none"))
    np.testing.assert_allclose(small.params(X), model(X), rtol=1e-5, atol=1e-6)
    assert model.a.out_features == N


def outputs(model: nn.Module, variables: Any, x: Any = X) -> Any:
    """What a Linen module computes, where no collection is mutable."""
    return model.apply(variables, x)


class Linen(nn.Module):
    width: int
    how: str

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.width)(x[..., None, :, None].sum(-1))
        h = nn.Conv(self.width, (1,), feature_group_count=self.width)(h)[..., 0, :]
        y = nn.Dense(3)(nn.gelu(h))
        by = {
            "field": self.width, "rank": 24 / self.width, "log": np.log(self.width),
            "shape": 8 / h.shape[-1], "none": 255,
        }  # fmt: skip
        return y / by[self.how]


@pytest.mark.parametrize("how", ["field", "rank", "log", "shape", "none"])
def test_linen(how):
    model = Linen(N, how)
    variables: Any = model.init(KEY, X)
    kernel = variables["params"]["Dense_1"]["kernel"].at[DEAD].set(0)
    variables["params"]["Dense_1"]["kernel"] = kernel
    small = volax.compact(variables, volax.find_groups(model, variables, X))
    width = small.sizes["Dense_0/kernel"][-1]
    assert width == N - 4 * (how == "none")
    after = outputs(Linen(width, how), small.params)
    np.testing.assert_allclose(after, outputs(model, variables), atol=1e-6)


def test_a_compiled_function_is_traced_anew():
    model = Linen(N, "rank")
    variables = model.init(KEY, X)
    fn = jax.jit(model.apply)
    for _ in range(2):
        assert volax.find_groups(fn, variables, X)[0].constants
    with pytest.raises(Exception, match="shape"):
        fn(jax.tree.map(lambda x: x[..., :-1], variables), X)


class Reshaping(nn.Module):
    """A size of its own in a reshape, which a field holds."""

    widths: tuple[int, ...] = (N, 3)

    def setup(self):
        self.layers = [nn.Dense(width) for width in self.widths]

    def __call__(self, x):
        h = nn.relu(self.layers[0](x)).reshape(-1, self.widths[0])
        return self.layers[1](h)


def test_the_fields_of_a_linen_module_may_follow():
    variables: Any = Reshaping().init(KEY, X)
    kernel = variables["params"]["layers_1"]["kernel"].at[DEAD].set(0)
    variables["params"]["layers_1"]["kernel"] = kernel
    groups = volax.find_groups(Reshaping(), variables, X)
    small = volax.compact(variables, groups)
    after = outputs(Reshaping((12, 3)), small.params)
    np.testing.assert_allclose(after, outputs(Reshaping(), variables), atol=1e-6)


class FixedLinen(nn.Module):
    """A size of its own in a reshape: no smaller model can be traced."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(12)(x)).reshape(-1, 12)
        return nn.Dense(3)(h)


def test_a_linen_module_that_holds_its_size_is_judged_by_its_numbers():
    model = FixedLinen()
    variables = jax.eval_shape(model.init, KEY, X)
    assert not volax.find_groups(model, variables, X)[0].constants
    (group,) = volax.find_groups(lambda v, x: outputs(model, v, x) / 12, variables, X)
    assert "no smaller model was traced, and 12 in div" in group.constants[0]


def test_linen_and_haiku_check_shapes_again_afterwards():
    model = Linen(N, "none")
    bound = model.bind(model.init(KEY, X))
    volax.find_groups(lambda v, x: bound.apply(v, x), bound.variables, X)
    assert "param" not in vars(bound)
    variables = jax.tree.map(lambda x: x[..., :-1], bound.variables)
    with pytest.raises(Exception, match="shape"):
        model.apply(variables, X)


class Equinox(eqx.Module):
    l1: eqx.nn.Linear
    l2: eqx.nn.Linear
    how: str
    size: int = N

    def __call__(self, x):
        h = jax.nn.gelu(self.l1(x))
        by = {"shape": len(h), "layer": self.l1.out_features, "field": self.size}
        return self.l2(h) / by[self.how]


@pytest.mark.parametrize("how", ["shape", "layer", "field"])
def test_equinox(how):
    """Fields of its layers follow the arrays; one of the user's own stays."""
    layers = eqx.nn.Linear(6, N, key=KEY), eqx.nn.Linear(N, 3, key=KEY)
    model = Equinox(*layers, how)
    dead = model.l2.weight.at[:, DEAD].set(0)
    model = eqx.tree_at(lambda m: m.l2.weight, model, dead)
    small = volax.compact(model, volax.find_groups(model, X[0]))
    assert small.sizes["l1/weight"] == (N - 4 * (how == "field"), 6)
    np.testing.assert_allclose(small.params(X[0]), model(X[0]), atol=1e-6)


@pytest.mark.parametrize("by_shape", [True, False])
def test_haiku(by_shape):
    def net(channels, width):
        def fn(x):
            h = hk.Conv1D(channels, 1)(x[:, None])
            h = hk.DepthwiseConv1D(1, 1)(jax.nn.relu(h))
            h = jax.nn.gelu(hk.Linear(width)(h[:, 0]))
            return hk.Linear(3)(h) / (h.shape[-1] if by_shape else 255)

        return hk.without_apply_rng(hk.transform(fn))

    params = net(12, N).init(KEY, X)
    for name in ("linear", "linear_1"):
        params[name]["w"] = params[name]["w"].at[DEAD].set(0)
    small = volax.compact(params, volax.find_groups(net(12, N).apply, params, X))
    assert small.sizes["conv1_d/w"] == (1, 6, 8)
    width = N if by_shape else N - 4
    assert small.sizes["linear/w"] == (8, width)
    if not by_shape:
        ran = net(8, width).apply(small.params, X)
        np.testing.assert_allclose(ran, net(12, N).apply(params, X), atol=1e-6)


def test_the_groups_of_a_file_keep_their_constants():
    def fn(params, x):
        return forward(params, x) / params["w1"].shape[1]

    groups = volax.find_groups(fn, dying(), X)
    again = volax.pairs.Groups.from_json(groups.to_json())
    assert again[0].constants == groups[0].constants != ()


def test_groups_that_change_nothing_are_traced_together():
    sizes = [3, *range(20, 36), 2]
    params = [jax.ShapeDtypeStruct(s, jnp.float32) for s in itertools.pairwise(sizes)]
    calls = []

    def fn(params, x):
        calls.append(x)
        for k, w in enumerate(params):
            x = jax.nn.relu(x @ w) / (w.shape[1] if k == 5 else 1.0)
        return x

    groups = volax.find_groups(fn, params, jnp.ones((2, 3)))
    assert [k for k, group in enumerate(groups) if group.constants] == [5]
    assert len(calls) < 30  # each of the 16 by itself takes two
