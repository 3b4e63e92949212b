"""What differs between versions of JAX, in one place.

``jax.extend.core.primitives`` lists most primitives, not all, and the list changes.
What it lacks is read off a traced call.
"""

import os
import re
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.extend.core.primitives as listed
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from volax._types import Function
from volax.pairs._trace.bodies import all_eqns


def primitives(*names: str) -> Iterator[core.Primitive]:
    """The listed primitives of these names, leaving out what this version lacks."""
    for name in names:
        if (found := getattr(listed, f"{name}_p", None)) is not None:
            yield found


def _primitive_of(fn: Function, name: str) -> core.Primitive | None:
    """The primitive called ``name`` that ``fn`` of a 2 x 2 array binds, if any."""
    trace = jax.make_jaxpr(fn)
    # A mesh that the user has set, or a context of shard_map, holds for one thread.
    with ThreadPoolExecutor(1) as apart:
        x = jax.ShapeDtypeStruct((2, 2), jnp.float32)
        jaxpr = apart.submit(trace, x).result().jaxpr
    found = (eqn.primitive for eqn in all_eqns(jaxpr))
    return next((p for p in found if p.name == name), None)


def _mesh(kind: AxisType) -> AbstractMesh:
    return AbstractMesh((1,), ("d",), axis_types=(kind,))


def _mapped(x: jax.Array) -> jax.Array:
    """A sum over devices of what does not vary over them."""

    def body(x: jax.Array) -> jax.Array:
        return lax.psum(x + 1, "d")

    mesh = _mesh(AxisType.Auto)
    return jax.shard_map(body, mesh=mesh, in_specs=P("d"), out_specs=P())(x)


_UNLISTED = {
    "split": lambda x: lax.split(x, (1, 1)),
    "tile": lambda x: jnp.tile(x, (2, 1)),
    "stack": lambda x: jnp.stack([x, x]),
    "unstack": lambda x: jnp.unstack(x),
    "optimization_barrier": lax.optimization_barrier,
    "reshard": lambda x: jax.sharding.reshard(
        x, NamedSharding(_mesh(AxisType.Explicit), P("d"))
    ),
    "shard_map": _mapped,
    "psum_invariant": _mapped,
    "pvary": _mapped,
}


def unlisted(*names: str) -> Iterator[core.Primitive]:
    """The primitives of these names that no public list holds."""
    for name in names:
        if (found := _primitive_of(_UNLISTED[name], name)) is not None:
            yield found


def _harmless_effects() -> tuple[type, ...]:
    """The classes of effects that change no value: of debug prints and axis names."""

    def traced(x: Any) -> Any:
        jax.debug.print("{}", x)
        jax.debug.print("{}", x, ordered=True)
        return lax.psum(x, "axis")

    eqns = jax.make_jaxpr(traced, axis_env=[("axis", 2)])(0.0).eqns
    return tuple({type(effect) for eqn in eqns for effect in eqn.effects})


_HARMLESS = _harmless_effects()


def has_effects(eqn: core.JaxprEqn) -> bool:
    """Whether an equation does more than give results: writes to a mutable array.

    A debug print does not count.
    """
    return any(not isinstance(effect, _HARMLESS) for effect in eqn.effects)


_PAIRS = os.path.dirname(os.path.dirname(__file__))
_OURS = (_PAIRS, os.path.join(os.path.dirname(_PAIRS), "_nnx.py"), "<frozen")
_JAX = re.compile(r"site-packages/jax(lib)?/")


def source_line(eqn: core.JaxprEqn) -> str | None:
    """``file:line`` of the user's code that made an equation, where known."""
    for frame in _frames(eqn):
        if _is_users(frame.file_name):
            return f"{frame.file_name}:{frame.line_num}"
    return None


def _frames(eqn: core.JaxprEqn) -> Iterable[Any]:
    """Where an equation was made, innermost first."""
    made = getattr(getattr(eqn, "source_info", None), "traceback", None)
    return getattr(made, "frames", ())


def _is_installed(name: str) -> bool:
    return "site-packages" in name or "/lib/python3" in name


def _is_users(name: str) -> bool:
    return not _is_installed(name) and not name.startswith(_OURS)


def raised_line(error: BaseException) -> str | None:
    """``file:line`` of the innermost line of the user's code that an error is from."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if _is_users(f.filename)]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else None


def written_by_library(eqn: core.JaxprEqn) -> bool:
    """Whether a library other than JAX made an equation, and no code of the user's."""
    for frame in _frames(eqn):
        name = frame.file_name
        if _is_users(name):
            return False
        if _is_installed(name) and not _JAX.search(name):
            return "site-packages" in name
    return False


def scan_counts(params: Any) -> tuple[int, int]:
    """How many constants and how many carries a scan has among its operands."""
    if "num_consts" in params:  # JAX 0.10
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))


def in_library(jaxpr: Any) -> bool:
    """Whether a called function is installed code, not the user's."""
    info = getattr(getattr(jaxpr, "debug_info", None), "func_src_info", None) or ""
    return "site-packages" in info or "/lib/python3" in info
