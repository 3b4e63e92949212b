"""What every transformation must pass to be a full citizen of Optax."""

import functools
import inspect

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import volax
from tests import cases
from tests.cases import CASES, grads, jitted, params, train, trained
from volax import _paths
from volax._paths import named_leaves

# How many arrays for each parameter are kept; of relative_to_init the maximum.
KEPT = {
    "volumize-relative": 1,
    "volumized": 1,
    "lp_adam": 2,
    "path_prox_adam": 2,
    "lp_sgd": 1,
    "volumized_adam": 2,
    "proximal_adam": 2,
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def assert_close(actual, expected, ulp=8):
    """Equal to a few ulp of the tree's size, the same shapes and dtypes."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_tree_all_finite(actual)
    chex.assert_trees_all_close(actual, expected, rtol=ulp * 2**-23, atol=ulp * 2**-23)


def differs(a, b):
    return any(
        bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


@every_case
def test_missing_params_are_named(case):
    tx = case.make()
    # In an alias it may be Optax's half that asks first.
    name = "" if case.alone else f"^{case.factory.__name__} .*pass params to update"
    with pytest.raises(ValueError, match=name or "params"):
        tx.update(grads()[0], tx.init(params()))


@every_case
def test_unknown_extra_arguments_are_ignored_bare_and_chained(case):
    plain, tree = case.make(), params()
    for tx in (plain, optax.chain(plain, optax.scale(1.0))):
        assert isinstance(tx, optax.GradientTransformationExtraArgs)
        expected, _ = tx.update(grads()[0], tx.init(tree), tree)
        actual, _ = tx.update(grads()[0], tx.init(tree), tree, value=1.0, batch="x")
        chex.assert_trees_all_equal(actual, expected)


@every_case
def test_it_does_something(case):
    tree = trained(case)
    plain, _ = train(optax.sgd(0.1), params(), grads())
    assert differs(tree, plain)


@every_case
def test_masked_leaves_are_left_alone(case):
    mask = {
        "l1": {"kernel": True, "bias": True},
        "l2": {"kernel": True, "bias": False},
    }
    masked = optax.masked(case.make(), mask)
    tree, g = params(), grads()[0]
    updates, _ = masked.update(g, masked.init(tree), tree)
    expected, _ = (tx := case.make()).update(g, tx.init(tree), tree)
    expected["l2"]["bias"] = g["l2"]["bias"]
    chex.assert_trees_all_equal(updates, expected)


@every_case
def test_partition(case):
    labels = {
        "l1": {"kernel": "ours", "bias": "ours"},
        "l2": {"kernel": "ours", "bias": "theirs"},
    }
    tx = optax.partition({"ours": case.optimizer(), "theirs": optax.sgd(0.1)}, labels)
    tree, _ = train(tx, params(), grads())
    plain, _ = train(optax.sgd(0.1), params(), grads())
    ours = trained(case)
    chex.assert_trees_all_equal(tree["l2"]["bias"], plain["l2"]["bias"])
    chex.assert_trees_all_equal(tree["l1"], ours["l1"])
    chex.assert_trees_all_equal(tree["l2"]["kernel"], ours["l2"]["kernel"])


@every_case
def test_inject_hyperparams_changes_nothing(case):
    # Optax's Adam itself differs by more than rounding when b2 is a float32 array.
    moments = {"b1", "b2", "eps"} & inspect.signature(case.factory).parameters.keys()
    injected = optax.inject_hyperparams(case.factory, moments)(**case.kwargs)
    given = optax.tree.get(injected.init(params()), "hyperparams")
    assert given or not any(isinstance(v, float) for v in case.kwargs.values())
    tx = injected if case.alone else optax.chain(optax.sgd(0.1), injected)
    actual, _ = train(jitted(tx), params(), grads())
    expected = trained(case)
    assert_close(actual, expected)


@every_case
def test_injected_schedules_equal_our_own(case):
    numbers = {k: v for k, v in case.kwargs.items() if isinstance(v, float)}
    for argument, value in numbers.items():
        if argument == "momentum":
            continue
        schedule = optax.linear_schedule(value, value / 2, 3)
        own, _ = train(case.optimizer(**{argument: schedule}), params(), grads())
        moments = {"b1", "b2", "eps"} & inspect.signature(
            case.factory
        ).parameters.keys()
        injected = optax.inject_hyperparams(case.factory, moments)(
            **(case.kwargs | {argument: schedule})
        )
        tx = injected if case.alone else optax.chain(optax.sgd(0.1), injected)
        assert_close(train(tx, params(), grads())[0], own, ulp=32)
        assert differs(own, trained(case))


@every_case
def test_injected_hyperparameters_in_16_bits(case):
    tree = params(dtype=jnp.bfloat16)
    factory = optax.inject_hyperparams(case.factory, hyperparam_dtype=jnp.float32)
    injected = factory(**case.kwargs)
    tx = injected if case.alone else optax.chain(optax.sgd(0.1), injected)
    steps = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), g) for g in grads()]
    actual, _ = train(tx, tree, steps)
    expected, _ = train(case.optimizer(), tree, steps)
    chex.assert_tree_all_finite(actual)
    chex.assert_trees_all_equal_dtypes(actual, tree)
    # An injected float32 rate makes the updates float32, so the steps round less.
    chex.assert_trees_all_close(
        *jax.tree.map(lambda x: x.astype(jnp.float32), (actual, expected)), atol=0.05
    )


@every_case
def test_multi_steps_acts_on_whole_steps_only(case):
    steps = optax.MultiSteps(case.optimizer(), every_k_schedule=2)
    tx, tree = jitted(steps.gradient_transformation()), params()
    first, state = train(tx, tree, grads()[:1])
    chex.assert_trees_all_equal(first, tree)
    second, _ = train(tx, first, grads()[1:2], state)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads()[:2])
    assert_close(second, train(case.optimizer(), tree, [mean])[0])


@every_case
def test_apply_if_finite_skips_a_bad_step(case):
    tx = jitted(optax.apply_if_finite(case.optimizer(), max_consecutive_errors=3))
    bad = jax.tree.map(lambda x: x * jnp.nan, grads()[0])
    tree, _ = train(tx, params(), [bad, *grads()])
    assert_close(tree, trained(case))


@every_case
def test_schedule_free_runs(case):
    tx = optax.contrib.schedule_free(case.optimizer(), learning_rate=0.1, b1=0.9)
    tree, state = train(tx, params(), grads())
    chex.assert_tree_all_finite(optax.contrib.schedule_free_eval_params(state, tree))


@every_case
def test_lookahead_runs(case):
    tx = optax.lookahead(case.optimizer(), sync_period=2, slow_step_size=0.5)
    tree = optax.LookaheadParams.init_synced(params())
    tree, _ = train(tx, tree, grads())
    chex.assert_tree_all_finite((tree.fast, tree.slow))


BOUNDED = ["volumize", "volumize-elastic", "volumized", "volumized_adam"]


def inside():
    return jax.tree.map(lambda x: jnp.clip(x, -0.3, 0.3), params())


def largest(tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", BOUNDED)
def test_lookahead_keeps_bounds(name):
    tx = optax.lookahead(CASES[name].optimizer(mask="all"), 2, 0.5)
    for count in (7, 8):
        tree, _ = train(tx, optax.LookaheadParams.init_synced(inside()), grads(count))
        plain, _ = train(optax.sgd(0.1), inside(), grads(count))
        limit = np.float64(np.float32(0.3)) * (1 + 2**-22)
        assert largest(tree) <= limit < largest(plain)


def zeros(tree):
    return {k: np.asarray(x) == 0 for k, x in named_leaves(tree).items()}


SPARSE = {
    "lp_decay": CASES["lp_decay-1"].optimizer(mask="all", snap_below=0.3),
    "path_prox": CASES["path_prox"].optimizer(),
}


@pytest.mark.parametrize("name", SPARSE)
def test_lookahead_keeps_no_zeros(name):
    for count in (5, 6):
        plain, _ = train(SPARSE[name], params(), grads(count))
        assert any(x.any() for x in zeros(plain).values())
    tx = optax.lookahead(SPARSE[name], 2, 0.5)
    tree, _ = train(tx, optax.LookaheadParams.init_synced(params()), grads(6))
    assert not any(x.any() for x in zeros(tree).values())


@pytest.mark.parametrize("name", BOUNDED)
def test_schedule_free_keeps_no_bounds(name):
    base = CASES[name].optimizer(mask="all")
    tx = optax.contrib.schedule_free(base, learning_rate=0.1, b1=0.9)
    plain, _ = train(base, inside(), grads(20))
    _, state = train(tx, inside(), grads(20))
    assert largest(plain) <= 0.3 < 1.2 * 0.3 < largest(state.z)


@pytest.mark.parametrize("name", SPARSE)
def test_schedule_free_keeps_no_zeros(name):
    tx = optax.contrib.schedule_free(SPARSE[name], learning_rate=0.1, b1=0.9)
    plain = zeros(train(SPARSE[name], params(), grads(6))[0])
    tree, state = train(tx, params(), grads(6))
    average = optax.contrib.schedule_free_eval_params(state, tree)
    for sequence in (state.z, average):
        kept = [(zeros(sequence)[k] & x).sum() for k, x in plain.items()]
        assert sum(kept) < sum(x.sum() for x in plain.values())


@every_case
def test_freeze_last_keeps_frozen_leaves(case):
    frozen = {
        "l1": {"kernel": True, "bias": False},
        "l2": {"kernel": False, "bias": True},
    }
    tx = optax.chain(case.optimizer(), optax.freeze(frozen))
    tree, _ = train(tx, params(), grads())
    chex.assert_trees_all_equal(tree["l1"]["kernel"], params()["l1"]["kernel"])
    chex.assert_trees_all_equal(tree["l2"]["bias"], params()["l2"]["bias"])
    assert differs(tree["l2"]["kernel"], params()["l2"]["kernel"])


@pytest.mark.parametrize("name", CASES)
def test_map_params_finds_what_is_kept_for_each_parameter(name):
    tx = CASES[name].optimizer()
    _, state = train(tx, params(), grads())
    paths = named_leaves(params())
    seen = []

    def pushed(x, path):
        seen.append(path)
        return x + 1

    mapped = optax.tree.map_params(
        tx,
        pushed,
        state,
        _paths.map_with_path(lambda path, _: _paths.key_path(path), params()),
        transform_non_params=lambda x: x - 1,
    )
    assert sorted(seen) == sorted([*paths] * KEPT.get(name, 0))
    expected = {
        k: x + 1 if any(k.endswith(f"/{path}") for path in paths) else x - 1
        for k, x in named_leaves(state).items()
    }
    chex.assert_trees_all_equal(named_leaves(mapped), expected)


@every_case
def test_init_on_shapes_and_under_jit(case):
    tx = case.optimizer()
    expected = tx.init(params())
    shapes = jax.eval_shape(params)
    chex.assert_trees_all_equal_structs(tx.init(shapes), expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(shapes), expected)
    chex.assert_trees_all_equal(jax.jit(tx.init)(params()), expected)


@every_case
def test_init_on_parameters_that_a_traced_function_closes_over(case):
    tx, tree = case.optimizer(), params()
    expected = tx.init(tree)
    chex.assert_trees_all_equal(jax.jit(lambda: tx.init(tree))(), expected)
    shapes = jax.eval_shape(lambda: tx.init(tree))
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, expected)


def test_zeros_are_looked_for_in_one_transfer(monkeypatch):
    """Also in a traced function, where the arrays that it closes over are known."""
    tx, tree = CASES["lp_decay-1"].make(), params()
    fetched, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or get(x))
    tx.init(tree)
    (flags,) = fetched
    assert [jnp.shape(flag) for flag in flags.values()] == [()] * 4
    tree["l2"]["kernel"] *= 0
    for init in (tx.init, jax.jit(lambda _: tx.init(tree))):
        with pytest.raises(ValueError, match=r"l2/kernel' starts at all zeros"):
            init(tree)


def scanned(tx, tree, steps):
    def step(carry, g):
        tree, state = carry
        updates, state = tx.update(g, state, tree)
        return (optax.apply_updates(tree, updates), state), None

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *steps)
    return jax.lax.scan(step, (tree, tx.init(tree)), stacked)[0][0]


@every_case
def test_scan_equals_a_python_loop(case):
    tx = case.optimizer()
    expected, _ = train(tx, params(), grads())
    assert_close(jax.jit(functools.partial(scanned, tx))(params(), grads()), expected)


@every_case
def test_cond_equals_a_python_branch(case):
    tx, tree, g = case.optimizer(), params(), grads()[0]

    @jax.jit
    def step(flag, tree, state):
        return jax.lax.cond(
            flag,
            lambda s: tx.update(g, s, tree),
            lambda s: (jax.tree.map(jnp.zeros_like, tree), s),
            state,
        )

    updates, _ = step(True, tree, tx.init(tree))
    assert_close(updates, tx.update(g, tx.init(tree), tree)[0])
    updates, _ = step(False, tree, tx.init(tree))
    assert not differs(updates, jax.tree.map(jnp.zeros_like, tree))


@every_case
def test_vmap_over_seeds_equals_single_runs(case):
    tx = case.optimizer()
    trees = [params(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    together = jax.vmap(lambda tree: scanned(tx, tree, grads()))(stacked)
    for k, tree in enumerate(trees):
        expected, _ = train(tx, tree, grads())
        assert_close(jax.tree.map(lambda x, k=k: x[k], together), expected, ulp=16)


@every_case
def test_jit_with_donation_compiles_once_and_keeps_the_state_type(case):
    tx = case.optimizer()

    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(tree, state, g):
        traces.append(g)
        updates, state = tx.update(g, state, tree)
        return optax.apply_updates(tree, updates), state

    def kind(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    tree = params()
    state = tx.init(tree)
    before = kind((tree, state))
    for g in grads():
        tree, state = step(jax.tree.map(jnp.copy, tree), state, g)
        assert kind((tree, state)) == before
    assert len(traces) == 1
    assert_close(tree, train(tx, params(), grads())[0])


@every_case
def test_none_and_empty_containers_pass_through(case):
    tx = case.optimizer()
    extra = {"none": None, "empty": {}, "tuple": ()}
    tree, _ = train(tx, params() | extra, [g | extra for g in grads()])
    assert {k: tree[k] for k in extra} == extra
    expected, _ = train(tx, params(), grads())
    chex.assert_trees_all_equal({k: tree[k] for k in expected}, expected)


@every_case
def test_complex_leaves_are_refused_by_name(case):
    tree, g = params(), grads()[0]
    for layer in ("l1", "l2"):  # a rule may act on the second alone
        for some in (tree, g):
            some[layer]["kernel"] = some[layer]["kernel"].astype(jnp.complex64)
    tx = case.make()
    with pytest.raises(ValueError, match=r"l[12]/kernel' has dtype complex64"):
        tx.update(g, tx.init(tree), tree)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@every_case
def test_updates_keep_shape_and_dtype(case, dtype):
    tree, g = params(dtype=dtype), params(7, dtype)
    updates, _ = (tx := case.make()).update(g, tx.init(tree), tree)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, g)
    wider = params(7)
    updates, _ = tx.update(wider, tx.init(tree), tree)
    chex.assert_trees_all_equal_shapes(updates, wider)
    new = optax.apply_updates(tree, updates)
    chex.assert_trees_all_equal_dtypes(new, tree)


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
@every_case
def test_lowers_for_every_platform(case, platform):
    tx, tree = case.optimizer(), params()
    exported = jax.export.export(jax.jit(tx.update), platforms=[platform])
    assert exported(grads()[0], tx.init(tree), tree).platforms == (platform,)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(4, name="l1")(x))
        return nn.Dense(2, name="l2")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.l1 = nnx.Linear(3, 4, rngs=rngs)
        self.l2 = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.l2(nnx.relu(self.l1(x)))


class Layer(eqx.Module):
    kernel: jax.Array
    bias: jax.Array


class Equinox(eqx.Module):
    l1: Layer
    l2: Layer


@every_case
def test_linen_trees(case):
    x = jnp.ones((1, 3))
    variables = Linen().init(jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes(variables["params"], params())
    expected = trained(case)
    actual, _ = train(
        case.optimizer(), {"params": params()}, [{"params": g} for g in grads()]
    )
    chex.assert_trees_all_equal(actual["params"], expected)


@every_case
def test_nnx_optimizer(case):
    model = Nnx(nnx.Rngs(0))
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params())
    model = nnx.merge(graph, state)
    optimizer = nnx.Optimizer(model, case.optimizer(), wrt=nnx.Param)
    for g in grads():
        g_state = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(g_state, g)
        optimizer.update(model, g_state)
    expected = trained(case)
    actual = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_close(actual, expected)


@every_case
def test_equinox_trees(case):
    def module(tree):
        return Equinox(Layer(**tree["l1"]), Layer(**tree["l2"]))

    expected = trained(case)
    actual, _ = train(case.optimizer(), module(params()), map(module, grads()))
    chex.assert_trees_all_equal(actual, module(expected))


def test_haiku_spelling():
    def haiku(tree):
        return {
            "mlp/~/linear_0": {"w": tree["l1"]["kernel"], "b": tree["l1"]["bias"]},
            "mlp/~/linear_1": {"w": tree["l2"]["kernel"], "b": tree["l2"]["bias"]},
        }

    pair = volax.pair("mlp/~/linear_0/w", "mlp/~/linear_1/w", bias="mlp/~/linear_0/b")
    expected, _ = train(CASES["path_prox"].optimizer(), params(), grads())
    tx = CASES["path_prox"].optimizer(pairs=pair)
    actual, _ = train(tx, haiku(params()), map(haiku, grads()))
    chex.assert_trees_all_equal(actual, haiku(expected))


def test_sharded_parameters_stay_sharded():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P(None, None))
    tree = {"w": jax.device_put(jnp.ones((4, 4)), sharding)}
    tx = cases.CASES["volumize"].optimizer()
    state = jax.jit(tx.init)(tree)
    updates, _ = jax.jit(tx.update)(tree, state, tree)
    assert updates["w"].sharding.is_equivalent_to(sharding, 2)
