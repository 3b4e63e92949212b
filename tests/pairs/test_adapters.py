"""The forms in which a model is given, and what is refused instead of ignored."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from volax import check_groups, find_groups, find_pairs

KEY = jax.random.key(0)
X = jnp.ones((4, 3))


def equinox_mlp():
    return eqx.nn.MLP(3, 2, 8, 2, activation=jax.nn.relu, key=KEY)


def names(pairs):
    return [pair.name for pair in pairs]


MLP = ["layers/0/weight -> layers/1/weight", "layers/1/weight -> layers/2/weight"]


class Moded(eqx.Module):
    mlp: eqx.nn.MLP

    def __call__(self, x, train):
        return self.encode(x) if train else x

    def encode(self, x):
        return self.mlp(x)


class NnxModed(nnx.Module):
    def __init__(self, rngs):
        self.l1 = nnx.Linear(3, 8, rngs=rngs)
        self.l2 = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x, train):
        return self.encode(x) if train else x

    def encode(self, x):
        return self.l2(nnx.relu(self.l1(x)))


@pytest.mark.parametrize(
    ("make", "expected"),
    [(lambda: Moded(equinox_mlp()), [f"mlp/{x.replace('> ', '> mlp/')}" for x in MLP]),
     (lambda: NnxModed(nnx.Rngs(0)), ["l1/kernel -> l2/kernel"])],
    ids=["equinox", "nnx"],
)  # fmt: skip
def test_a_module_is_found_in_every_form(make, expected):
    model, x = make(), X[0]
    forms = {
        "keyword": (find_pairs(model, x, train=True)),
        "partial": find_pairs(functools.partial(model, train=True), x),
        "partials": find_pairs(
            functools.partial(functools.partial(model), train=True), x
        ),
        "place": find_pairs(functools.partial(model, x), train=True),
        "method": find_pairs(model.encode, x),
        "function": find_pairs(lambda m, x: jax.vmap(m.encode)(x), model, X),
        "function of keywords": find_pairs(lambda m, x, t: m(x, t), model, x, t=True),
    }
    assert {form: names(found) for form, found in forms.items()} == dict.fromkeys(
        forms, expected
    )
    check_groups(forms["keyword"], model, x, train=True)
    check_groups(forms["method"], model.encode, x)


@pytest.mark.parametrize(
    "wrap", [jax.vmap, jax.jit, eqx.filter_vmap, eqx.filter_jit,
             lambda m: functools.partial(jax.vmap(m)),
             lambda m: jax.jit(jax.vmap(m))],
    ids=["vmap", "jit", "filter vmap", "filter jit", "partial", "jit of vmap"],
)  # fmt: skip
@pytest.mark.parametrize(
    "make", [equinox_mlp, lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0))]
)
def test_a_wrapped_module_is_refused_with_what_to_do(wrap, make):
    for find in (find_pairs, find_groups):
        with pytest.raises(ValueError, match=r"wraps a module \(.*model, x\)"):
            find(wrap(make()), X)


def test_a_wrapped_function_of_parameters_is_traced():
    found = find_pairs(
        eqx.filter_jit(lambda model, x: jax.vmap(model)(x)), equinox_mlp(), X
    )
    assert names(found) == MLP
    found = find_pairs(jax.jit(lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]),
                       {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, X)  # fmt: skip
    assert names(found) == ["a -> b"]


def test_modules_inside_a_tree_of_parameters():
    def fn(params, x):
        return jax.vmap(params["mlp"])(x) @ params["head"]

    params = {"mlp": equinox_mlp(), "head": jnp.ones((2, 1))}
    assert names(find_pairs(fn, params, X)) == [
        *(f"mlp/{name.replace('> ', '> mlp/')}" for name in MLP),
        "mlp/layers/2/weight -> head",
    ]


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
        return nn.Dense(2)(nn.Dropout(0.5)(x, deterministic=not train))


def test_keywords_of_linen_stay_static():
    model = LinenDropout()
    variables = jax.eval_shape(
        lambda: model.init(KEY, X, train=False)
    )  # keywords decide what Python does
    found = find_groups(model, variables, X, train=False)
    assert names(find_groups(model.apply, variables, X, train=False)) == names(found)
    assert [m.path for m in found[0].states] == [
        "batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var",
    ]  # fmt: skip
    check_groups(found, model, variables, X, train=False)
    assert found.pairs
    training = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
    find_groups(model, variables, X, state_outputs=1, **training)


class EqxStateful(eqx.Module):
    """Running statistics that are passed in and out."""

    l1: eqx.nn.Linear
    l2: eqx.nn.Linear

    def __call__(self, x, mean):
        x = jax.vmap(self.l1)(x)
        new = 0.9 * mean + 0.1 * x.mean(0)
        return jax.vmap(self.l2)(jax.nn.relu(x - new)), new


class NnxStateful(nnx.Module):
    def __init__(self):
        self.l1 = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
        self.l2 = nnx.Linear(8, 2, rngs=nnx.Rngs(0))

    def __call__(self, x, mean):
        x = self.l1(x)
        new = 0.9 * mean + 0.1 * x.mean(0)
        return self.l2(nnx.relu(x - new)), new


@pytest.mark.parametrize(
    "make",
    [lambda: EqxStateful(eqx.nn.Linear(3, 8, key=KEY), eqx.nn.Linear(8, 2, key=KEY)),
     NnxStateful],
    ids=["equinox", "nnx"],
)  # fmt: skip
def test_state_arguments_of_modules_are_honoured(make):
    model, mean = make(), jnp.zeros(8)
    for arg, out in ((1, 1), (-1, -1)):
        found = find_groups(model, X, mean, state_args=arg, state_outputs=out)
        (group,) = found
        assert group.size == 8
        assert [m.role for m in group.states] == ["state"]
        check_groups(found, model, X, mean, state_outputs=out)
    assert not find_groups(model, X, mean, state_args=1)
    with pytest.raises(ValueError, match="state_args: 2 is no place among 2 inputs"):
        find_groups(model, X, mean, state_args=2)
    with pytest.raises(ValueError, match="state_outputs: 3 is no place in what fn ret"):
        find_groups(model, X, mean, state_outputs=3)
