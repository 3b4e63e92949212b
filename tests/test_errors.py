"""Bad input: each error names the argument or key path, what came."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import volax
from tests import cases
from volax._paths import named_leaves

PAIR = volax.pair("l1/kernel", "l2/kernel", bias="l1/bias")
PARAMS = {
    "l1": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)},
    "l2": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)},
}


def update(tx, params=PARAMS):
    return cases.update(tx, params, params)


AT_CONSTRUCTION = [
    (lambda: volax.volumize(1.0, 1.5), r"volumize: alpha must be .*\[-1, 1\].*got 1.5"),
    (lambda: volax.volumize(1.0, np.nan), "volumize: alpha .*got nan"),
    (lambda: volax.volumize(-0.1), r"volumize: volume must be .*>= 0.*got -0.1"),
    (lambda: volax.volumize(jnp.nan), "volumize: volume .*got nan"),
    (lambda: volax.volumize({"l1": -1.0}), "volumize: volume .*got -1.0"),
    (lambda: volax.volumize("big"), "volumize: volume .*got 'big'"),
    (lambda: volax.volumize(True), "volumize: volume .*got True"),
    (lambda: volax.relative_to_init(-1.0), "relative_to_init: scale .*got -1.0"),
    (
        lambda: volax.volumized(optax.adam(0.1), 1.0, -2),
        r"volumized: alpha must be .*got -2",
    ),
    (lambda: volax.lp_decay(0.1, -1.0, 1), "lp_decay: strength .*>= 0.*got -1.0"),
    (lambda: volax.lp_decay(0.1, np.inf, 1), "lp_decay: strength .*got inf"),
    (lambda: volax.lp_decay(np.nan, 0.1, 1), "lp_decay: learning_rate .*got nan"),
    (lambda: volax.lp_decay(0.1, 0.1, -0.5), "lp_decay: p must be .*got -0.5"),
    (
        lambda: volax.lp_decay(0.1, 0.1, cast(Any, None)),
        "lp_decay: p must be .*got None",
    ),
    (
        lambda: volax.lp_decay(0.1, 0.1, cast(Any, np.ones(2))),
        "p must be .*, a scalar array, or",
    ),
    (lambda: volax.lp_decay(0.1, 0.1, 1, snap_below=-1), "lp_decay: snap_below .*-1"),
    (
        lambda: volax.lp_decay(0.1, 0.1, 1, zeros="x"),
        "zeros must be 'sticky' or 'free'",
    ),
    (lambda: volax.lp_decay(0.1, 0.1, 1, reference="x"), "reference must be 'before'"),
    (lambda: volax.path_prox(0.1, -1.0, PAIR), "path_prox: strength .*got -1.0"),
    (
        lambda: volax.path_prox(0.1, 0.1, PAIR, normalize="x"),
        "normalize must be one of 'resc",
    ),
    (lambda: volax.path_prox(0.1, 0.1, PAIR, p=1.5), r"path_prox: p .*\[0.01, 1\]"),
    (lambda: volax.path_prox(0.1, 0.1, []), "path_prox: pairs is empty"),
    (lambda: volax.path_prox(0.1, 0.1, cast(Any, ["l1"])), "volax.pair .*got str"),
    (lambda: volax.path_prox(0.1, 0.1, cast(Any, 3)), "volax.pair .*got int"),
    (lambda: volax.group_prox(0.1, -1.0, PAIR), "group_prox: strength .*got -1.0"),
    (lambda: volax.group_prox(np.nan, 1.0, PAIR), "group_prox: learning_rate .*nan"),
    (lambda: volax.group_prox(0.1, 1.0, PAIR, p=1.5), r"group_prox: p .*\[0, 1\].*1.5"),
    (lambda: volax.group_prox(0.1, 1.0, PAIR, over="x"), "over must be 'consumers' or"),
    (lambda: volax.group_prox(0.1, 1.0, []), "group_prox: groups is empty"),
    (
        lambda: volax.group_prox(0.1, 1.0, cast(Any, ["l1"])),
        "groups must hold records of .*find_groups, got str",
    ),
    (lambda: volax.pair("a", []), "pair: 'a' needs at least one consumer"),
    (lambda: volax.pair("a", ["b", "a"]), "pair: 'a' stands on both sides"),
    (lambda: volax.member("a", offset=-2), "member 'a': expected offset >= 0"),
    (lambda: volax.path_matches("("), r"path_matches: regex .*got '\('"),
]


@pytest.mark.parametrize(("make", "message"), AT_CONSTRUCTION)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            volax.pair("l1/kernal", "l2/kernel"),
            "producer 'l1/kernal' is not in the tree",
        ),
        (volax.pair("l1/kernal", "l2/kernel"), "nearest: l1/kernel"),
        (volax.pair("l1/kernel", "l2/x"), "consumer 'l2/x' is not in the tree"),
        (volax.pair("l2/kernel", "l1/kernel"), "'l1/kernel' has 3 .*expected 2 units"),
        (
            volax.pair("l1/kernel", "l2/kernel", bias="l2/bias"),
            "bias 'l2/bias' has 2 entries along axis 0, expected 4 units",
        ),
        (
            volax.pair("l1/kernel", volax.member("l2/kernel", positions=2)),
            "expected 4 units x 2 positions",
        ),
        (
            volax.pair("l1/kernel", volax.member("l2/kernel", offset=1)),
            "expected 4 units from offset 1",
        ),
        (
            volax.pair(volax.member("l1/kernel", 2), "l2/kernel"),
            r"shape \(3, 4\), which has no axis 2",
        ),
        ([PAIR, PAIR], "'l1/kernel' is a producer of two pairs whose units overlap"),
        (
            [PAIR, volax.pair("l1/bias", volax.member("l2/kernel", 0))],
            "'l2/kernel' is a consumer of two pairs whose units overlap",
        ),
    ],
)
def test_pairs_that_do_not_fit(pairs, message):
    with pytest.raises(ValueError, match=message):
        update(volax.path_prox(0.1, 0.1, pairs))


def test_consumers_at_different_offsets_do_not_overlap():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 2)), "v": jnp.ones((6, 2))}
    pairs = [volax.pair("a", volax.member("v", offset=k)) for k in (0, 1)]
    with pytest.raises(ValueError, match="producer of two pairs"):
        update(volax.path_prox(0.1, 0.1, pairs), params)
    side_by_side = [
        volax.pair("a", volax.member("v", offset=0)),
        volax.pair("b", volax.member("v", offset=4)),
    ]
    update(volax.path_prox(0.1, 0.1, side_by_side), params)
    params["b"] = jnp.ones((3, 4))
    params["v"] = jnp.ones((8, 2))
    overlapping = [
        volax.pair("a", volax.member("v", offset=0)),
        volax.pair("b", volax.member("v", offset=3)),
    ]
    with pytest.raises(ValueError, match="'v' is a consumer of two pairs"):
        update(volax.path_prox(0.1, 0.1, overlapping), params)


@pytest.mark.parametrize("make", [volax.path_prox, volax.group_prox])
@pytest.mark.parametrize("half", ["l1", "l2"])
def test_a_pair_masked_out_by_half(make, half):
    mask = {"l1": half != "l1", "l2": half != "l2"}
    tx = optax.masked(make(0.1, 0.1, PAIR), mask)
    with pytest.raises(
        ValueError, match=rf"masked out by half.*{half}/kernel.* masked"
    ):
        update(tx)


@pytest.mark.parametrize("make", [volax.path_prox, volax.group_prox])
def test_a_pair_masked_out_as_a_whole_is_left_out(make):
    params = PARAMS | {"l3": jnp.ones((3, 4)), "l4": jnp.ones((4, 2))}
    other = volax.pair("l3", "l4")
    mask = {"l1": False, "l2": False, "l3": True, "l4": True}
    tx = optax.masked(make(0.1, 0.1, [PAIR, other]), mask)
    updates, _ = update(tx, params)
    np.testing.assert_array_equal(updates["l1"]["kernel"], params["l1"]["kernel"])
    assert (updates["l4"] != params["l4"]).any()
    with pytest.raises(ValueError, match=rf"{make.__name__}: mask .*selects none"):
        update(optax.masked(make(0.1, 0.1, PAIR), mask), params)


def test_project_refuses_pairs_that_share_weights():
    params = {k: jnp.ones((4, 4)) for k in "abcd"}
    pairs = [volax.pair("a", "b"), volax.pair("b", "c")]
    with pytest.raises(
        ValueError,
        match=r"'project' .*pairs.disjoint\(\).* 'b' is a consumer of a -> b and a "
        "producer of b -> c",
    ):
        update(volax.path_prox(0.1, 0.1, pairs, normalize="project"), params)
    apart = [pairs[0], volax.pair("c", "d")]
    update(volax.path_prox(0.1, 0.1, apart, normalize="project"), params)
    for mode in ("rescale", "none"):
        update(volax.path_prox(0.1, 0.1, pairs, normalize=mode), params)


def test_balance_refuses_pairs_that_share_a_parameter():
    params = {k: jnp.ones((4, 4)) for k in "abc"}
    pairs = [volax.pair("a", "b"), volax.pair("b", "c")]
    with pytest.raises(ValueError, match="balance needs pairs that share no parameter"):
        update(volax.path_prox(0.1, 0.1, pairs, balance=True), params)


def test_balance_refuses_pairs_whose_output_biases_are_not_known():
    def model(p, x):
        h = jax.nn.relu(x @ p["l1"]["kernel"] + p["l1"]["bias"])
        h = h @ p["l2"]["kernel"] + p["l2"]["bias"]
        return h + x[:, :2]

    pairs = volax.find_pairs(model, PARAMS, jnp.ones((1, 3)))
    assert pairs[0] == PAIR.fit(named_leaves(PARAMS))
    update(volax.path_prox(0.1, 0.1, pairs))
    match = r"for l1/kernel -> l2/kernel \(its output passes add\); .*write"
    with pytest.raises(ValueError, match=match):
        update(volax.path_prox(0.1, 0.1, pairs, balance=True))
    by_hand = volax.pair(
        "l1/kernel", "l2/kernel", bias="l1/bias", output_bias="l2/bias"
    )
    update(volax.path_prox(0.1, 0.1, by_hand, balance=True))


def test_balance_refuses_a_bias_that_is_masked_out():
    def model(p, x):
        h = jax.nn.relu(x @ p["l1"]["kernel"] + p["l1"]["bias"])
        return h @ p["l2"]["kernel"] + p["l2"]["bias"]

    pairs = volax.find_pairs(model, PARAMS, jnp.ones((1, 3)))
    mask = {"l1": True, "l2": {"kernel": True, "bias": False}}
    update(optax.masked(volax.path_prox(0.1, 0.1, pairs), mask))
    with pytest.raises(ValueError, match="l2/bias is masked out"):
        update(optax.masked(volax.path_prox(0.1, 0.1, pairs, balance=True), mask))


def test_a_group_that_is_no_pair_is_refused_with_its_reason():
    def model(p, x):
        return jnp.tanh(x @ p["l1"]["kernel"]) @ p["l2"]["kernel"]

    groups = volax.find_groups(model, PARAMS, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"l1/kernel -> l2/kernel is no pair.*tanh"):
        volax.path_prox(0.1, 0.1, groups)


def test_an_all_zero_leaf_under_lp_decay():
    params = {"in": jnp.ones((2, 2)), "out": jnp.zeros((2, 2))}
    message = r"leaf 'out' starts at all zeros.*mask=.*zeros='free'"
    with pytest.raises(ValueError, match=message):
        volax.lp_decay(0.1, 0.1, 1).init(params)
    with pytest.raises(ValueError, match=message):
        volax.lp_adam(0.1, 0.1, optax.constant_schedule(1.0)).init(params)
    # It matters nowhere else, and is not known under jit or for shapes.
    volax.lp_decay(0.1, 0.1, 2).init(params)
    volax.lp_decay(0.1, 0.0, 1).init(params)
    volax.lp_decay(0.1, 0.1, 1, zeros="free").init(params)
    volax.lp_decay(0.1, 0.1, 1, reference="after").init(params)
    volax.lp_decay(0.1, 0.1, 1, mask=volax.path_matches("in")).init(params)
    volax.lp_decay(0.1, 0.1, 1).init(jax.eval_shape(lambda: params))
    jax.jit(volax.lp_decay(0.1, 0.1, 1).init)(params)


MASKS = [
    (volax.path_matches("kernal"), "selects none of the 4 leaves, such as l1/bias"),
    (jax.tree.map(lambda x: False, PARAMS), "selects none of the 4 leaves"),
    (lambda p: jax.tree.map(lambda x: False, p), "selects none of the 4 leaves"),
    (lambda p: True, "single value True, .*static_args"),
    (False, "single value False"),
    ("matrix", "mask must be 'matrices', 'all'.*got 'matrix'"),
    ({"l1": True, "l3": False}, "mask: the entry 'l3' stands above no leaf"),
    ({"l1": 1, "l2": False}, "mask at 'l1/bias' must be a bool, got int"),
]


@pytest.mark.parametrize(("mask", "message"), MASKS)
@pytest.mark.parametrize("name", ["volumize", "lp_decay"])
def test_bad_masks(mask, message, name):
    tx = {
        "volumize": lambda: volax.volumize(0.1, mask=mask),
        "lp_decay": lambda: volax.lp_decay(0.1, 0.1, 2, mask=mask),
    }[name]()
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        update(tx)


def test_a_mask_function_taken_for_a_schedule():
    def mask(params):
        return jax.tree.map(lambda x: jnp.ndim(x) == 2, params)

    injected = optax.inject_hyperparams(volax.volumize)(0.1, mask=mask)
    with pytest.raises(ValueError, match=r"volumize: mask .*static_args"):
        update(injected)
    injected = optax.inject_hyperparams(volax.volumize, static_args="mask")(
        0.1, mask=mask
    )
    updates, _ = update(injected)
    assert float(updates["l1"]["kernel"].max()) < 0


def test_volumes_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"no entry for leaf 'l2/kernel', only for l1/"
    ):
        update(volax.volumize({"l1": 0.1}))
    with pytest.raises(ValueError, match="volume: the entry 'l3' stands above no leaf"):
        update(volax.volumize({"l1": 0.1, "l2": 0.1, "l3": 0.1}))
    with pytest.raises(
        ValueError, match=r"shape \(7,\) does not broadcast .*l1/kernel"
    ):
        update(volax.volumize(np.ones(7)))
    update(volax.volumize({"l1": 0.1}, mask=volax.path_matches("^l1")))


WALLS = {
    "number": 0.2,
    "array": np.full(4, 0.2),
    "jax_array": jnp.full(4, 0.2),
    "schedule": optax.constant_schedule(0.2),
    "relative": volax.relative_to_init(0.5),
}


@pytest.mark.parametrize("wall", WALLS.values(), ids=WALLS)
@pytest.mark.parametrize("name", ["volumize", "volumized"])
def test_a_wall_for_a_leaf_that_the_mask_leaves_out(name, wall):
    def made(volume, **how):
        if name == "volumize":
            return volax.volumize(volume, **how)
        return volax.volumized(optax.sgd(0.1, 0.9), volume, **how)

    volumes = {"l1": {"kernel": 0.1, "bias": wall}, "l2": 0.1}
    said = rf"{name}: volume has a wall for 'l1/bias', which the mask "
    with pytest.raises(ValueError, match=said + r"'matrices' leaves out.*mask='all'"):
        made(volumes).init(PARAMS)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(made(volumes).init, PARAMS)
    with pytest.raises(ValueError, match=said + r".*'l2': True"):
        made(volumes, mask={"l1": {"kernel": True, "bias": False}, "l2": True}).init(
            PARAMS
        )
    made(volumes, mask="all").init(PARAMS)


@pytest.mark.parametrize(
    "bias",
    [None, np.inf, np.full(4, np.inf), jnp.inf],
    ids=["None", "inf", "array", "jax"],
)
def test_no_wall_for_a_leaf_that_the_mask_leaves_out(bias):
    volumes = {"l1": {"kernel": 0.1, "bias": bias}, "l2": 0.1}
    update(volax.volumize(volumes))


def test_walls_of_leaves_that_others_train_are_no_error():
    labels = {"l1": "walled", "l2": "free"}
    tx = optax.partition(
        {
            "walled": volax.volumize({"l1": 0.1, "l2": 0.2}),
            "free": optax.set_to_zero(),
        },
        labels,
    )
    updates, _ = update(tx)
    assert float(jnp.abs(PARAMS["l1"]["kernel"] + updates["l1"]["kernel"]).max()) <= 0.1


def test_integer_leaves_are_refused_by_name():
    params = PARAMS | {"steps": jnp.zeros(3, jnp.int32)}
    with pytest.raises(ValueError, match=r"'steps' has dtype int32.*with a mask"):
        update(volax.volumize(0.1, mask="all"), params)
    update(volax.volumize(0.1, mask=volax.path_matches("kernel")), params)


def test_two_leaves_of_one_key_path():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"two leaves of the tree share .*'a/b'"):
        update(volax.volumize(0.1), params)


@pytest.mark.parametrize("tree", [{}, {"a": {}}, {"a": None}])
def test_empty_trees_pass(tree):
    for tx in (volax.volumize(0.1), volax.lp_decay(0.1, 0.1, 1), volax.volumize({})):
        assert tx.update(tree, tx.init(tree), tree)[0] == tree


def test_the_nearest_entries_are_those_of_the_whole_tree():
    with pytest.raises(ValueError, match=r"tree has 4 leaves, the nearest: l2/kernel"):
        update(volax.volumize({"l1": 1.0, "l2/kernal": 1.0}))


def test_pairs_may_be_any_iterable():
    update(volax.path_prox_sgd(0.1, 0.1, (pair for pair in [PAIR])))


def test_a_masked_key_needs_no_maximum():
    params = PARAMS | {"key": jax.random.key(0)}
    tx = volax.volumize(volax.relative_to_init(1.0), mask=volax.path_matches("^l1"))
    state = optax.tree.get(tx.init(params), "initial")
    assert float(state["l1"]["kernel"]) == 1.0
