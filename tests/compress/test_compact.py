"""compact: the same function, physically smaller."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax
from tests.compress import models
from tests.compress.models import MODELS, killed, marks, same_gradients
from volax import _paths
from volax.compress import compact

KEY = jax.random.key(0)
MLP = jax.jit(models.mlp)


def relative(small):
    """How far the smaller model's outputs are off, which only a check can say."""
    assert small.difference is not None
    return small.difference.relative


def left(small):
    return {g["name"]: g["left"] for g in small.manifest["groups"]}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", MODELS)
def test_killed_units_go_and_the_function_stays(name, seed):
    fn, make, groups, shape = MODELS[name]
    params, expected = killed(make(seed), groups, seed)
    x, fn = jax.random.normal(KEY, shape), jax.jit(fn)
    small = compact(params, groups, check=(fn, None, (x,)))
    assert all(left(small)[k] <= n for k, n in expected.items())
    assert relative(small) <= 1e-5
    shapes = {k: v.shape for k, v in _paths.named_leaves(small.params).items()}
    assert shapes == small.sizes
    for before, after in zip(
        jax.tree.leaves(fn(params, x)), jax.tree.leaves(fn(small.params, x))
    ):
        np.testing.assert_allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_what_is_left_are_the_same(name):
    fn, make, groups, shape = MODELS[name]
    params, _ = killed(make(), groups)
    x = jax.random.normal(KEY, shape)
    small = compact(params, groups, opt_state=marks(params))
    same_gradients(lambda p: fn(p, x), params, lambda p: fn(p, x), small)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(1e-2),
        optax.sgd(1e-2, momentum=0.9),
        optax.MultiSteps(optax.adam(1e-2), 2),
        optax.inject_hyperparams(optax.adamw)(1e-2),
        volax.volumized_adam(1e-2, volume=0.5),
    ],
    ids=["adam", "momentum", "multi steps", "injected", "volumized"],
)
def test_training_goes_on_as_in_the_full_model_with_frozen_dead_units(tx):
    params = models.mlp_params()
    x, y = jax.random.normal(KEY, (32, 5)), jnp.arange(32) % 3

    def loss(p):
        logits = models.mlp(p, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(p, state, alive):
        value, grads = jax.value_and_grad(loss)(p)
        updates, state = tx.update(grads, state, p)
        updates = jax.tree.map(jnp.multiply, updates, alive)
        return value, optax.apply_updates(p, updates), state

    ones = jax.tree.map(jnp.ones_like, params)
    state = tx.init(params)
    for _ in range(3):
        _, params, state = step(params, state, ones)
    params, _ = killed(params, models.MLP_PAIRS)
    alive = jax.tree.map(lambda p: (p != 0).astype(p.dtype), params)
    small = compact(params, models.MLP_PAIRS, opt_state=state)
    mine, cut_state = small.params, small.opt_state
    like = tx.init(mine)
    assert jax.tree.structure(like) == jax.tree.structure(cut_state)
    assert [jnp.shape(a) for a in jax.tree.leaves(like)] == [
        jnp.shape(a) for a in jax.tree.leaves(cut_state)
    ]
    ones = jax.tree.map(jnp.ones_like, mine)
    # What stays in the small model but was zero is frozen in the full one.
    frozen = jax.tree.map(lambda p: (p != 0).astype(p.dtype), mine)
    assert all(bool(f.all()) for f in jax.tree.leaves(frozen))
    for _ in range(10):
        expected, params, state = step(params, state, alive)
        got, mine, cut_state = step(mine, cut_state, ones)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_an_array_of_another_shape_in_the_state_is_refused():
    params, _ = killed(models.mlp_params(widths=(5, 256, 200, 3)), models.MLP_PAIRS)
    state = optax.adafactor(1e-3).init(params)
    with pytest.raises(
        ValueError, match=r"opt_state: '.*l2/kernel' belongs to 'l2/ker"
    ):
        compact(params, models.MLP_PAIRS, opt_state=state)


def test_units_that_only_dead_units_read_or_feed_go_as_well():
    params = models.mlp_params()
    l1, l2, l3 = params["l1"], params["l2"], params["l3"]
    l3["kernel"] = l3["kernel"].at[:4].set(0)  # l2 units 0-3 are unread
    l2["kernel"] = l2["kernel"].at[5, 4:].set(0)  # only they read l1 unit 5
    l1["kernel"] = l1["kernel"].at[:, 7].set(0)  # l1 unit 7 is unfed
    l1["bias"] = l1["bias"].at[7].set(0)
    l2["kernel"] = l2["kernel"].at[:7, 8].set(0).at[8:, 8].set(0)  # 8 reads 7 alone
    l2["bias"] = l2["bias"].at[8].set(0)
    x = jax.random.normal(KEY, (4, 5))
    small = compact(params, models.MLP_PAIRS, check=(MLP, None, (x,)))
    groups = small.manifest["groups"]
    assert [g["removed"] for g in groups] == [[5, 7], [0, 1, 2, 3, 8]]


def test_a_weight_too_small_to_be_squared_is_alive():
    params = {"w": jnp.ones((2, 3)), "v": jnp.array([[1e-30], [0.0], [1.0]])}
    small = compact(params, volax.pair("w", "v"))
    assert small.manifest["groups"][0]["removed"] == [1]


@pytest.mark.parametrize(
    ("round_to", "left", "reason"),
    [
        (1, 1, "at least one unit stays"),
        (8, 8, "at least one unit stays and the count is a multiple of 8"),
    ],
)
def test_reasons_for_dead_units_that_stay(round_to, left, reason):
    params = {"w": jnp.ones((2, 12)), "v": jnp.zeros((12, 1))}
    small = compact(params, volax.pair("w", "v"), round_to=round_to)
    assert small.sizes["w"] == (2, left)
    assert [k.reason for k in small.kept] == [reason]


@pytest.mark.parametrize(
    ("round_to", "expected"), [(1, 5), (2, 6), (4, 8), (8, 8), (64, 12)]
)
def test_round_to_keeps_dead_units_rather_than_drop_live_ones(round_to, expected):
    params = {"w": jnp.ones((2, 12)), "v": jnp.ones((12, 1)).at[5:].set(0)}
    small = compact(params, volax.pair("w", "v"), round_to=round_to)
    assert small.sizes["w"] == (2, expected)
    assert bool((small.params["v"][:5] == 1).all())


def test_stacked_layers_keep_the_same_count():
    params = models.stacked_params()
    for layer, dead in enumerate((6, 2, 4)):
        params["down"] = params["down"].at[layer, :dead].set(0)
    x = jax.random.normal(KEY, (4, 5))
    small = compact(params, models.STACKED, check=(models.stacked, None, (x,)))
    assert small.sizes == {"up": (3, 5, 6), "bias": (3, 6), "down": (3, 6, 5)}
    assert [k.reason for k in small.kept] == ["all layers keep the same count"]


def test_layers_that_share_a_bias_are_kept():
    params = models.stacked_params() | {"bias": jnp.ones(8)}
    params["down"] = params["down"].at[:, 0].set(0)
    group = dataclasses.replace(
        volax.pair("up", "down", layers=1),
        biases=(
            volax.pairs.Member("bias", "bias", 1, (volax.pairs.Axis(0, units=(1,)),)),
        ),
    )
    small = compact(params, group)
    assert small.sizes["up"] == (3, 5, 8)
    assert "'bias' is shared by several of its layers" in small.kept[0].reason


def constant_unit(params, unit, value):
    params["l1"]["kernel"] = params["l1"]["kernel"].at[:, unit].set(0)
    params["l1"]["bias"] = params["l1"]["bias"].at[unit].set(value)


@pytest.mark.parametrize("value", [0.7, -0.7])
def test_a_constant_is_folded_into_the_next_bias(value):
    params = models.mlp_params()
    constant_unit(params, 3, value)
    x = jax.random.normal(KEY, (4, 5))
    small = compact(params, models.MLP_PAIRS, check=(MLP, None, (x,)))
    assert left(small)["l1/kernel -> l2/kernel"] == 11
    moved = max(value, 0) * params["l2"]["kernel"][3]
    np.testing.assert_allclose(
        small.params["l2"]["bias"], params["l2"]["bias"] + moved, rtol=1e-6
    )
    assert relative(small) <= 1e-5


def test_without_check_a_constant_is_kept_with_a_reason():
    params = models.mlp_params()
    constant_unit(params, 3, 0.7)
    small = compact(params, models.MLP_PAIRS)
    assert left(small)["l1/kernel -> l2/kernel"] == 12
    (kept,) = small.kept
    assert kept.units == (3,)
    assert "constant" in kept.reason
    assert "check" in kept.reason


def test_a_folded_unit_that_stays_to_round_the_count_is_not_counted_twice():
    params = models.mlp_params()
    constant_unit(params, 3, 0.7)
    x = jax.random.normal(KEY, (4, 5))
    small = compact(params, models.MLP_PAIRS, round_to=4, check=(MLP, None, (x,)))
    assert left(small)["l1/kernel -> l2/kernel"] == 12
    assert relative(small) <= 1e-5
    assert [k.reason for k in small.kept] == ["the count is a multiple of 4"]


def padded(params, x):
    x = jax.nn.relu(models.conv(x, params["a"]["kernel"]) + params["a"]["bias"])
    return models.conv(x, params["b"]["kernel"]) + params["b"]["bias"]


@pytest.mark.parametrize("window", [1, 3])
def test_before_a_convolution_that_pads_a_constant_is_kept(window):
    params = models.drawn(
        a__kernel=(3, 3, 2, 6),
        a__bias=(6,),
        b__kernel=(window, window, 6, 4),
        b__bias=(4,),
    )
    params["a"]["kernel"] = params["a"]["kernel"].at[..., 2].set(0)
    params["a"]["bias"] = params["a"]["bias"].at[2].set(1.0)
    x = jax.random.normal(KEY, (2, 5, 5, 2))
    pair = volax.pair("a/kernel", "b/kernel", bias="a/bias")
    small = compact(params, pair, check=(padded, None, (x,)))
    assert small.sizes["a/bias"] == ((5,) if window == 1 else (6,))
    if window == 3:
        assert "pad with zeros" in small.kept[0].reason


def test_a_fold_that_check_refutes_is_undone():
    def leaky(params, x):
        return models.dense(
            params["l2"], jax.nn.leaky_relu(models.dense(params["l1"], x))
        )

    params = models.drawn(
        l1__kernel=(5, 6), l1__bias=(6,), l2__kernel=(6, 3), l2__bias=(3,)
    )
    constant_unit(params, 2, -3.0)
    params["l2"]["kernel"] = params["l2"]["kernel"].at[4].set(0)
    x = jax.random.normal(KEY, (4, 5))
    pair = volax.pair("l1/kernel", "l2/kernel", bias="l1/bias")
    small = compact(params, pair, check=(leaky, None, (x,)))
    assert small.manifest["groups"][0]["removed"] == [4]
    assert "folding it changed the outputs" in small.kept[0].reason


def test_a_constant_that_depends_on_the_width_is_caught():
    def scaled(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["v"] / params["w"].shape[1]

    params = {"w": jnp.ones((2, 4)), "v": jnp.array([[1.0], [0], [2], [0]])}
    with pytest.raises(ValueError, match=r"differs by .* depends on a width") as error:
        compact(params, volax.pair("w", "v"), check=(scaled, None, (jnp.ones((3, 2)),)))
    assert "w -> v" in str(error.value)


def test_groups_through_a_split_are_kept_unless_checked():
    params = models.drawn(w=(5, 12), v=(6, 2))
    params["v"] = params["v"].at[2].set(0)
    part = volax.pairs.Axis(1, 6, (6,), (1,), (0,))
    pair = volax.pair("w", "v")
    pair = dataclasses.replace(
        pair, sizes=(6,),
        producers=(dataclasses.replace(pair.producers[0], axes=(part,)),),
    )  # fmt: skip
    small = compact(params, pair)
    assert small.sizes == {"w": (5, 12), "v": (6, 2)}
    assert "a part of axis 1 of 'w'" in small.kept[0].reason


def test_keep_leaves_units_and_groups():
    params = {"w": jnp.ones((2, 4)), "v": jnp.zeros((4, 1)).at[0].set(1)}
    pair = volax.pair("w", "v")
    assert compact(params, pair, keep="w").sizes["w"] == (2, 4)
    assert compact(params, pair, keep={"w": [2]}).sizes["w"] == (2, 2)
    chosen = np.array([False, True, False, True])
    assert compact(params, pair, keep={"w": chosen}).sizes["w"] == (2, 3)
    assert compact(params, pair, keep=volax.path_matches("^w")).sizes["w"] == (2, 4)
    with pytest.raises(ValueError, match="keep: 'x' makes no units"):
        compact(params, pair, keep="x")


def test_running_statistics_given_apart_are_cut():
    full = models.cnn_params()
    params, _ = killed(full, models.cnn_group())
    stats = {k: params["norm"].pop(k) for k in ("mean", "var")}
    group = models.cnn_group()
    states = tuple(
        dataclasses.replace(m, path=m.path.removeprefix("norm/")) for m in group.states
    )
    group = dataclasses.replace(group, states=states)

    def fn(params, stats, x):
        return models.cnn(params | {"norm": {**params["norm"], **stats}}, x)

    x = jax.random.normal(KEY, (2, 4, 4, 3))
    small = compact(params, group, state=stats, check=(fn, None, (x,)))
    assert small.state["mean"].shape == (4,)
    missing = "state 'mean' is not in the tree.*pass the running statistics too"
    with pytest.raises(ValueError, match=missing):
        compact(params, group)


def test_a_hand_written_group_that_forgets_a_vector_is_refused():
    params = models.mlp_params()
    with pytest.raises(
        ValueError, match=r"'l1/bias' of shape .* stands beside 'l1/kernel'"
    ):
        compact(params, volax.pair("l1/kernel", "l2/kernel"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round_to": 0}, "round_to must be an integer of 1 or more, got 0"),
        ({"check": (models.mlp,)}, r"check must be \(fn, small_fn, inputs\)"),
        ({"groups": ["l1"]}, "got str"),
        ({"groups": volax.pair("x", "l2/kernel")}, "'x' is not in the tree"),
        ({"groups": 3}, "groups: expected records .*, got int"),
    ],
)
def test_mistakes_are_named(change, message):
    given = {"groups": models.MLP_PAIRS, **change}
    with pytest.raises(ValueError, match=message):
        compact(models.mlp_params(), **given)


def test_shapes_without_values_are_refused():
    shapes = jax.eval_shape(models.mlp_params)
    with pytest.raises(ValueError, match="'l1/bias' is no array but ShapeDtypeStruct"):
        compact(shapes, models.MLP_PAIRS)


def test_outputs_that_are_not_finite_prove_nothing():
    params, _ = killed(models.mlp_params(), models.MLP_PAIRS)
    x = jnp.full((1, 5), jnp.nan)
    with pytest.raises(ValueError, match="not finite"):
        compact(params, models.MLP_PAIRS, check=(MLP, None, (x,)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes(dtype):
    params, _ = killed(models.mlp_params(), models.MLP_PAIRS)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    x = jax.random.normal(KEY, (4, 5), dtype)
    small = compact(params, models.MLP_PAIRS, check=(MLP, None, (x,)))
    assert {leaf.dtype for leaf in jax.tree.leaves(small.params)} == {jnp.dtype(dtype)}


def test_what_was_given_is_left_alone_and_numpy_stays_numpy():
    params, _ = killed(models.mlp_params(), models.MLP_PAIRS)
    params = jax.tree.map(np.asarray, params)
    copy = jax.tree.map(np.copy, params)
    small = compact(params, models.MLP_PAIRS)
    jax.tree.map(np.testing.assert_array_equal, params, copy)
    assert isinstance(small.params["l1"]["kernel"], np.ndarray)


def test_the_manifest_is_json_and_the_text_is_a_table():
    params, _ = killed(models.mlp_params(), models.MLP_PAIRS)
    x = jax.random.normal(KEY, (4, 5))
    small = compact(params, models.MLP_PAIRS, check=(MLP, None, (x,)))
    assert json.loads(json.dumps(small.manifest)) == small.manifest
    lines = str(small).splitlines()
    assert lines[0].split() == ["units", "left", "group"]
    assert any(line.startswith("difference: ") for line in lines)
