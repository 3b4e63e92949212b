"""Eight simulated devices, meshes of automatic and of explicit axes."""

import functools
import math
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.sharding import NamedSharding

import volax
from tests import cases, sharded
from tests.cases import CASES
from tests.sharded import LAYOUTS, UNITS

every_kind = pytest.mark.parametrize("kind", sharded.KINDS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())

PROXIMAL = {
    name: case
    for name, case in CASES.items()
    if any(word in name for word in ("path_prox", "group", "tune", "keep_units"))
}
SEPARABLE = {name: case for name, case in CASES.items() if name not in PROXIMAL}


def assert_same_numbers(actual, expected, ulp=16):
    host = jax.device_get
    chex.assert_trees_all_close(
        host(actual), host(expected), rtol=ulp * 2**-23, atol=1e-6
    )


def assert_same_shardings(actual, expected):
    """An axis of the mesh along the same axes of the arrays, by key path."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected)
    ):
        if a.ndim:
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (
                f"{jax.tree_util.keystr(path)}: {a.sharding}, was {b.sharding}"
            )


@functools.cache
def unsharded(name):
    """Parameters after one step on one device."""
    tx, params = CASES[name].optimizer(), sharded.tree(0)
    return jax.jit(sharded.step_of(tx))(params, tx.init(params), sharded.tree(1))[0]


@every_kind
@pytest.mark.parametrize("layout", ["fsdp-2", "tensor-fsdp", "apart"])
def test_separable_rules_add_no_collective_and_move_no_weight(kind, layout):
    """All in one program, which compiles faster than one for each."""
    params, grads = (
        sharded.put(sharded.tree(seed), LAYOUTS[layout], kind) for seed in range(2)
    )
    rules = {name: case.optimizer() for name, case in SEPARABLE.items()}
    states = {name: tx.init(params) for name, tx in rules.items()}

    def step(params, states, grads):
        return {
            name: sharded.step_of(tx)(params, states[name], grads)
            for name, tx in rules.items()
        }

    compiled = jax.jit(step).lower(params, states, grads).compile()
    assert sharded.collectives(compiled) == []
    for name, (new, state) in compiled(params, states, grads).items():
        assert_same_numbers(new, unsharded(name))
        assert_same_shardings(new, params)
        assert_same_shardings(state, states[name])


@pytest.mark.thinned
@every_kind
@every_layout
@pytest.mark.parametrize("name", PROXIMAL)
def test_proximal_rules_move_a_float_a_unit_and_side(name, kind, layout):
    tx = CASES[name].optimizer()
    compiled, (params, state, grads) = sharded.compiled_step(tx, kind, layout)
    new, _ = compiled(params, state, grads)
    assert_same_numbers(new, unsharded(name))
    assert_same_shardings(new, params)
    sent = sharded.collectives(compiled)
    # Balancing sums path norms, and dead units are judged by one more norm; so are
    # weights before and after the step.
    judged = {"path_prox-all": 5, "group_prox-all": 4, "tune_strength-units": 5}
    judged |= {"path_prox-none": 3}
    judged |= {"path_prox_adam": 5}  # it knows the gradients of both sides as well
    vectors = judged.get(name, 2)
    reduced = sum(c.numbers for c in sent if c.name == "all-reduce")
    assert reduced <= vectors * UNITS + 2
    for call in sent:
        assert call.numbers <= vectors * UNITS + 2, "no weight matrix moves"
    apart = ("path_prox-all", "path_prox_adam", "group_prox-all", "proximal-groups")
    # Units are ranked, or counted, among all, wherever they lie.
    everywhere = "tune" in name or "keep_units" in name
    local = name not in apart and not everywhere
    if kind == "explicit" and layout is LAYOUTS["tensor"] and local:
        assert sent == []


@every_kind
@pytest.mark.parametrize("layout", ["apart", "one-side"])
def test_the_eager_update_keeps_shardings(kind, layout):
    params, grads = (
        sharded.put(sharded.tree(seed), LAYOUTS[layout], kind) for seed in range(2)
    )
    tx = CASES["path_prox"].optimizer()
    updates, _ = tx.update(grads, tx.init(params), params)
    assert_same_shardings(updates, params)
    with jax.set_mesh(sharded.mesh(kind)):
        assert_same_shardings(tx.update(grads, tx.init(params), params)[0], params)
    assert_same_numbers(optax.apply_updates(params, updates), unsharded("path_prox"))


def on(mesh, x, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))


@every_kind
@pytest.mark.parametrize("normalize", ["project", "rescale", "none"])
def test_units_that_lie_in_part_of_an_axis(kind, normalize):
    """Flattened, read twice, stacked: per-unit vectors are gathered by index."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 2, 8), "head": (32, 4), "skip": (2, 8, 8), "b": (8,)}
    shapes |= {"w1": (4, 6, 8), "w2": (4, 8, 2)}
    params = {
        k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()
    }
    mesh = sharded.mesh(kind)
    specs = {
        "conv": P(None, None, None, "a"), "head": P(("a", "b"), None), "b": P("b"),
        "skip": P(None, "b", "a"), "w1": P("a", None, "b"), "w2": P(None, "a", None),
    }  # fmt: skip
    pairs = [
        volax.pair("conv", [volax.member("head", positions=4), "skip"], bias="b"),
        volax.pair("w1", "w2", layers=1),
    ]
    tx = volax.path_prox(0.1, 1.0, pairs, normalize=normalize)
    step = jax.jit(sharded.step_of(tx))
    expected, _ = step(params, tx.init(params), params)
    placed = {k: on(mesh, x, *specs[k]) for k, x in params.items()}
    compiled = step.lower(placed, tx.init(placed), placed).compile()
    new, _ = compiled(placed, tx.init(placed), placed)
    assert_same_numbers(new, expected)
    assert_same_shardings(new, placed)
    assert all(c.numbers <= 3 * 32 for c in sharded.collectives(compiled))
    norms = volax.path_norm(placed, pairs)
    assert_same_numbers(norms, volax.path_norm(params, pairs))


@every_kind
def test_vmap_and_scan_on_a_mesh(kind):
    layout, tx = LAYOUTS["tensor"], CASES["path_prox"].optimizer()
    params, grads = (sharded.put(sharded.tree(seed), layout, kind) for seed in range(2))

    @jax.jit
    def scanned(params, grads):
        def step(carry, _):
            params, state = carry
            return sharded.step_of(tx)(params, state, grads), None

        return jax.lax.scan(step, (params, tx.init(params)), length=1)[0][0]

    new = scanned(params, grads)
    assert_same_numbers(new, unsharded("path_prox"))
    assert_same_shardings(new, params)
    seeds = [jax.tree.map(lambda x: x[None], tree) for tree in (params, grads)]
    many = jax.jit(jax.vmap(lambda p, g: sharded.step_of(tx)(p, tx.init(p), g)[0]))
    assert_same_numbers(
        jax.tree.map(lambda x: x[0], many(*seeds)), unsharded("path_prox")
    )


def test_units_that_lie_whole_on_a_device_in_shard_map():
    """An ensemble: each device holds a model of its own, and its norms are its own."""
    tx, mesh = CASES["path_prox"].optimizer(), jax.make_mesh((8,), ("model",))
    models = [(sharded.tree(seed), sharded.tree(seed + 8)) for seed in range(8)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *models)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("model"), out_specs=P("model"))
    def step(pair):
        params, grads = jax.tree.map(lambda x: x[0], pair)
        new, _ = sharded.step_of(tx)(params, tx.init(params), grads)
        return jax.tree.map(lambda x: x[None], new)

    placed = jax.tree.map(lambda x: on(mesh, x, "model"), stacked)
    new = jax.device_get(step(placed))
    for k, (params, grads) in enumerate(models):
        alone, _ = sharded.step_of(tx)(params, tx.init(params), grads)
        assert_same_numbers(jax.tree.map(lambda x, k=k: x[k], new), alone)


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["l1"]["kernel"] + params["l1"]["bias"])
    # On explicit axes a product of two arrays that are split alike has to say it.
    mesh, (rows, _) = (of := jax.typeof(hidden).sharding).mesh, of.spec
    where = NamedSharding(mesh, P(rows, None)) if mesh.explicit_axes else None
    out = jnp.dot(hidden, params["l2"]["kernel"], out_sharding=where)
    return out + params["l2"]["bias"]


def half_dead(seed=0):
    """Parameters of which every second unit is dead."""
    params = sharded.tree(seed)
    params["l2"]["kernel"] = params["l2"]["kernel"].at[::2].set(0)
    return params


@every_kind
@pytest.mark.parametrize("layout", ["tensor", "fsdp"])
def test_training_goes_on_after_compact(kind, layout):
    params = sharded.put(half_dead(), LAYOUTS[layout], kind)
    tx = optax.chain(optax.adam(0.1), volax.path_prox(0.1, 0.1, cases.PAIR))
    state = tx.init(params)
    x = on(sharded.mesh(kind), jnp.ones((8, 16)), "a" if layout == "fsdp" else None)

    where = jax.tree.map(lambda leaf: leaf.sharding, params)

    # On automatic axes the shardings of a whole step are the user's to fix.
    @functools.partial(jax.jit, out_shardings=(where, None))
    def step(params, state):
        grads = jax.grad(lambda p: jnp.square(mlp(p, x)).mean())(params)
        return sharded.step_of(tx)(params, state, grads)

    small = volax.compact(
        params, cases.PAIR, opt_state=state, check=(mlp, mlp, (x,)), round_to=8
    )
    assert small.sizes["l1/kernel"] == (16, UNITS // 2)
    assert_same_shardings(small.params, params)
    assert_same_shardings(small.opt_state[0][0].mu, params)
    new, _ = step(small.params, small.opt_state)
    assert_same_shardings(new, params)
    assert any(
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (new, small.params)))
    )


@every_kind
def test_an_axis_that_the_mesh_no_longer_divides_is_whole(kind):
    params = half_dead()
    params["l2"]["kernel"] = params["l2"]["kernel"].at[1:7].set(0)
    params = sharded.put(params, LAYOUTS["tensor-fsdp"], kind)
    small = volax.compact(params, cases.PAIR).params  # 13 units on 2 devices
    assert small["l1"]["kernel"].sharding.spec == P("a", None)
    assert small["l1"]["bias"].sharding.spec == P(None)
    assert small["l2"]["kernel"].sharding.spec == P(None, "a")


@every_kind
def test_groups_are_checked_where_the_parameters_lie(kind):
    params = sharded.put(sharded.tree(0), LAYOUTS["tensor"], kind)
    traces = []

    def traced(params, x):
        traces.append(jax.tree.map(jax.typeof, params))
        return mlp(params, x)

    x = on(sharded.mesh(kind), jnp.ones((3, 16)))
    (difference,) = volax.check_groups(cases.PAIR, traced, params, x)
    assert difference < 1e-3
    assert all(trace == traces[0] for trace in traces)
    shapes = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
    )
    traces.clear()
    volax.check_groups(cases.PAIR, traced, shapes, x)
    assert traces[0] == jax.tree.map(jax.typeof, params)


@every_kind
@pytest.mark.parametrize(("bits", "make"), [(1, volax.binarize), (2, volax.ternarize)])
@pytest.mark.parametrize("channel_axis", [None, -1])
def test_packed_weights_stay_on_the_mesh(kind, bits, make, channel_axis):
    params = sharded.put(sharded.tree(0), LAYOUTS["tensor-fsdp"], kind)
    rough = make(params, channel_axis=channel_axis)
    assert_same_shardings(rough, params)
    packed = volax.pack(rough, bits=bits, channel_axis=channel_axis)
    kernel = packed["l1"]["kernel"]
    assert kernel.data.sharding.is_fully_replicated
    assert len(kernel.data.sharding.device_set) == 8
    x = on(sharded.mesh(kind), jnp.ones((3, 16)))
    np.testing.assert_array_equal(
        *jax.device_get((kernel.unpack(), rough["l1"]["kernel"]))
    )
    assert_same_numbers(jax.jit(lambda x, w: x @ w)(x, kernel), x @ kernel.unpack())


@every_kind
def test_load_puts_arrays_where_those_before_lay(kind, tmp_path):
    params = sharded.put(sharded.tree(0), LAYOUTS["tensor-fsdp"], kind)
    path = tmp_path / "small.safetensors"
    volax.save(path, params)
    loaded = volax.load(path, into=params).params
    assert_same_shardings(loaded, params)
    assert_same_numbers(loaded, params, ulp=0)
    shapes = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
    )
    assert_same_shardings(volax.load(path, into=shapes).params, params)
    packed = volax.pack(volax.binarize(params), bits=1)
    volax.save(path, packed)
    assert_same_shardings(volax.load(path, into=packed).params, packed)
    assert volax.load(path).params["l2"]["bias"].sharding.num_devices == 1


def test_the_table_of_the_readme_is_what_is_measured():
    readme = pathlib.Path(__file__).parents[1] / "README.md"
    assert sharded.table() in readme.read_text()


def test_a_collective_is_seen():
    """The reader of programs finds a gathered matrix."""
    mesh = sharded.mesh("auto")
    w = on(mesh, jnp.ones((16, UNITS)), "a")
    everywhere = NamedSharding(mesh, P())
    program = jax.jit(lambda w: w + 1, out_shardings=everywhere).lower(w).compile()
    assert sharded.collectives(program) == [("all-gather", math.prod(w.shape))]
