"""The controller: shares met and held, what is measured, what it refuses."""

import functools
from itertools import pairwise
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import volax
from tests import cases
from tests.cases import CASES, PAIR, grads, params, train
from tests.compress.models import MODELS, killed
from volax import _paths
from volax.compress._fitted import fitted
from volax.compress._plan import plan
from volax.examples.data import load_dataset
from volax.pairs import _judge

RATE = 0.1


def scanned(tx, tree, gradient, steps):
    """Parameters, state, and the strengths and shares of all steps."""

    def step(carry, count):
        tree, state = carry
        updates, state = tx.update(gradient(tree, count), state, tree)
        figures = [optax.tree.get(state, name) for name in ("strength", "share")]
        return (optax.apply_updates(tree, updates), state), figures

    @jax.jit
    def run(tree):
        carry, figures = jax.lax.scan(step, (tree, tx.init(tree)), jnp.arange(steps))
        return (*carry, *figures)

    return run(tree)


# Of the lasso with an orthonormal design, |w - goal|^2 / 2 + strength |w|, exactly the
# weights whose goal is at most the strength are zero: the share is the strength.
GOAL = jnp.arange(1, 1001).reshape(10, 100) / 1000


def lasso(strength):
    step = volax.proximal(RATE, strength, volax.prox.soft_threshold)
    return optax.chain(optax.sgd(RATE), step)


def towards_goal(tree, count):
    return jax.tree.map(lambda w: w - GOAL, tree)


def zero_share(tree):
    leaves = [x for x in jax.tree.leaves(tree) if x.ndim > 1]
    return sum(float((x == 0).sum()) for x in leaves) / sum(x.size for x in leaves)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.6, 0.9])
def test_the_share_of_a_lasso_ends_at_the_target(target):
    tx = volax.tune_strength(lasso, target, measure="weights", steps=600)
    tree, state, _, shares = scanned(tx, {"w": GOAL}, towards_goal, 900)
    assert abs(zero_share(tree) - target) <= 0.01
    assert optax.tree.get(state, "share") == shares[-1]
    assert int((shares < target - 0.01).sum()) <= 630, "met in about steps"
    # It comes from below, and what is left is where it would be without a penalty.
    assert (np.diff(shares) >= 0).all()
    left = tree["w"] != 0
    np.testing.assert_allclose(tree["w"][left], GOAL[left], rtol=1e-5)
    # It is the smallest that are gone, for they are the first to go.
    assert float(GOAL[~left].max(initial=0)) <= target + 0.02


def test_a_schedule_is_the_course_itself():
    def target(count):
        return 0.5 * jnp.clip((count - 50) / 250, 0, 1)

    tx = volax.tune_strength(lasso, target, measure="weights", steps=400, initial=0.05)
    *_, shares = scanned(tx, {"w": GOAL}, towards_goal, 350)
    expected = jax.vmap(target)(jnp.arange(350))
    np.testing.assert_allclose(shares, expected, atol=0.08)
    np.testing.assert_allclose(shares[-1], 0.5, atol=0.01)


def test_an_injected_schedule_is_the_course_where_it_is_static():
    """Elsewhere it arrives as a number, which is followed on the cubic."""

    def target(count):
        return 0.5 * jnp.clip((count - 50) / 100, 0, 1)

    given = {"measure": "weights", "steps": 400, "initial": 0.05}

    def shares(static):
        inject = optax.inject_hyperparams(volax.tune_strength, static_args=static)
        tx = inject(make=lasso, target=target, **given)
        return scanned(tx, {"w": GOAL}, towards_goal, 200)[3]

    static = ("make", "measure")
    alone = volax.tune_strength(lasso, target, **given)
    expected = scanned(alone, {"w": GOAL}, towards_goal, 200)[3]
    np.testing.assert_array_equal(shares((*static, "target")), expected)
    assert expected[-1] > 0.49
    # The cubic of 400 steps is at 0.83 after 200.
    assert shares(static)[-1] < 0.43


ODD = {
    "scalar": np.zeros(()),
    "vector": np.array([0.0, 1.0, 0.0]),
    "nothing": np.zeros((0, 4)),
    "infinite": np.array([[np.inf, 0.0, -np.inf], [0.0, 0.0, 2.0]]),
    "four axes": np.arange(24).reshape(2, 3, 2, 2) % 3,
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_zeros_are_counted_in_every_shape(dtype):
    tree = {name: jnp.asarray(x, dtype) for name, x in ODD.items()}
    tx = volax.tune_strength(lasso, 0.5, measure="weights", mask="all")
    _, state = tx.update(tree, tx.init(tree), tree)
    zeros = sum((x == 0).sum() for x in ODD.values())
    share = float(optax.tree.get(state, "share"))
    assert share == pytest.approx(zeros / sum(x.size for x in ODD.values()))


def test_a_row_with_a_nan_has_no_zeros():
    tree = {"w": jnp.array([[jnp.nan, 0.0, 1.0], [0.0, 0.0, 1.0]])}
    tx = volax.tune_strength(lasso, 0.5, measure="weights")
    _, state = tx.update(tree, tx.init(tree), tree)
    assert float(optax.tree.get(state, "share")) == pytest.approx(2 / 6)


@pytest.mark.parametrize("measure", ["weights", "units"])
def test_measuring_writes_no_array_as_large_as_the_weights(measure):
    tree = {"a": jnp.ones((128, 256)), "v": jnp.ones((256, 128))}
    groups = volax.pair("a", "v") if measure == "units" else None
    tx = volax.tune_strength(
        lambda strength: optax.identity(), 0.5, measure=measure, groups=groups
    )
    step = jax.jit(tx.update).lower(tree, tx.init(tree), tree).compile()
    # A byte a weight would be as many as there are weights in a leaf.
    memory = step.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < tree["a"].size / 2


def test_what_starts_at_zero_trains_before_the_course_leaves_zero():
    tx = volax.tune_strength(lasso, 0.5, measure="weights", steps=400)
    tree, *_ = scanned(tx, {"w": jnp.zeros_like(GOAL)}, towards_goal, 500)
    assert abs(zero_share(tree) - 0.5) <= 0.01


def chain(params, x):
    for k in range(3):
        x = jax.nn.relu(x @ params[f"w{k}"] + params[f"b{k}"])
    return x @ params["w3"]


def chain_params(seed=0, sizes=(5, 24, 16, 12, 3)):
    rng = np.random.default_rng(seed)
    tree = {
        f"w{k}": jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32)
        for k, s in enumerate(pairwise(sizes))
    }
    return tree | {
        f"b{k}": jnp.zeros(n, jnp.float32) for k, n in enumerate(sizes[1:-1])
    }


@functools.cache
def chain_groups():
    return volax.find_groups(chain, chain_params(), jnp.ones((1, 5)))


def share_left(tree, measure):
    """The share that compacting removes, from the arrays that it gives."""
    small = volax.compact(tree, chain_groups())
    before, after = (_paths.named_leaves(t) for t in (tree, small.params))
    if measure == "units":
        counts = [(g["left"], *g["units"]) for g in small.manifest["groups"]]
        return 1 - sum(c[0] for c in counts) / sum(c[1] for c in counts)
    if measure == "bytes":
        sizes = [sum(x.nbytes for x in t.values()) for t in (before, after)]
    else:
        sizes = [sum(x.size for x in t.values() if x.ndim > 1) for t in (before, after)]
    return 1 - sizes[1] / sizes[0]


def rows(strength):
    """Units die by the norm of their outgoing weights."""
    group = functools.partial(volax.prox.group_soft_threshold, axis=1)
    return optax.chain(optax.sgd(RATE), volax.proximal(RATE, strength, group))


@pytest.mark.parametrize("measure", ["units", "multiply_adds", "bytes"])
def test_what_compact_removes_meets_the_target(measure):
    """In a chain, where units die through their neighbours as well."""
    goal = chain_params(1)
    tx = volax.tune_strength(
        rows, 0.5, measure=measure, groups=chain_groups(), steps=600
    )
    tree, _, _, shares = scanned(
        tx, chain_params(), lambda tree, _: jax.tree.map(jnp.subtract, tree, goal), 900
    )
    removed = share_left(tree, measure)
    assert float(shares[-1]) == pytest.approx(removed, abs=1e-6)
    # Of 52 units one is two points, and up to five of the multiply-adds.
    assert abs(removed - 0.5) <= (0.04 if measure == "units" else 0.06)


@pytest.mark.parametrize("name", MODELS)
def test_dead_units_are_those_that_compact_finds(name):
    _, make, groups, _ = MODELS[name]
    tree, _ = killed(make(0), groups, 0)
    leaves = _paths.named_leaves(tree)
    full = fitted(groups, leaves, "test")
    known = plan(
        full, leaves, round_to=1, keep=None, proven=True, folding="counted", owners={}
    )
    inside = {m.path for g in full for m in (*g.members, *g.fixed)}
    arrays = {k: jnp.asarray(x) for k, x in leaves.items() if k in inside}
    found = jax.jit(lambda leaves: _judge.dead_units(full, leaves))(arrays)
    for actual, expected in zip(found, known.gone):
        np.testing.assert_array_equal(actual, expected)


def killed_in_a_row():
    """Of three layers the last unit of the last is dead, and feeds on one alone."""
    tree = chain_params()
    tree["w3"] = tree["w3"].at[0].set(0)
    tree["w2"] = tree["w2"].at[0, 1:].set(0)
    tree["w1"] = tree["w1"].at[0, 1:].set(0)
    return tree


def test_units_that_only_dead_units_read_are_dead():
    found = jax.jit(lambda t: _judge.dead_units(tuple(chain_groups()), t))(
        killed_in_a_row()
    )
    assert [int(d.sum()) for d in found] == [1, 1, 1]
    assert [
        int(_judge.judge(g, killed_in_a_row()).dead(g).sum()) for g in chain_groups()
    ] == [0, 0, 1]


def on_rows(target=0.5, steps=200, **options):
    """Of the twenty units of ``wide`` the ten of the smallest outgoing weights."""
    group = functools.partial(volax.prox.group_soft_threshold, axis=1)
    outgoing = volax.path_matches("l2/kernel")

    def make(strength):
        step = volax.proximal(RATE, strength, group, mask=outgoing)
        return optax.chain(optax.sgd(RATE), step)

    given: dict[str, Any] = {"groups": PAIR, "initial": 0.01} | options
    return volax.tune_strength(make, target, steps=steps, **given)


def wide(units=20):
    """Outgoing weights of norms from 0.5 to 1.5, in a random order."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 2 * np.pi, units)
    norms = rng.permutation(np.linspace(0.5, 1.5, units))
    outgoing = norms[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    tree = {
        "l1": {"kernel": rng.normal(size=(3, units)), "bias": rng.normal(size=units)},
        "l2": {"kernel": outgoing, "bias": rng.normal(size=2)},
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def towards_wide(tree, count):
    return jax.tree.map(jnp.subtract, tree, wide())


def continued(tx, tree, state, steps):
    """Parameters and state after so many steps more."""

    def step(carry, count):
        tree, state = carry
        updates, state = tx.update(towards_wide(tree, count), state, tree)
        return (optax.apply_updates(tree, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
    return run((tree, state))


def dead(tree):
    return np.asarray(~tree["l2"]["kernel"].any(axis=1))


def test_dead_units_stay_dead_and_the_others_train_on():
    tx = on_rows()
    tree, state, *_ = scanned(tx, wide(), towards_wide, 300)
    gone = dead(tree)
    norms = np.linalg.norm(wide()["l2"]["kernel"], axis=1)
    np.testing.assert_array_equal(gone, norms <= np.sort(norms)[9])
    # The strength is 0 now, so what is left takes the steps of SGD.
    moved = jax.tree.map(lambda w: w + 1, tree)
    after, _ = continued(tx, moved, state, 1)
    np.testing.assert_array_equal(dead(after), 0 * gone)
    after, _ = continued(tx, tree, state, 100)
    np.testing.assert_array_equal(dead(after), gone)
    np.testing.assert_allclose(
        after["l2"]["kernel"][~gone], wide()["l2"]["kernel"][~gone], rtol=1e-5
    )


def test_the_state_has_names():
    tx = optax.chain(optax.sgd(RATE), CASES["tune_strength-weights"].make())
    state = tx.init(params())
    assert float(optax.tree.get(state, "strength")) == pytest.approx(0.3)
    assert float(optax.tree.get(state, "share")) == 0.0
    tree, state = train(tx, params(), grads(5), state)
    _, after = train(tx, tree, grads(1), state)
    assert float(optax.tree.get(after, "share")) == pytest.approx(zero_share(tree))
    assert zero_share(tree) > 0
    changed = optax.tree.set(state, strength=jnp.float32(3.0))
    assert float(optax.tree.get(changed, "strength")) == 3.0


def test_the_target_can_be_moved_while_training_runs():
    tx = optax.inject_hyperparams(volax.tune_strength, static_args=("make", "measure"))(
        make=lasso, target=0.3, measure="weights", steps=400
    )
    tree, state, *_ = scanned(tx, {"w": GOAL}, towards_goal, 500)
    assert abs(zero_share(tree) - 0.3) <= 0.01
    state = optax.tree.set(state, target=jnp.float32(0.6))

    @jax.jit
    def step(carry, _):
        tree, state = carry
        updates, state = tx.update(towards_goal(tree, 0), state, tree)
        return (optax.apply_updates(tree, updates), state), None

    (tree, _), _ = jax.lax.scan(step, (tree, state), length=300)
    assert abs(zero_share(tree) - 0.6) <= 0.02


def test_injected_inside_for_what_is_not_the_strength():
    def make(strength):
        @optax.inject_hyperparams
        def inner(rate):
            return volax.path_prox_sgd(rate, strength, PAIR, normalize="project")

        return inner(rate=RATE)

    tx = volax.tune_strength(make, 0.5, groups=PAIR, steps=200, initial=0.01)
    _, state, *_ = scanned(tx, wide(), towards_wide, 300)
    assert float(optax.tree.get(state, "share")) == 0.5
    assert float(optax.tree.get(state, "rate")) == pytest.approx(RATE)


def test_the_target_is_met_in_whole_steps_of_multi_steps():
    tx = optax.MultiSteps(on_rows(), every_k_schedule=2)
    tree, _ = continued(tx, wide(), tx.init(wide()), 600)
    expected, _ = continued(on_rows(), wide(), on_rows().init(wide()), 300)
    assert dead(tree).sum() == 10
    chex.assert_trees_all_close(tree, expected, rtol=1e-5)


def test_training_goes_on_from_a_checkpoint(tmp_path):
    tx = on_rows()
    tree, state = continued(tx, wide(), tx.init(wide()), 100)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
        jax.eval_shape(lambda: (wide(), tx.init(wide()))),
    )
    with ocp.StandardCheckpointer() as store:
        store.save(tmp_path / "saved", (tree, state))
        store.wait_until_finished()
        kept, kept_state = store.restore(tmp_path / "saved", like)
    chex.assert_trees_all_equal((kept, kept_state), (tree, state))
    chex.assert_trees_all_equal(
        continued(tx, kept, kept_state, 40), continued(tx, tree, state, 40)
    )


def test_a_step_that_is_not_finite_is_skipped_whole():
    tx = optax.apply_if_finite(on_rows(), max_consecutive_errors=2)
    tree, state = continued(tx, wide(), tx.init(wide()), 100)
    bad = jax.tree.map(lambda x: x * jnp.nan, tree)
    updates, after = tx.update(bad, state, tree)
    assert not any(x.any() for x in jax.tree.leaves(updates))
    for name in ("strength", "share"):
        assert optax.tree.get(after, name) == optax.tree.get(state, name)


def test_a_whole_masked_group_is_left_out():
    pairs = [PAIR, volax.pair("m1", "m2")]
    tx = volax.tune_strength(
        lambda s: volax.path_prox(RATE, s, pairs), 0.5, groups=pairs, steps=20
    )
    tree = params() | {"m1": jnp.ones((2, 3)), "m2": jnp.ones((3, 2))}
    masked = optax.masked(tx, {"l1": True, "l2": True, "m1": False, "m2": False})
    updates, _ = cases.update(masked, tree, tree)
    assert jnp.all(updates["m1"] == tree["m1"])
    half = optax.masked(tx, {"l1": True, "l2": True, "m1": True, "m2": False})
    with pytest.raises(ValueError, match="masked out by half: m2"):
        cases.update(half, tree, tree)


def decay(strength):
    return volax.lp_decay(RATE, strength, 1.0)


ERRORS = [
    (lambda: volax.tune_strength(cast(Any, 0.1), 0.5, groups=PAIR), "make must be a f"),
    (lambda: volax.tune_strength(decay, 1.0, groups=PAIR), "target .*1.*got 1.0"),
    (lambda: volax.tune_strength(decay, -0.1, groups=PAIR), "target .*got -0.1"),
    (lambda: volax.tune_strength(decay, 0.5, measure="unit"), "measure .*'units'.*got"),
    (lambda: volax.tune_strength(decay, 0.5), "measure='units' needs groups"),
    (
        lambda: volax.tune_strength(decay, 0.5, measure="bytes"),
        "measure='bytes' needs groups",
    ),
    (
        lambda: volax.tune_strength(decay, 0.5, measure="weights", groups=PAIR),
        "knows no groups",
    ),
    (lambda: volax.tune_strength(decay, 0.5, groups=[]), "groups is empty"),
    (
        lambda: volax.tune_strength(decay, 0.5, groups=PAIR, mask="all"),
        "mask is for measure='weights', got 'all'",
    ),
    (lambda: volax.tune_strength(decay, 0.5, groups=PAIR, steps=0), "steps .*got 0"),
    (
        lambda: volax.tune_strength(decay, 0.5, groups=PAIR, initial=-1.0),
        "initial .*got -1.0",
    ),
]


@pytest.mark.parametrize(("build", "message"), ERRORS)
def test_arguments_that_are_wrong(build, message):
    with pytest.raises(ValueError, match=f"tune_strength: .*{message}"):
        build()


def test_a_transformation_that_would_keep_the_first_strength():
    def make(strength):
        inner = optax.inject_hyperparams(volax.path_prox_sgd, static_args="pairs")
        return inner(RATE, strength, pairs=PAIR)

    tx = volax.tune_strength(make, 0.5, groups=PAIR)
    for init in (tx.init, jax.jit(tx.init), lambda p: jax.eval_shape(tx.init, p)):
        with pytest.raises(ValueError, match=r"keeps the strength .*'strength'"):
            init(params())


def test_what_make_builds_is_no_transformation():
    tx = volax.tune_strength(lambda s: cast(Any, s), 0.5, groups=PAIR)
    with pytest.raises(ValueError, match="make must build an optax"):
        tx.init(params())


def test_groups_that_cannot_be_cut_are_not_counted():
    table = jnp.ones(4)

    def fn(params, x):
        hidden = jax.nn.relu(x @ params["l1"]["kernel"] + params["l1"]["bias"])
        return hidden * table @ params["l2"]["kernel"]

    groups = volax.find_groups(fn, params(), jnp.ones((1, 3)))
    assert groups[0].carries
    tx = volax.tune_strength(decay, 0.5, groups=groups)
    with pytest.raises(ValueError, match=r"none of the groups can be cut: .*captured"):
        cases.update(tx, params(), params())


@functools.cache
def digits():
    return jax.device_put(load_dataset("digits"))


def digits_net(tree, x):
    hidden = jax.nn.relu(x @ tree["l1"]["kernel"] + tree["l1"]["bias"])
    return hidden @ tree["l2"]["kernel"] + tree["l2"]["bias"]


def digits_params(units):
    keys = jax.random.split(jax.random.key(0))
    draw = jax.nn.initializers.he_normal()
    return {
        "l1": {"kernel": draw(keys[0], (64, units)), "bias": jnp.zeros(units)},
        "l2": {"kernel": draw(keys[1], (units, 10)), "bias": jnp.zeros(10)},
    }


COSINE = optax.cosine_decay_schedule(0.1, 400)
DIGITS = {
    "path_prox, SGD": (
        lambda s: volax.path_prox_sgd(
            COSINE, s, PAIR, momentum=0.9, normalize="project"
        ),
        {"groups": PAIR},
    ),
    "lp_decay, Adam": (
        lambda s: volax.lp_adam(
            optax.cosine_decay_schedule(3e-3, 400), s, 0.5, snap_below=1e-6
        ),
        {"measure": "weights"},
    ),
}


@pytest.mark.parametrize("target", [0.3, 0.6])
@pytest.mark.parametrize("name", DIGITS)
def test_digits(name, target):
    make, options = DIGITS[name]
    data = digits()
    tx = volax.tune_strength(make, target, steps=200, **options)

    def gradient(tree, count):
        rows = jax.random.randint(jax.random.key(count), (64,), 0, 1438)

        def loss(tree):
            logits = digits_net(tree, data.train_inputs[rows])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, data.train_labels[rows]
            ).mean()

        return jax.grad(loss)(tree)

    tree, state, *_ = scanned(tx, digits_params(100), gradient, 400)
    gone = zero_share(tree)
    if "groups" in options:
        left = volax.compact(tree, PAIR).manifest["groups"][0]["left"]
        gone = 1 - left / 100
    assert abs(gone - target) <= 0.01
    assert float(optax.tree.get(state, "share")) == pytest.approx(gone, abs=1e-6)
    hits = digits_net(tree, data.test_inputs).argmax(-1) == data.test_labels
    assert hits.mean() >= 0.9
