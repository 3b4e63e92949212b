"""Networks of the examples on eight simulated devices, in every layout of a mesh."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import P
from jax.sharding import NamedSharding

import volax
from tests import sharded
from tests.cases import CASES
from tests.test_sharding import (
    PROXIMAL,
    SEPARABLE,
    assert_same_numbers,
    assert_same_shardings,
)
from volax.examples.models import GPT, MLP, VGG19

slow = pytest.mark.slow

# The axes of the mesh along which the last two axes of a kernel lie, and a vector.
LAYOUTS = {
    "data": (None, None, None), "fsdp": ("a", None, None),
    "tensor": (None, "b", "b"), "mixed": ("a", "b", "b"),
}  # fmt: skip
# What a tiny model is tested with in every run of the tests; all are slow.
FEW = {"lp_decay-0.8", "volumized", "path_prox", "keep_units"}


class Net(NamedTuple):
    """A network as it is evaluated; nothing reads every second unit of one layer."""

    graph: Any
    params: Any
    rest: Any
    inputs: jax.Array
    groups: Any
    pairs: Any

    def run(self, params, rest, inputs):
        return nnx.merge(self.graph, params, rest)(inputs)


def _build(name) -> tuple[nnx.Module, jax.Array, tuple[Any, ...], int]:
    rngs = nnx.Rngs(0)
    if name == "mlp":
        model, inputs = MLP(64, (128, 64), 8, rngs=rngs), jnp.ones((8, 64))
        return model, inputs, ("hidden1", "kernel"), 0
    if name == "gpt":
        model = GPT(16, 8, 16, width=32, layers=1, heads=4, rngs=rngs)
        inputs = jnp.arange(64, dtype=jnp.int32).reshape(8, 8) % 16
        return model, inputs, ("blocks", 0, "down", "kernel"), 0
    model = VGG19((32, 32, 3), 8, 1 / 4, rngs=rngs)
    return model, jnp.ones((8, 32, 32, 3)), ("stages", 4, 2, "conv", "kernel"), 2


@functools.cache
def net(name):
    model, inputs, path, axis = _build(name)
    model.eval()
    groups, pairs = volax.find_groups(model, inputs), volax.find_pairs(model, inputs)
    graph, *states = nnx.split(model, nnx.Param, ...)
    params, rest = map(nnx.to_pure_dict, states)
    node = params
    for key in path[:-1]:
        node = node[key]
    unread = (slice(None),) * axis + (slice(None, None, 2),)
    node[path[-1]] = node[path[-1]].at[unread].set(0)
    return Net(graph, params, rest, inputs, groups, pairs)


def put(tree, kind, layout):
    """The arrays on a mesh; axes that it does not divide lie whole."""
    mesh, (rows, columns, vector) = sharded.mesh(kind), LAYOUTS[layout]

    def place(x):
        names = [vector] if x.ndim == 1 else [None] * (x.ndim - 2) + [rows, columns]
        spec = [
            name if name and n % mesh.shape[name] == 0 else None
            for name, n in zip(names, x.shape)
        ]
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(place, tree)


def gradients(params):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        jax.random.normal(key, x.shape) * 0.1 for key, x in zip(keys, leaves)
    )


def rule(name, found):
    """The transformation of the table, for the units of this network."""
    case = CASES[name]
    if name == "tune_strength-units":

        def make(strength):
            return volax.path_prox(0.1, strength, found.pairs)

        tuned = volax.tune_strength(make, 0.5, groups=found.pairs, steps=8, initial=0.3)
        return optax.chain(optax.sgd(0.1), tuned)
    given = {"pairs": found.pairs, "groups": found.groups}
    if case.kwargs.get("normalize") == "project":
        given["pairs"] = found.pairs.disjoint()
    if "balance" in case.kwargs:  # which needs pairs apart, and biases that scale
        return case.optimizer(pairs=found.pairs, balance=False)
    return case.optimizer(**{k: v for k, v in given.items() if k in case.kwargs})


@functools.cache
def unsharded(model, names):
    params, (_, step) = net(model).params, rules(model, names)
    return jax.jit(step)(params, states(model, names, params), gradients(params))


@functools.cache
def rules(model, names):
    txs = {name: rule(name, net(model)) for name in names}

    def step(params, states, grads):
        return {
            name: sharded.step_of(tx)(params, states[name], grads)
            for name, tx in txs.items()
        }

    return txs, step


def states(model, names, params):
    return {name: tx.init(params) for name, tx in rules(model, names)[0].items()}


def on_devices(model, names, kind, layout):
    """One step of each rule: the program, what it gives, and what it was given."""
    params = put(net(model).params, kind, layout)
    grads = put(gradients(net(model).params), kind, layout)
    given = params, states(model, names, params), grads
    compiled = jax.jit(rules(model, names)[1]).lower(*given).compile()
    return compiled, compiled(*given), given


def where(quick, *names):
    """Each network, kind of mesh and layout; those that are not quick are slow."""
    return [
        pytest.param(
            model, kind, layout, *more, marks=[] if (model, kind, layout) in quick
            and set(more) <= FEW else slow, id="-".join((model, kind, layout, *more)),
        )
        for model in ("mlp", "gpt", "vgg") for kind in sharded.KINDS
        for layout in LAYOUTS for more in ([(n,) for n in names] or [()])
    ]  # fmt: skip


QUICK = {("mlp", "auto", "mixed"), ("gpt", "explicit", "mixed")}


@pytest.mark.parametrize(("model", "kind", "layout"), where(QUICK))
def test_separable_rules_add_no_collective(model, kind, layout):
    quick = (model, kind, layout) in QUICK
    names = tuple(name for name in SEPARABLE if name in FEW or not quick)
    compiled, new, (params, states, _) = on_devices(model, names, kind, layout)
    assert sharded.collectives(compiled) == []
    for name, (weights, state) in new.items():
        assert_same_numbers(weights, unsharded(model, names)[name][0])
        assert_same_shardings(weights, params)
        assert_same_shardings(state, states[name])


@pytest.mark.parametrize(("model", "kind", "layout", "name"), where(QUICK, *PROXIMAL))
def test_proximal_rules_move_vectors_of_units(model, kind, layout, name):
    compiled, new, (params, states, _) = on_devices(model, (name,), kind, layout)
    weights, state = new[name]
    assert_same_numbers(weights, unsharded(model, (name,))[name][0])
    assert_same_shardings(weights, params)
    assert_same_shardings(state, states[name])
    sent = sharded.collectives(compiled)
    if layout == "data":
        assert sent == []
    # A float a unit for each member that carries it: the norms of either side, which
    # are summed up, and factors, which are sent to where a member lies.
    carried = sum(
        math.prod(group.sizes) * len(group.members) for group in net(model).groups
    )
    if name == "tune_strength-weights":  # counts zeros along the rows of matrices
        leaves = [x for x in jax.tree.leaves(params) if x.ndim > 1]
        carried += sum(x.size // x.shape[-1] for x in leaves)
    matrix = max(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert all(call.numbers <= carried < matrix for call in sent), sent


@pytest.mark.parametrize(
    ("model", "kind", "layout"), where({*QUICK, ("gpt", "auto", "tensor")})
)
def test_training_goes_on_after_compact(model, kind, layout):
    found = net(model)
    params, rest = (put(tree, kind, layout) for tree in (found.params, found.rest))

    def optimizer(groups):
        return optax.chain(optax.adam(0.01), volax.group_prox(0.01, 0.01, groups))

    opt_state = optimizer(found.groups).init(params)
    small = volax.compact(
        params, found.groups, state=rest, opt_state=opt_state, round_to=8
    )
    sizes = [
        np.shape(x) != np.shape(y)
        for x, y in zip(jax.tree.leaves(small.params), jax.tree.leaves(params))
    ]
    assert any(sizes)
    assert_same_shardings(small.params, params)
    assert_same_shardings(small.state, rest)
    assert_same_shardings(small.opt_state[0][0].mu, params)
    if kind == "explicit":  # where the layers would have to say how products lie
        return
    inputs = jax.device_put(found.inputs, NamedSharding(sharded.mesh(kind), P("a")))
    shardings = jax.tree.map(lambda x: x.sharding, small.params)
    tx = optimizer(small.groups)

    @functools.partial(jax.jit, out_shardings=(shardings, None))
    def step(params, state):
        def loss(params):
            return jnp.square(found.run(params, small.state, inputs)).mean()

        return sharded.step_of(tx)(params, state, jax.grad(loss)(params))

    new, _ = step(small.params, small.opt_state)
    assert_same_shardings(new, small.params)
    moved = jax.tree.map(lambda a, b: np.any(a != b), new, small.params)
    assert all(jax.tree.leaves(moved))
