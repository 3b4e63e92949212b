"""Key paths and masks over the spellings of the libraries."""

import itertools
from typing import Any, cast

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct

import volax
from tests import cases
from tests.cases import train
from volax import _paths, masks


class Net(nnx.Module):
    def __init__(self, rngs):
        self.l1 = nnx.Linear(3, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 2, rngs=rngs)])


def test_nnx_paths_are_the_same_boxed_and_pure():
    state = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    expected = {"l1/kernel", "l1/bias", "layers/0/kernel", "layers/0/bias"}
    assert set(_paths.named_leaves(state)) == expected
    assert set(_paths.named_leaves(nnx.to_pure_dict(state))) == expected
    seen = []

    def init(params):
        seen.append(set(_paths.named_leaves(params)))
        return optax.EmptyState()

    def update(updates, state, params=None):
        seen.append(set(_paths.named_leaves(params)))
        return updates, state

    spy = optax.GradientTransformation(init, update)
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, spy, wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert seen == [expected, expected]


def test_linen_collections_and_boxes_are_dropped():
    dense = nn.Dense(
        2, kernel_init=nn.with_partitioning(nn.initializers.ones, ("x", "y"))
    )
    variables = dense.init(jax.random.key(0), jnp.ones((1, 3)))
    assert set(_paths.named_leaves(variables)) == {"kernel", "bias"}
    assert set(_paths.named_leaves(variables["params"])) == {"kernel", "bias"}


def test_equinox_paths():
    mlp = eqx.filter(eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0)), eqx.is_array)
    paths = {f"layers/{i}/{name}" for i in range(2) for name in ("weight", "bias")}
    assert set(_paths.named_leaves(mlp)) == paths


TREE = {
    "l1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "l2": [jnp.ones((2, 2)), jnp.ones((2, 2, 2))],
}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, {"l1/kernel", "l1/bias", "l2/0", "l2/1"}),
        ("all", {"l1/kernel", "l1/bias", "l2/0", "l2/1"}),
        ("matrices", {"l1/kernel", "l2/0", "l2/1"}),
        (volax.path_matches("^l2/"), {"l2/0", "l2/1"}),
        (volax.unpaired([volax.pair("l1/kernel", "l2/0")]), {"l2/1"}),
        (volax.unpaired(volax.pair("l1/kernel", "l2/0")), {"l2/1"}),
        (volax.paired([volax.pair("l1/kernel", "l2/0")]), {"l1/kernel", "l2/0"}),
        (volax.paired(volax.pair("l2/1", "l2/0", bias="l1/bias")), {"l2/0", "l2/1"}),
        ({"l1": True, "l2": [False, True]}, {"l1/kernel", "l1/bias", "l2/1"}),
        ({"l1": {"kernel": np.True_, "bias": False}, "l2": False}, {"l1/kernel"}),
        (lambda p: jax.tree.map(lambda x: x.ndim == 3, p), {"l2/1"}),
    ],
)
def test_selection(mask, expected):
    assert masks.selected(mask, TREE, "test") == expected
    shapes = jax.eval_shape(lambda: TREE)
    assert masks.selected(mask, shapes, "test") == expected


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.embed = nnx.Embed(3, 4, rngs=rngs)


def haiku_net(x):
    x = hk.Conv2D(3, 3, data_format="NCHW")(x)
    x = hk.BatchNorm(True, True, 0.9, data_format="NCHW")(x, is_training=True)
    return hk.Linear(2)(x.reshape(len(x), -1))


ATTENTION_KERNELS = {f"attention/{k}/kernel" for k in ("query", "key", "value", "out")}
MODELS = {
    "nnx": (
        lambda: nnx.state(Attention(nnx.Rngs(0)), nnx.Param),
        {*ATTENTION_KERNELS, "embed/embedding"},
    ),
    "linen, stacked": (
        lambda: nn.vmap(
            nn.Dense,
            {"params": 0},
            {"params": True},
            in_axes=cast(Any, None),
            axis_size=3,
        )(4).init(jax.random.key(0), jnp.ones((2, 4)))["params"],
        {"kernel"},
    ),
    "equinox": (
        lambda: eqx.filter(
            eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(0)), eqx.is_inexact_array
        ),
        {"weight"},
    ),
    "haiku": (
        lambda: hk.transform_with_state(haiku_net).init(
            jax.random.key(0), jnp.ones((1, 1, 4, 4))
        )[0],
        {"conv2_d/w", "linear/w"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_biases_and_scales_of_the_libraries_are_no_matrices(name):
    make, expected = MODELS[name]
    tree = jax.eval_shape(make)
    chosen = masks.selected("matrices", tree, "test")
    assert chosen - {"conv2_d/b"} == expected  # no name for Haiku alone
    left = [x for k, x in _paths.named_leaves(tree).items() if k not in chosen]
    assert any(jnp.ndim(x) > 1 for x in left)


def test_every_rule_leaves_vectors_alone_by_default():
    params = {
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "attention": {"kernel": jnp.ones((2, 2, 2)), "bias": jnp.ones((2, 2))},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    for tx in (
        volax.volumize(0.05),
        volax.volumized(optax.sgd(0.1, 0.9), 0.05),
        volax.volumized_adam(0.1, 0.05),
        volax.lp_decay(0.1, 0.5, 1.0),
        volax.lp_adam(0.1, 0.5, 1.0),
        volax.lp_sgd(0.1, 0.5, 1.0),
    ):
        updates, _ = tx.update(zeros, tx.init(params), params)
        changed = {k for k, u in _paths.named_leaves(updates).items() if bool(u.any())}
        assert changed == {"attention/kernel"}


def test_vectors_alone_are_not_left_alone_in_silence():
    params = {"a": jnp.ones(3), "bias": jnp.ones((2, 2))}
    tx = volax.volumize(0.5)
    with pytest.raises(ValueError, match=r"'matrices' selects none .*mask='all'"):
        tx.update(params, tx.init(params), params)


def test_our_masks_serve_optax():
    mask = volax.unpaired(volax.pair("l1/kernel", "l2/0"))
    tx = optax.add_decayed_weights(0.5, mask=mask.tree)
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    updates, _ = tx.update(zeros, tx.init(TREE), TREE)
    decayed = [k for k, u in _paths.named_leaves(updates).items() if bool(u.any())]
    assert decayed == ["l2/1"]


def test_nothing_of_ours_is_callable():
    pair = volax.pair("a", "b")
    ours = [
        pair,
        volax.member("a"),
        volax.path_matches("a"),
        volax.unpaired(pair),
        volax.paired(pair),
        volax.relative_to_init(1.0),
    ]
    assert not any(callable(x) for x in ours)
    assert len({*ours}) == len(ours)


def test_a_volume_for_each_layer():
    volumes = {
        "l1": {"kernel": 0.1, "bias": optax.linear_schedule(0.2, 0.1, 1)},
        "l2": volax.relative_to_init(0.5),
    }
    tx = volax.volumize(volumes, mask="all")
    params, state = TREE, tx.init(TREE)
    for bound in (0.2, 0.1):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        largest = {k: float(x.max()) for k, x in _paths.named_leaves(params).items()}
        assert largest == pytest.approx(
            {"l1/kernel": 0.1, "l1/bias": bound, "l2/0": 0.5, "l2/1": 0.5}
        )


def test_relative_volumes_take_the_magnitude_and_leave_zero_leaves_free():
    params = {"skewed": jnp.array([0.1, -2.0]), "zero": jnp.zeros(2)}
    tx = volax.volumize(volax.relative_to_init(1.5), mask="all")
    tens = jax.tree.map(lambda x: jnp.full_like(x, 10.0), params)
    new, _ = train(tx, params, [tens])
    assert new["skewed"].tolist() == [3.0, 3.0]
    assert new["zero"].tolist() == [10.0, 10.0]


class Scaled(eqx.Module):
    value: jax.Array


class Named(eqx.Module):
    attn: Scaled
    out: Scaled


class NnxNamed(nnx.Module):
    """A parameter, and a module, that are called ``value``."""

    def __init__(self, rngs):
        self.attn = nnx.Dict(value=nnx.Param(jnp.ones((3, 4))))
        self.value = nnx.Linear(4, 2, rngs=rngs)


@struct.dataclass
class Struct:
    value: jax.Array


def equinox_named():
    return Named(Scaled(jnp.ones((3, 4))), Scaled(jnp.ones((4, 2))))


def partitioned():
    box = nn.Partitioned(jnp.ones(2), ("x",))
    return {"params": {"value": box, "attn": {"value": nn.Partitioned(box, ())}}}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (equinox_named, ["attn/value", "out/value"]),
        (lambda: Scaled(jnp.ones(2)), ["value"]),
        (lambda: {"a": Struct(jnp.ones(2))}, ["a/value"]),
        (lambda: {"a": {"value": jnp.ones(2)}, "value": jnp.ones(2)},
         ["a/value", "value"]),
        (lambda: nnx.state(NnxNamed(nnx.Rngs(0))),
         ["attn/value", "value/bias", "value/kernel"]),
        (lambda: nnx.to_pure_dict(nnx.state(NnxNamed(nnx.Rngs(0)))),
         ["attn/value", "value/bias", "value/kernel"]),
        (lambda: NnxNamed(nnx.Rngs(0)), ["attn/value", "value/bias", "value/kernel"]),
        (partitioned, ["attn/value", "value"]),
        (lambda: {"w": nnx.Param({"a": jnp.ones(2), "value": jnp.ones(2)})},
         ["w/a", "w/value"]),
    ],
    ids=["equinox", "equinox leaf", "dataclass", "dict", "nnx state", "nnx pure",
         "nnx module", "linen", "box around a tree"],
)  # fmt: skip
def test_only_a_box_of_flax_is_unwrapped(tree, expected):
    tree = tree()
    assert sorted(_paths.named_leaves(tree)) == expected
    named = _paths.map_with_path(lambda path, _: _paths.key_path(path), tree)
    assert sorted(jax.tree.leaves(named)) == expected
    assert jax.tree.structure(named) == jax.tree.structure(tree)
    assert masks.selected(volax.path_matches("value"), tree, "test") == {
        name for name in expected if "value" in name
    }


def test_a_box_may_hold_no_leaf():
    tree = {"a": nnx.Param(None), "b": nnx.Param(optax.MaskedNode())}
    assert list(_paths.named_leaves(tree, absent=True)) == ["a", "b"]
    assert _paths.named_leaves(tree) == {}


def test_key_paths_that_are_the_same_after_normalising_are_refused():
    for tree in ({"a": {"b": 1}, "a/b": 2}, {"params": {"w": 1}, "w": 2}):
        with pytest.raises(ValueError, match="two leaves of the tree share the key"):
            _paths.named_leaves(tree)


def test_a_pair_of_parameters_called_value():
    params = equinox_named()
    tx = volax.path_prox(0.1, 1.0, pairs=[volax.pair("attn/value", "out/value")])
    zeros = jax.tree.map(jnp.zeros_like, params)
    new, _ = train(tx, params, [zeros])
    assert not bool((new.out.value == params.out.value).any())


def test_the_momentum_of_parameters_called_value_is_scaled():
    tx = volax.volumized(optax.sgd(1.0, momentum=0.9), 1.0)
    params = {"value": jnp.full((2, 2), 0.5), "a": {"value": jnp.full((2, 2), 0.5)}}
    for tree in (params, nnx.State(jax.tree.map(nnx.Param, params))):
        up = jax.tree.map(lambda p: jnp.full_like(p, -1.0), tree)
        _, state = cases.update(tx, up, tree)
        assert [float(m.max()) for m in jax.tree.leaves(state.inner_state)] == [0.0] * 2


def test_an_entry_reaches_what_lies_below_it_and_nothing_beside_it():
    names = ["l1", "l1/kernel", "l10/kernel", "a//b", "/a", "l1/"]
    for entries in itertools.combinations(["", "l1", "l1/", "a", "a/", "/a", "l"], 2):
        prefix = {key: k for k, key in enumerate(entries)}
        tree = dict.fromkeys(names, 0.0)
        above = {
            name: [key for key in entries if _paths.is_above(key, name)]
            for name in tree
        }
        unused = set(entries) - {""} - {key for keys in above.values() for key in keys}
        if unused:
            with pytest.raises(ValueError, match="stands above no leaf"):
                _paths.by_prefix(prefix, tree, "test")
            continue
        expected = {k: prefix[max(keys, key=len)] for k, keys in above.items() if keys}
        assert _paths.by_prefix(prefix, tree, "test") == expected
