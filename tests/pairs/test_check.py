"""The oracle of all other tests here: every kind of false group makes it raise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import volax
from volax import check_groups, find_groups
from volax.pairs.records import Axis, Group, Member

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)


def shaped(**shapes):
    return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}


def mlp(activation):
    def fn(p, x):
        h = activation(x @ p["w1"] + p["b1"])
        return jax.nn.relu(h @ p["w2"] + p["b2"]) @ p["w3"]

    return fn, shaped(w1=(4, 4), b1=(4,), w2=(4, 4), b2=(4,), w3=(4, 4)), ()


def two_readers(p, x):
    h = jax.nn.relu(x @ p["w1"] + p["b1"])
    return jnp.concatenate([h @ p["w2"], jax.nn.gelu(h @ p["w3"])], -1)


def batch_norm(p, x, state):
    h = (x @ p["w1"] - state["mean"]) * lax.rsqrt(state["var"] + 1e-3)
    return jax.nn.relu(h * p["gamma"] + p["beta"]) @ p["w2"]


def flattened(p, x):
    """Positions x channels, behind three other features."""
    h = jax.nn.relu(x.reshape(-1, 2, 2) @ p["w1"] + p["b1"])
    h = jnp.concatenate([x[:, :3], h.reshape(len(x), -1)], -1)
    return h @ p["w2"]


def heads(p, x):
    """Values of heads, mixed over positions by weights that have no units."""
    x = x.reshape(-1, 2, 2)
    v = jnp.einsum("bpi,ihd->bphd", x, p["v"]) + p["b"]
    weights = jax.nn.softmax(jnp.einsum("bpi,bqi->bpq", x, x))
    return jnp.einsum("bpq,bqhd,hdo->bpo", weights, v, p["o"])


def gate(p, x):
    return (jax.nn.silu(x @ p["g"]) * (x @ p["w1"]) * p["s"]) @ p["w2"]


def scanned(p, x):
    def layer(h, q):
        return h + jax.nn.relu(h @ q["up"] + q["b"]) @ q["down"], None

    return lax.scan(layer, x, p)[0]


TRUE = {
    "relu": mlp(jax.nn.relu),
    "gelu": mlp(jax.nn.gelu),
    "two_readers": (two_readers, shaped(w1=(4, 4), b1=(4,), w2=(4, 4), w3=(4, 4)), ()),
    "batch_norm": (
        batch_norm, shaped(w1=(4, 4), gamma=(4,), beta=(4,), w2=(4, 4)),
        (shaped(mean=(4,), var=(4,)),),
    ),
    "flattened": (flattened, shaped(w1=(2, 5), b1=(5,), w2=(13, 3)), ()),
    "heads": (heads, shaped(v=(2, 3, 3), b=(3, 3), o=(3, 3, 2)), ()),
    "gate": (gate, shaped(g=(4, 4), w1=(4, 4), s=(4,), w2=(4, 4)), ()),
    "scanned": (scanned, shaped(up=(3, 4, 4), b=(3, 4), down=(3, 4, 4)), ()),
}  # fmt: skip
SIDES = ("producers", "biases", "scales", "fixed", "states", "consumers")


def true_groups(name):
    fn, params, inputs = TRUE[name]
    given = (jax.ShapeDtypeStruct(X.shape, X.dtype), *inputs)
    return find_groups(fn, params, *given, state_args=tuple(range(1, 1 + len(inputs))))


def mutants(group, shapes):
    """False variants of a true group, each with what is wrong with it."""
    for side in SIDES:
        members = getattr(group, side)
        for k, member in enumerate(members):

            def put(*new, side=side, members=members, k=k):
                changed = (*members[:k], *new, *members[k + 1 :])
                return dataclasses.replace(group, **{side: changed})

            if side != "consumers" or len(members) > 1:
                yield f"without {member.path}", put()
            for path, shape in shapes.items():
                if shape == shapes[member.path] and path != member.path:
                    other = dataclasses.replace(member, path=path)
                    yield f"{path} for {member.path}", put(other)
            if group.homogeneous and side not in ("fixed", "states"):
                for by in (-1, 1):
                    other = dataclasses.replace(member, degree=member.degree + by)
                    yield f"{member.path} of degree {other.degree}", put(other)
            for j, axis in enumerate(member.axes):
                for what, false in wrong_axes(axis, shapes[member.path]):
                    axes = (*member.axes[:j], false, *member.axes[j + 1 :])
                    other = dataclasses.replace(member, axes=axes)
                    yield f"{what} of {member.path}", put(other)
    if not group.homogeneous:
        yield "called a pair", dataclasses.replace(group, homogeneous=True)
    if group.keeps_zero is False:
        yield "zero kept", dataclasses.replace(group, keeps_zero=True)


def wrong_axes(axis, shape):
    for other in range(len(shape)):
        if other != axis.axis and shape[other] == shape[axis.axis]:
            yield f"axis {other}", dataclasses.replace(axis, axis=other)
    size, length = axis.sizes[-1], shape[axis.axis]
    for offset in (axis.offset - 1, axis.offset + 1):
        if offset >= 0:
            yield f"offset {offset}", dataclasses.replace(axis, offset=offset)
    if len(axis.sizes) == 2:
        positions = axis.sizes[0]
        yield "strides", dataclasses.replace(axis, strides=(1, positions))
        yield "one position", Axis(axis.axis, axis.offset, (size,), (1,), (0,))
    elif length > 2 and axis.units == (0,):
        # The same units, but in another order.
        half = Axis(axis.axis, 0, (length // 2, 2), (1, length // 2), (None, 0))
        yield "units of another kind", half


@pytest.mark.parametrize("name", TRUE)
def test_every_false_variant_of_a_group_raises(name):
    fn, params, inputs = TRUE[name]
    shapes = {k: v.shape for tree in (params, *inputs) for k, v in tree.items()}
    groups = true_groups(name)
    assert max(check_groups(groups, fn, params, X, *inputs)) < 1e-3
    tried = accepted = ()
    with jax.disable_jit():  # far less time than to compile the program so often
        for group in groups:
            for what, false in mutants(group, shapes):
                tried += (what,)
                try:
                    check_groups(false, fn, params, X, *inputs)
                except ValueError:
                    continue
                accepted += (f"{group.name}: {what}",)
    assert len(tried) > 15
    assert not accepted


def relu_mlp(**arrays):
    fn, shapes, _ = TRUE["relu"]
    drawn = {k: RNG.normal(size=s.shape).astype("float32") for k, s in shapes.items()}
    return fn, {**drawn, **arrays}


FIRST = volax.pair("w1", "w2", bias="b1")
FORGETFUL = volax.pair("w1", "w2")


def test_a_bias_of_zeros_does_not_hide_that_it_was_forgotten():
    fn, params = relu_mlp(b1=np.zeros(4, np.float32))
    check_groups(FIRST, fn, params, X)
    with pytest.raises(ValueError, match=r"w1 -> w2: permuting .* changes the outputs"):
        check_groups(FORGETFUL, fn, params, X)


@pytest.mark.parametrize(
    "zeros", [{"w3": (4, 4)}, {"w2": (4, 4), "b2": (4,)}], ids=["head", "consumer"]
)
def test_weights_of_zeros_hide_nothing(zeros):
    fn, params = relu_mlp(**{k: np.zeros(s, np.float32) for k, s in zeros.items()})
    check_groups(FIRST, fn, params, X)
    with pytest.raises(ValueError, match="changes the outputs"):
        check_groups(FORGETFUL, fn, params, X)


def test_units_that_are_dead_by_their_weights_are_drawn_again():
    fn, params = relu_mlp(b1=np.full(4, -1e4, np.float32))
    check_groups(FIRST, fn, params, X)
    with pytest.raises(ValueError, match="changes the outputs"):
        check_groups(volax.pair("w1", "w3", bias="b1"), fn, params, X)


def test_inputs_of_zeros_hide_nothing():
    fn, params = relu_mlp()
    with pytest.raises(ValueError, match="changes the outputs"):
        check_groups(volax.pair("b1", "w2"), fn, params, np.zeros_like(X))


def test_outputs_that_do_not_depend_on_the_units_prove_nothing():
    fn, params = relu_mlp()
    with pytest.raises(ValueError, match="w1 -> w2: the outputs do not depend on the"):
        check_groups(FIRST, lambda p, x: 0 * fn(p, x), params, X)


def test_a_unit_that_reaches_an_output_is_none():
    def fn(p, x):
        h = jax.nn.relu(x @ p["w1"] + p["b1"])
        return h @ p["w2"], h.sum(-1)

    _, params = relu_mlp()
    with pytest.raises(ValueError, match="replacing w1, b1 of units that nothing"):
        check_groups(FIRST, fn, params, X)


def test_zero_that_does_not_stay_zero():
    fn, shapes, _ = mlp(jax.nn.sigmoid)
    group, *_ = find_groups(fn, shapes, X)
    assert group.keeps_zero is False
    false = dataclasses.replace(group, keeps_zero=True)
    with pytest.raises(ValueError, match="replacing w2 of units that nothing feeds"):
        check_groups(false, fn, shapes, X)


@pytest.mark.parametrize(
    "activation",
    [jax.nn.gelu, jax.nn.relu6, lambda h: jnp.square(jax.nn.relu(h)), lambda h: h + 1],
    ids=["gelu", "relu6", "square", "plus_one"],
)
def test_what_is_not_homogeneous_is_no_pair(activation):
    fn, params, _ = mlp(activation)
    with pytest.raises(ValueError, match=r"rescaling changes|nothing feeds changes"):
        check_groups(FIRST, fn, params, X)


def test_units_along_one_axis_twice():
    axes = (Axis(1, 0, (4,)), Axis(1, 0, (4,), units=(1,)))
    member = dataclasses.replace(FIRST.producers[0], axes=axes)
    false = dataclasses.replace(FIRST, sizes=(4, 4), producers=(member,))
    fn, params = relu_mlp()
    with pytest.raises(ValueError, match="two records for one axis, got axes 1, 1"):
        check_groups(false, fn, params, X)


def test_a_parameter_bound_to_a_range_is_not_varied_out_of_it():
    def fn(p, x):
        return jnp.log(p["t"]) * jnp.sqrt(p["s"]) * (jax.nn.relu(x @ p["w1"]) @ p["w2"])

    _, params = relu_mlp(t=np.float32(3), s=np.float32(2))
    assert max(check_groups(FORGETFUL, fn, params, X)) < 1e-3


def test_a_member_that_is_rescaled_must_carry_every_unit_index():
    """Its entries would be scaled by several units at once."""

    def fn(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    a, b = jax.random.normal(jax.random.key(1), (2, 6, 6))
    whole = Axis(0, 0, (2, 3), (3, 1), (0, 1))
    pair = Group(
        sizes=(2, 3),
        producers=(
            Member("a", "producer", 1, (Axis(1, 0, (2, 3), (3, 1), (0, None)),)),
        ),
        consumers=(Member("b", "consumer", -1, (whole,)),),
        homogeneous=True,
    )
    with pytest.raises(ValueError, match="entries of a are shared by several units"):
        check_groups(pair, fn, {"a": a, "b": b}, jnp.ones((2, 6)))
