"""Rules read every parameter of their primitive; one that they do not know refuses."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from volax import find_groups
from volax.pairs._trace.jaxprs import CALLS
from volax.pairs._trace.rules.registry import PARAMS, unknown_params

X, I = jnp.ones((4, 6)), jnp.ones((4, 6), int)  # noqa: E741
UNARY = """abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil conj cos
cosh cumlogsumexp cummax cummin cumprod cumsum digamma erf erf_inv erfc exp exp2 expm1
floor imag is_finite lgamma log log1p logistic neg real round rsqrt sign sin sinh sqrt
square stop_gradient tan tanh"""
BINARY = """add atan2 complex div eq ge gt igamma igammac le lt max min mul ne nextafter
polygamma pow rem sub zeta"""
INTEGERS = """bitwise_and bitwise_not bitwise_or bitwise_xor clz population_count
shift_left shift_right_arithmetic shift_right_logical"""


def numbers(x, i):
    for name in UNARY.split():
        of = x + 0j if name in ("conj", "imag", "real") else x
        yield getattr(lax, name)(of)
    for name in BINARY.split():
        yield getattr(lax, name)(x, x)
    for name in INTEGERS.split():
        one = name in ("bitwise_not", "clz", "population_count")
        yield getattr(lax, name)(*([i] if one else [i, i]))
    yield from (lax.clamp(0.0, x, 1.0), x**3, jnp.where(x > 0, x, 0), x.astype(int))
    yield from (lax.reduce_precision(x, 5, 10), lax.bitcast_convert_type(x, int))
    yield from (jnp.log2(x), jnp.array(x, copy=True), checkpoint_name(x, "name"))
    yield jax.grad(lambda x: (x * jnp.sin(x)).sum())(x)
    yield from lax.optimization_barrier((x, i))
    yield from jax.device_put((x, i))
    yield jax.random.bits(jax.random.key(0), (3,))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    yield lax.with_sharding_constraint(x, here)


def reductions(x, i):
    for name in ("sum", "max", "min", "prod", "all", "any", "argmax", "argmin"):
        yield getattr(x, name)(0)
    yield lax.reduce_xor(i, (0,))
    for start, fn in ((0.0, lax.add), (-jnp.inf, lax.max), (jnp.inf, lax.min)):
        yield lax.reduce_window(x, start, fn, (2, 2), (1, 1), "SAME")
    yield from lax.sort((x, i), num_keys=2)
    yield from lax.top_k(x, 2)


def shapes(x, i):
    yield from (x.T, x.reshape(-1), x[::-1], jnp.pad(x, 1), jnp.tile(x, (2, 1)))
    yield from (lax.broadcast(x, (2,)), lax.squeeze(x[:1], (0,)), jnp.stack([x, x]))
    yield from (*jnp.split(x, 2), *jnp.unstack(x), jnp.concatenate([x, x]))
    yield from (lax.iota(int, 3), lax.dynamic_slice(x, (i[0, 0], 0), (2, 2)))
    yield lax.dynamic_update_slice(x, x[:1], (i[0, 0], 0))
    yield from (x[i[0]], x.at[i].get(mode="fill", fill_value=1.0))
    yield jax.vmap(lambda a, b: a[b])(x, i[:, 0])
    for name in ("set", "add", "max", "min"):
        yield getattr(x.at[i[0]], name)(1.0)


def contractions(x, i):
    yield x @ x.T
    yield lax.conv_general_dilated(x[None], x[None, :, :3], (1,), "SAME")


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def calls(x, i):
    yield from (jax.jit(jnp.sin)(x), jax.checkpoint(jnp.sin)(x), jax.nn.relu(x))
    yield doubled(x)
    yield lax.scan(lambda c, a: (c + a, a), x[0], x, reverse=True, unroll=2)[1]


def devices(x, i):
    mesh = AbstractMesh((1,), ("d",), axis_types=(AxisType.Explicit,))
    yield jax.sharding.reshard(x, NamedSharding(mesh, P("d")))

    def body(x):
        return lax.psum(lax.pmax(x, "d") + lax.pmin(x, "d") + 1, "d")

    mesh = AbstractMesh((1,), ("d",), axis_types=(AxisType.Auto,))
    for more in ({}, {"check_vma": False}):
        how = {"mesh": mesh, "in_specs": P("d"), "out_specs": P(), **more}
        yield jax.shard_map(lambda x: body(x) + jnp.ones(6), **how)(x)


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


TRACED = [
    eqn
    for fn in (numbers, reductions, shapes, contractions, calls, devices)
    for eqn in equations(jax.make_jaxpr(lambda x, i, fn=fn: list(fn(x, i)))(X, I).jaxpr)
]
# Only inside others, or without a public function; none has parameters that matter.
REGISTERED = set(PARAMS)  # here, before other tests register rules of their own
UNTRACED = {"eq_to", "le_to", "lt_to", "one_minus_square", "polynomial"}


def test_every_parameter_of_every_primitive_is_known():
    unknown = {(e.primitive.name, name) for e in TRACED for name in unknown_params(e)}
    assert not unknown
    seen = {eqn.primitive for eqn in TRACED}
    calls = {p for p in CALLS if p.name not in ("call", "closed_call", "eval_jaxpr")}
    missing = {p.name for p in REGISTERED - (CALLS - calls) - seen}
    assert missing <= UNTRACED


@pytest.mark.parametrize("name", ["dot_general", "jit", "scan", "gather"])
def test_an_unknown_parameter_refuses(name, monkeypatch):
    def fn(p, x):
        h = jax.nn.relu(x @ p["w1"])
        h = lax.scan(lambda c, a: (c, 2 * a), 0, h)[1]
        return h[jnp.arange(2)] @ p["w2"] + (jnp.abs(x @ p["a"]) @ p["b"])[:2]

    params = {"w1": jnp.ones((6, 8)), "w2": jnp.ones((8, 3))}
    params |= {"a": jnp.ones((6, 5)), "b": jnp.ones((5, 3))}
    assert [g.name for g in find_groups(fn, params, X)] == ["a -> b", "w1 -> w2"]
    eqn = next(e for e in TRACED if e.primitive.name == name)
    known = PARAMS[eqn.primitive]
    for one in eqn.params:
        monkeypatch.setitem(PARAMS, eqn.primitive, known - {one})
        found = find_groups(fn, params, X)
        others = [] if name == "dot_general" else ["a -> b"]
        assert [g.name for g in found] == others
        why = f"the rule for {name} does not know its parameter {one}"
        assert why in {r.reason for r in found.refused}
