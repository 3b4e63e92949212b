"""Programs in which a careless tracer would report a pair that is none."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

import volax
from volax import check_groups, find_groups, find_pairs
from volax.pairs import Axis, Groups


def shaped(**shapes):
    return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}


W = shaped(w1=(4, 8), b1=(8,), w2=(8, 3))
X = jax.ShapeDtypeStruct((5, 4), jnp.float32)


def hidden(p, x):
    return jax.nn.relu(x @ p["w1"] + p["b1"])


def between(f):
    """A two-layer net with an operation between its layers."""
    return lambda p, x: f(hidden(p, x)) @ p["w2"]


def again(f):
    """A residual layer whose square kernel is a function of ``u``."""

    def fn(p, x):
        h = hidden(p, x)
        return (h + jax.nn.relu(h @ f(p["u"]))) @ p["w2"]

    return fn


def quadratic(p, x):
    h = hidden(p, x)
    return jnp.einsum("bi,ij,bj->b", h, p["u"], h)


def attended(p, x):
    q, k = x @ p["w1"], x @ p["k"]
    return jax.nn.softmax(q @ k.T) @ x


def read_twice(p, x):
    h = hidden(p, x)
    return h @ p["w2"], h.sum()


def hidden_output(p, x):
    h = hidden(p, x)
    return h @ p["w2"], h


def loss_with_penalty(p, x):
    return (hidden(p, x) @ p["w2"]).sum() + jnp.sum(p["w1"] ** 2)


def spectral(p, x):
    u = jnp.ones((8,))
    sigma = jnp.sqrt(jnp.sum((p["w1"] @ u) ** 2))
    return jax.nn.relu(x @ (p["w1"] / sigma)) @ p["w2"]


def spectral_state(p, u, x):
    sigma = jnp.linalg.norm(p["w1"] @ u)
    return jax.nn.relu(x @ (p["w1"] / sigma)) @ p["w2"]


def gram(p, x):
    h = hidden(p, x)
    return jnp.einsum("bi,bj->ij", h, h).reshape(64) @ p["w"]


def outer(p, x):
    h = hidden(p, x)
    return (h[:, :, None] * h[:, None, :]).reshape(5, 64) @ p["w"]


def group_norm(p, x):
    h = hidden(p, x).reshape(5, 2, 4)
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
    return h.reshape(5, 8) @ p["w2"]


def layer_norm(h):
    mean, var = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
    return (h - mean) / jnp.sqrt(var + 1e-5)


def exp_consumer(p, x):
    return hidden(p, x) @ jnp.exp(p["w2"])


def normed_consumer(p, x):
    return hidden(p, x) @ (p["w2"] / jnp.linalg.norm(p["w2"], axis=0))


def table_index(p, x):
    h = hidden(p, x)
    return p["t"][h.astype(jnp.int32)].sum(1)


def ragged(p, x):
    h, g = x @ p["w1"], x @ p["g"]
    return jax.nn.relu(jnp.concatenate([h, g], -1)).reshape(5, 3, 4) @ p["w"]


def lora_merged(p, x):
    return jax.nn.relu(x @ (p["a"] @ p["b"])) @ p["w2"]


MASK = jnp.arange(64.0).reshape(8, 8) % 3

REFUSED = {
    "layer_norm": (between(layer_norm), W, "w1", "reduce_sum runs over the units"),
    "rms_norm": (
        between(lambda h: h * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)),
        W, "w1", "reduce_sum runs over the units",
    ),
    "group_norm": (group_norm, W, "w1", "reduce_sum runs over the units"),
    "softmax": (between(jax.nn.softmax), W, "w1", "reduce_max runs over"),
    "sum": (read_twice, W, "w1", "reduce_sum runs over"),
    "hidden_output": (hidden_output, W, "w1", "reach the output 1"),
    "penalty": (loss_with_penalty, W, "w1", "reduce_sum runs over"),
    "two steps at once": (
        again(lambda u: u @ u), W | shaped(u=(8, 8)), "w1", "between two parameters",
    ),
    "triangular": (
        again(jnp.tril), W | shaped(u=(8, 8)), "w1", "two axes of one array",
    ),
    "masked by a captured array": (
        again(lambda u: u * MASK), W | shaped(u=(8, 8)), "w1", "two axes of one array",
    ),
    "sum of outer": (
        again(lambda u: u[:, None] + u), W | shaped(u=(8,)), "w1", "not used as they",
    ),
    "quadratic": (
        quadratic, W | shaped(u=(8, 8)), "w1", "between two computed values",
    ),
    "query_key": (attended, shaped(w1=(4, 8), k=(4, 8)), "w1", "two computed values"),
    "spectral": (spectral, W, "w1", "contracted with a constant"),
    "gram": (gram, W | shaped(w=(64, 3)), "w1", "two axes of one array|both sides"),
    "outer": (outer, W | shaped(w=(64, 3)), "w1", "two axes of one array"),
    "cumsum": (between(lambda h: jnp.cumsum(h, -1)), W, "w1", "cumsum runs over"),
    "sort": (between(lambda h: jnp.sort(h, -1)), W, "w1", "sort runs over"),
    "argmax": (
        between(lambda h: h * jax.nn.one_hot(h.argmax(-1), 8)),
        W, "w1", "argmax runs over",
    ),
    "top_k": (
        between(lambda h: jnp.pad(lax.top_k(h, 5)[0], ((0, 0), (0, 3)))),
        W, "w1", "top_k runs over",
    ),
    "flip": (between(lambda h: h[:, ::-1] + h), W, "w1", "reverse"),
    "strided": (
        between(lambda h: jnp.tile(h[:, ::2], (1, 2))), W, "w1", "cannot be followed",
    ),
    "transposed_mix": (
        between(lambda h: h.reshape(5, 2, 4).swapaxes(1, 2).reshape(5, 8) + h),
        W, "w1", "two axes|brought together|one axis|line up",
    ),
    "reshape_mix": (
        between(lambda h: h.T.reshape(5, 8)), W, "w1", "mixes|together|two axes",
    ),
    "int_cast": (
        between(lambda h: h.astype(jnp.int32).astype(jnp.float32)),
        W, "w1", "cast to integers",
    ),
    "table_index": (
        table_index, W | shaped(t=(9, 3)), "w1", "cast to integers",
    ),
    "cond": (
        between(lambda h: lax.cond(h[0, 0] > 0, lambda a: a, lambda a: 2 * a, h)),
        W, "w1", "used in cond",
    ),
    "while": (
        between(lambda h: lax.while_loop(lambda a: a[0, 0] < 9, lambda a: a + 1, h)),
        W, "w1", "used in while",
    ),
    "unknown": (between(lambda h: jnp.fft.fft(h).real), W, "w1", "no rule for fft"),
    "callback": (
        between(lambda h: jax.pure_callback(lambda a: a, h, h)),
        W, "w1", "no rule for pure_callback",
    ),
    "scatter": (
        between(lambda h: h.at[:, 0].set(1.0)), W, "w1", "written to by index",
    ),
    "scatter_add_to_units": (
        between(lambda h: jnp.zeros_like(h).at[:, jnp.arange(8) // 2].add(h)),
        W, "w1", "written to by index",
    ),
    "scatter_part_of_units": (
        between(lambda h: h.at[jnp.array([1, 3]), :4].add(h[:2, 4:])),
        W, "w1", "written to by index|cut",
    ),
    "scatter_apply": (
        between(lambda h: h.at[jnp.array([1, 3])].apply(jnp.cos)),
        W, "w1", "a function of the user's",
    ),
    "scatter_mul": (
        between(lambda h: h.at[jnp.array([1, 3])].multiply(h[:2])),
        W, "w1", "no rule for scatter-mul",
    ),
    "gather_units": (
        between(lambda h: h[:, jnp.array([1, 0, 2, 3, 4, 5, 6, 7])]),
        W, "w1", "looked up by index",
    ),
    "exp_consumer": (exp_consumer, W, "w1", "not used as they are"),
    "normed_consumer": (normed_consumer, W, "w1", "reduce_sum runs over"),
    "dynamic_filter": (
        lambda p, x: hidden(p, x) @ (p["w2"] * x.mean()) @ jnp.ones((3, 2)),
        W | shaped(), "w2", "contracted with data|constant|computed",
    ),
    "lora_merged": (
        lora_merged, shaped(a=(4, 2), b=(2, 8), w2=(8, 3)), None, "",
    ),
    "roll_mix": (
        between(lambda h: h + jnp.roll(h, 3, -1)), W, "w1", "single one|together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_units_are_refused_for_the_right_reason(case):
    fn, params, path, reason = REFUSED[case]
    groups = find_groups(fn, params, X)
    touched = {m.path for g in groups for m in g.carriers}
    if path is not None:
        entries = [r for r in groups.refused if r.path == path]
        assert any(re.search(reason, r.reason) for r in entries), str(groups)
        assert any(r.source is None or __file__ in r.source for r in entries)
    assert not any(m.path == path and m.axis == 1 for g in groups for m in g.producers)
    check_groups(groups, fn, params, X)
    assert "w1" not in touched or path in (None, "w2"), str(groups)


NOT_PAIRS = {
    "plus_one": (between(lambda h: h + 1), "because of add", False),
    "relu6": (between(jax.nn.relu6), "relu6", True),
    "clip": (between(lambda h: jnp.clip(h, 0.0, 6.0)), "clip", True),
    "clip_low": (between(lambda h: jnp.maximum(h, 0.5)), "max", False),
    "gelu": (between(jax.nn.gelu), "tanh is not positively homogeneous", True),
    "silu": (between(jax.nn.silu), "silu is not positively homogeneous", True),
    "tanh": (between(jnp.tanh), "tanh is not positively homogeneous", True),
    "sigmoid": (between(jax.nn.sigmoid), "not positively homogeneous", False),
    "softplus": (between(jax.nn.softplus), "softplus|logaddexp", False),
    "square": (between(jnp.square), "because of dot_general", True),
    "power": (between(lambda h: h**3), "because of dot_general", True),
    "sqrt": (between(jnp.sqrt), "because of dot_general", True),
    "inverse": (between(lambda h: 1 / (h + 1)), "because of", False),
    "threshold": (between(lambda h: jnp.where(h > 0.5, h, 0.0)), "because of gt", True),
    "step": (between(lambda h: (h > 0).astype(jnp.float32)), "because of dot", False),
    "sign": (between(jnp.sign), "because of dot", False),
    "round": (between(jnp.round), "round", True),
    "set_rows": (
        between(lambda h: h.at[jnp.array([1, 3])].set(1.0)),
        "because of scatter", False,
    ),
    "add_to_rows": (
        between(lambda h: h.at[jnp.array([1, 3])].add(1.0)),
        "because of scatter", False,
    ),
    "by_batch": (
        between(lambda h: h / jnp.sqrt(jnp.var(h, 0) + 1e-5)), "because of add", True,
    ),
    "self_normalised": (
        between(lambda h: h / (jnp.abs(h).max(0) + 1)), "because of add", True,
    ),
    "standardised": (
        lambda p, x: jax.nn.relu(
            x @ ((p["w1"] - p["w1"].mean(0)) / (p["w1"].std(0) + 1e-5)) + p["b1"]
        ) @ p["w2"],
        "because of add", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_PAIRS, ids=str)
def test_group_is_no_pair_for_the_right_reason(case):
    fn, reason, keeps_zero = NOT_PAIRS[case]
    groups = find_groups(fn, W, X)
    (group,) = groups
    assert not group.homogeneous
    assert re.search(reason, group.note), group.note
    assert group.keeps_zero == keeps_zero
    assert group.note.endswith("f(0) = 0" if keeps_zero else "f(0) is not 0")
    check_groups(groups, fn, W, X)
    pairs = find_pairs(fn, W, X)
    assert not len(pairs)
    assert any(r.path == "w1" and re.search(reason, r.reason) for r in pairs.refused)


def test_units_that_a_step_revives_are_not_zero():
    def fn(p, x):
        def step(c, row):
            return jax.nn.relu(row @ p["w1"] + p["b1"]) + 1, c @ p["w2"]

        return lax.scan(step, jnp.zeros(8, x.dtype), x)[1]

    (group,) = find_groups(fn, W, X)
    assert group.keeps_zero is False
    check_groups(group, fn, W, X)


def gated(act):
    return lambda p, x: (act(x @ p["g"]) * (x @ p["w1"])) @ p["w2"]


def test_the_linear_branch_of_a_smooth_gate_is_the_producer():
    params = shaped(g=(4, 8), w1=(4, 8), w2=(8, 3))
    groups = find_groups(gated(jax.nn.silu), params, X)
    (group,) = groups
    assert group == volax.pair("w1", "w2").fit(params)
    assert [(m.path, m.role, m.degree) for m in group.fixed] == [("g", "producer", 0)]
    check_groups(groups, gated(jax.nn.silu), params, X)


@pytest.mark.parametrize("act", [jax.nn.relu, lambda h: h], ids=["reglu", "bilinear"])
def test_a_homogeneous_gate_is_ambiguous(act):
    params = shaped(g=(4, 8), w1=(4, 8), w2=(8, 3))
    (group,) = find_groups(gated(act), params, X)
    assert not group.homogeneous
    assert "ambiguous: each of g, w1" in group.note


def test_maximum_of_two_units_is_no_pair():
    params = shaped(g=(4, 8), w1=(4, 8), w2=(8, 3))
    fn = lambda p, x: jnp.maximum(x @ p["w1"], x @ p["g"]) @ p["w2"]  # noqa: E731
    groups = find_groups(fn, params, X)
    assert [g.homogeneous for g in groups] == [False]
    check_groups(groups, fn, params, X)


def test_a_captured_array_breaks_an_addition_even_if_it_is_zero():
    zeros = jnp.zeros(8)
    assert not find_pairs(between(lambda h: h + zeros), W, X).groups
    assert find_pairs(between(lambda h: h + jnp.zeros(8)), W, X).groups


def test_repeated_units_are_units_still():
    fn = between(lambda h: jnp.repeat(h[:, :4], 2, 1))
    groups = find_groups(fn, W, X)
    (group,) = groups
    assert group.sizes == (4,)
    assert group.consumers[0].axes == (Axis(0, 0, (4, 2), (2, 1), (0, None)),)
    check_groups(groups, fn, W, X)


def test_an_example_without_a_batch_axis_is_no_state():
    params = shaped(a=(4, 6), b=(6, 4), c=(4, 2))

    def fn(p, batch):
        x = batch["x"]
        return (x + jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    groups = find_groups(fn, params, shaped(x=(4,)))
    assert [g.name for g in groups] == ["a -> b"]
    assert any("input 0 x lies along the units" in r.reason for r in groups.refused)


def test_a_part_of_the_units_that_nobody_reads_is_refused():
    fn = lambda p, x: hidden(p, x)[:, :5] @ p["w"]  # noqa: E731
    params = W | shaped(w=(5, 3))
    groups = find_groups(fn, params, X)
    (group,) = groups
    assert group.size == 5
    assert any(r.reason == "no parameter consumes the units" for r in groups.refused)
    check_groups(groups, fn, params, X)


def test_unused_and_untraceable_programs_say_what_is_wrong():
    with pytest.raises(
        ValueError, match="fn uses none of its parameters, such as b1, w1, w2"
    ):
        find_groups(lambda p, x: x, W, X)
    with pytest.raises(ValueError, match=r"find_pairs: .* cannot be traced: TypeError"):
        find_pairs(lambda p, x: x @ p["w1"] @ p["w1"], W, X)
    with pytest.raises(ValueError, match="expected fn"):
        find_pairs(W)
    groups = find_groups(lambda p, x: hidden(p, x) @ p["w2"], W | shaped(v=(3,)), X)
    assert any(r.path == "v" and "never used" in r.reason for r in groups.refused)


SHOWN = (
    r"give the model as the parameters, as in find_\w+\(lambda model, x: model\(x\), "
)


def captured(library):
    """A module, or an ``apply`` of its variables, that is a function of an input."""
    if library == "linen":
        model, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]), jnp.ones((5, 4))
        variables = model.init(jax.random.key(0), x)
        return lambda x: model.apply(variables, x)
    if library == "nnx":
        rngs = nnx.Rngs(0)
        first, last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        return nnx.Sequential(first, nnx.relu, last)
    return jax.vmap(eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0)))


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
@pytest.mark.parametrize("find", [find_groups, find_pairs], ids=lambda f: f.__name__)
def test_a_closure_that_hides_its_parameters_says_how_to_pass_them(library, find):
    model = captured(library)
    for fn in (lambda x: model(x), jax.jit(lambda x: model(x))):
        with pytest.raises(
            ValueError, match="closes over arrays that are data.*" + SHOWN
        ):
            find(fn, X)
    with pytest.raises(ValueError, match=r"uses none of its param.*; it closes over"):
        find(lambda p, x: model(x), W, X)
    # Beside a head of its own a backbone may be meant to stay: that is no error.
    found = find(lambda p, x: model(x) @ p["h"], shaped(h=(3, 2)), X)
    assert not found
    assert any(re.search(SHOWN, str(r)) for r in found.refused)
    found = find(lambda p, x: hidden(p, x) @ p["w2"] + model(x), W, X)
    assert [g.name for g in found] == ["w1 -> w2"]
    assert not any(re.search(SHOWN, str(r)) for r in found.refused)


def test_a_call_without_parameters_says_how_to_pass_them():
    model = captured("nnx")
    with pytest.raises(ValueError, match=r"expected fn\(params.*0 further.*" + SHOWN):
        find_groups(lambda: model(jnp.ones((5, 4))))
    for params in ({}, jax.ShapeDtypeStruct((5,), jnp.int32), {"n": 3}):
        with pytest.raises(ValueError, match="holds no floating-point array.*" + SHOWN):
            find_groups(lambda p: model(jnp.ones((5, 4))), params)


def test_a_group_that_is_no_pair_is_refused_by_path_prox():
    groups = find_groups(between(jnp.tanh), W, X)
    with pytest.raises(ValueError, match="w1 -> w2 is no pair"):
        volax.path_prox(0.1, 1e-3, pairs=groups)


def test_a_linen_module_without_its_variables():
    module = nn.Dense(3)
    for args in ((), (jnp.ones((1, 2)),)):
        with pytest.raises(
            ValueError, match=r"give its variables too, as in find_pairs"
        ):
            find_pairs(module, *args)


def test_groups_survive_json():
    def mlp(params, x):
        return jax.nn.relu(x @ params["w1"]) @ params["w2"]

    params = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
    found = find_groups(mlp, params, jnp.ones((1, 3)))
    assert Groups.from_json(found.to_json()) == found
