"""Rules that a user registers, and parameters that a user leaves out."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

import volax
from volax import check_groups, find_groups, find_pairs
from volax.pairs import elementwise, register_rule

X = jax.ShapeDtypeStruct((5, 4), jnp.float32)
SHAPES = {"w1": (4, 8), "b1": (8,), "w2": (8, 6), "w3": (6, 3)}
W = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}


def primitive(name, run):
    """A primitive of the user's own that JAX can run and compile."""
    made = Primitive(name)
    made.def_impl(run)
    made.def_abstract_eval(lambda x, *_: x)
    mlir.register_lowering(made, mlir.lower_fun(run, multiple_results=False))
    return made


def net(act):
    """The units of ``w1`` meet themselves in an operation before they are read."""
    return lambda p, x: act(x @ p["w1"] + p["b1"], x @ p["w1"]) @ p["w2"] @ p["w3"]


LAWS = {
    "maximum": (lambda x, y: jnp.maximum(x, 2 * y), {}, True),
    "gated": (lambda x, y: x * jnp.tanh(y), {"law": "zero"}, False),
    "ratio": (
        lambda x, y: x * jnp.abs(x) / (jnp.abs(y) + jnp.abs(x)),
        {"law": "sum", "weights": (2, -1), "zero": "lost"}, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_a_rule_of_the_users(name):
    run, law, homogeneous = LAWS[name]
    made = primitive(name, run)
    fn = net(made.bind)
    refused = find_groups(fn, W, X).refused
    assert any(f"no rule for {name}" in r.reason for r in refused)

    @register_rule(made)
    def rule(tape, eqn, *operands):
        return elementwise(tape, eqn, *operands, **law)

    groups = find_groups(fn, W, X)
    group = next(g for g in groups if g.producers[0].path == "w1")
    assert group.homogeneous == homogeneous
    assert group.through == ("add", name)
    check_groups(groups, fn, W, X)


def test_a_rule_that_raises_refuses():
    made = primitive("picky", lambda x, y: x)

    @register_rule(made)
    def rule(tape, eqn, *operands):
        raise ValueError("not today")

    refused = find_groups(net(made.bind), W, X).refused
    assert any(r.path == "w1" and "not today" in r.reason for r in refused)


@pytest.mark.parametrize(
    ("law", "match"),
    [
        ({"law": "typo"}, "law must be 'equal', .* got 'typo'"),
        ({"zero": "never"}, "zero must be 'all', .* got 'never'"),
        ({"law": "sum", "weights": (1,)}, "of 2 operands got 1 weights"),
        ({"weights": (1, 1)}, "law 'equal' of 2 operands got 2 weights"),
    ],
)
def test_a_rule_that_misspells_its_law_refuses(law, match):
    made = primitive("misspelt", jnp.maximum)

    @register_rule(made)
    def rule(tape, eqn, *operands):
        return elementwise(tape, eqn, *operands, **law)

    found = find_groups(net(made.bind), W, X)
    assert not [g for g in found if g.producers[0].path == "w1"]
    assert any(re.search(match, r.reason) for r in found.refused)


def test_what_takes_no_rule():
    jitted = jax.make_jaxpr(jax.jit(jnp.sin))(1.0).eqns[0].primitive
    with pytest.raises(ValueError, match="jit is followed inside and takes no rule"):
        register_rule(jitted)
    with pytest.raises(ValueError, match=r"expected instances of .* got <function"):
        register_rule(lambda tape, eqn, x: x)
    with pytest.raises(ValueError, match="at least one primitive"):
        register_rule()


def mlp(p, x):
    h = jax.nn.relu(x @ p["w1"] + p["b1"])
    return jax.nn.relu(h @ p["w2"]) @ p["w3"]


IGNORED = {
    "producer": ("w1", ["w2 -> w3"]),
    "bias": (("b1",), ["w2 -> w3"]),
    "consumer of one, producer of the other": (["w2"], []),
    "mask": (volax.path_matches("3$"), ["w1 -> w2"]),
    "nothing": ((), ["w1 -> w2", "w2 -> w3"]),
}


@pytest.mark.parametrize("case", IGNORED)
def test_nothing_lies_along_what_is_ignored(case):
    ignore, left = IGNORED[case]
    for find in (find_groups, find_pairs):
        found = find(mlp, W, X, ignore=ignore)
        assert [g.name for g in found] == left
        check_groups(found, mlp, W, X)
    reasons = [r.reason for r in found.refused if "is ignored" in r.reason]
    assert len(reasons) == {"mask": 1, "nothing": 0, "producer": 0}.get(case, 1)


def test_what_stands_above_is_ignored_whole():
    params = {"back": {"w1": W["w1"], "b1": W["b1"]}, "w2": W["w2"], "w3": W["w3"]}
    fn = lambda p, x: mlp(p | p["back"], x)  # noqa: E731
    assert [g.name for g in find_groups(fn, params, X)] == ["back/w1 -> w2", "w2 -> w3"]
    assert [g.name for g in find_groups(fn, params, X, ignore="back")] == ["w2 -> w3"]
    assert len(find_groups(fn, params, X, ignore="back/b1")) == 1


def test_an_ignored_table_is_data():
    def fn(p, x):
        table = jnp.sin(p["w1"])
        return jax.nn.relu(table @ p["w2"]) @ p["w3"] + x.sum()

    params = W | {"w2": W["w2"]}
    assert not find_groups(fn, params, X).groups
    (pair,) = find_pairs(fn, params, X, ignore="w1")
    assert pair.name == "w2 -> w3"


def test_a_choice_of_nothing_is_an_error():
    for ignore, message in {
        "w9": "find_groups: ignore: 'w9' is not in the tree; .* nearest: w",
        "": "is not in the tree",
        3: "ignore must be key paths or a mask .* got 3",
        volax.path_matches("kernel"): "selects no parameter",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_groups(mlp, W, X, ignore=ignore)
