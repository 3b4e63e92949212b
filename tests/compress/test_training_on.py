"""Shrink, then go on training: the smaller model trains like the larger one."""

from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import volax
from tests.compress.models import killed, marks
from volax import _paths
from volax.compress._cut import replaced

X = jax.random.normal(jax.random.key(0), (32, 6))
Y = jnp.argmax(X[:, :3] * X[:, 3:], -1)
WIDTHS = (6, 16, 14, 12, 3)


class Layers(nnx.Module):
    """Three hidden layers of ReLU."""

    def __init__(self):
        rngs = nnx.Rngs(1)
        self.layers = nnx.List(
            [nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(WIDTHS)]
        )

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Joined(nn.Module):
    """Two branches side by side, whose positions a dense layer reads."""

    widths: tuple[int, int, int] = (6, 5, 8)

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), 3, 2)
        a, b, c = self.widths
        x = [nn.relu(nn.Dense(n, name=k)(x)) for k, n in zip("ab", (a, b))]
        x = jnp.concatenate(x, -1).reshape(len(X), -1)
        return nn.Dense(3, name="out")(nn.relu(nn.Dense(c, name="c")(x)))


def stack(params, x):
    for k in range(3):
        layer = params[f"l{k}"]
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params["l3"]["kernel"] + params["l3"]["bias"]


def stack_params():
    keys = jax.random.split(jax.random.key(2), 4)
    return {
        f"l{k}": {
            "kernel": jax.random.normal(key, (a, b)) / a**0.5,
            "bias": jnp.full(b, 0.1),
        }
        for k, (key, a, b) in enumerate(zip(keys, WIDTHS, WIDTHS[1:]))
    }


def optimizer(pairs):
    return optax.chain(
        optax.adam(0.01), volax.path_prox(0.01, 0.05, pairs, freeze_dead=True)
    )


def stepper(fn, tx):
    """One step in which weights that are not ``alive`` are put back to zero."""

    def loss(params):
        logits = fn(params, X)
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

    @jax.jit
    def step(params, state, alive):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return value, jax.tree.map(jnp.multiply, params, alive), state

    return step


def ones(tree):
    return jax.tree.map(jnp.ones_like, tree)


def linen_small(params, x):
    shapes = tuple(params[k]["kernel"].shape[-1] for k in "abc")
    return Joined(shapes).apply({"params": params}, x)


def linen_params():
    return Joined().init(jax.random.key(3), X)["params"]


CASES = {
    "three hidden layers": (stack, stack, stack_params),
    "joined and flattened": (
        lambda p, x: Joined().apply({"params": p}, x), linen_small, linen_params,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_run_goes_on_as_that_of_the_full_model(name):
    fn, small_fn, make = CASES[name]
    params = make()
    groups = volax.find_groups(fn, params, X)
    tx = optimizer(groups.pairs)
    state, step = tx.init(params), stepper(fn, tx)
    for _ in range(5):
        _, params, state = step(params, state, ones(params))
    params, _ = killed(params, groups)
    small = volax.compact(params, groups, opt_state=state, check=(fn, small_fn, (X,)))
    for before, after in zip(groups, small.groups):
        assert 1 < after.size < before.size

    # What the cut takes away is frozen at zero in the full model.
    kept = volax.compact(params, groups, opt_state=marks(params)).opt_state["m"]
    alive = jax.tree.map(marked, params, kept)
    params = jax.tree.map(jnp.multiply, params, alive)

    after = optimizer(small.groups.pairs)
    like = after.init(small.params)
    assert jax.tree.structure(like) == jax.tree.structure(small.opt_state)
    mine, cut, onward = small.params, small.opt_state, stepper(small_fn, after)
    for _ in range(20):
        expected, params, state = step(params, state, alive)
        got, mine, cut = onward(mine, cut, ones(mine))
        np.testing.assert_allclose(got, expected, rtol=2e-5)
    for p, where, q in zip(*map(jax.tree.leaves, (params, kept, mine))):
        np.testing.assert_allclose(q, p.reshape(-1)[where], rtol=1e-4, atol=1e-5)


def marked(leaf, kept):
    """One where an entry is left, else zero."""
    alive = np.zeros(leaf.size, np.float32)
    alive[np.asarray(kept).reshape(-1)] = 1
    return jnp.asarray(alive.reshape(leaf.shape))


def test_an_nnx_optimizer_goes_on_with_the_smaller_module():
    model = Layers()
    groups = volax.find_groups(model, X)
    held = nnx.Optimizer(model, optimizer(groups.pairs), wrt=nnx.Param)

    @nnx.jit
    def step(model, held):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(X), Y).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        held.update(model, grads)
        return value

    for _ in range(5):
        step(model, held)
    graph, state = nnx.split(model)
    model = nnx.merge(graph, killed(state, groups)[0])
    small = volax.compact(model, groups, opt_state=held, check=(X,))
    model, held = small.params, small.opt_state
    held.tx = optimizer(small.groups.pairs)
    first = step(model, held)
    for _ in range(10):
        last = step(model, held)
    assert last < first
    assert model.layers[0].kernel.shape == small.sizes["layers/0/kernel"]
    again = volax.compact(model, small.groups, opt_state=held, check=(X,))
    assert again.groups.groups == volax.find_groups(again.params, X).groups


@pytest.mark.parametrize("name", CASES)
def test_records_of_the_larger_model_are_refused_in_one_sentence(name):
    fn, _, make = CASES[name]
    params = make()
    groups = volax.find_groups(fn, params, X)
    path = groups[0].consumers[0].path
    leaves = _paths.named_leaves(params)
    dead = jnp.arange(len(leaves[path])) % 11 < 2
    params = replaced(params, {path: leaves[path] * ~dead[:, None]})
    small = volax.compact(params, groups)
    tx = volax.path_prox(0.1, 0.1, groups.pairs)
    with pytest.raises(ValueError, match=r"other shapes: .* with its Compacted.groups"):
        tx.update(small.params, tx.init(small.params), small.params)
