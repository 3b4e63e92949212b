"""Where arrays lie on a mesh: vectors with an entry a unit, and arrays cut smaller.

On a mesh of explicit axes every array has its sharding in its type, and arrays that lie
differently cannot be multiplied. On one of automatic axes the compiler chooses, and may
hand the sharding of one parameter on to another through the vector that both are
multiplied by. Such vectors are small (a float a unit), so where they would be in the
way they are made whole on every device; a weight matrix never is.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from volax._types import Leaf


def whole(x: jax.Array) -> jax.Array:
    """The array, all of it on every device of its mesh."""
    mesh = jax.typeof(x).sharding.mesh
    everywhere = NamedSharding(mesh, P(*[None] * x.ndim))
    if mesh.explicit_axes:
        x = jax.sharding.reshard(x, everywhere)
    if mesh.auto_axes and mesh.size > 1:
        x = jax.lax.with_sharding_constraint(x, everywhere)
    return x


def pinned(x: jax.Array) -> jax.Array:
    """A vector through which no parameter of automatic axes hands its sharding on."""
    return whole(x) if jax.typeof(x).sharding.mesh.auto_axes else x


def alike(*vectors: jax.Array) -> tuple[jax.Array, ...]:
    """Vectors of one shape that may be combined; whole where they lie differently."""
    specs = {jax.typeof(x).sharding.spec for x in vectors}
    if sum(any(spec) for spec in specs) <= 1:
        return vectors
    return tuple(whole(x) for x in vectors)


def spread(factors: jax.Array, x: jax.Array) -> jax.Array:
    """Factors that broadcast against an array, along its axes laid out as it is."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return factors
    spec = [
        s if n == m else None for s, n, m in zip(sharding.spec, factors.shape, x.shape)
    ]
    return jax.sharding.reshard(factors, NamedSharding(sharding.mesh, P(*spec)))


def put_like(array: ArrayLike, like: Leaf, *, split: bool = True) -> jax.Array:
    """An array, of another shape perhaps, where ``like`` lies.

    Args:
      array: what to put, on the host or on any device. The result may share the memory
        of a NumPy array, which must not be written to any more.
      like: an array, or its shape with a sharding.
      split: whether the array has the axes of ``like``, and is split as it is.

    Returns:
      The array on the devices of ``like``. An axis that the mesh does not divide evenly
      any more is whole on every device; the others are split as they were.
    """
    sharding = getattr(like, "sharding", None)
    if sharding is None or not getattr(like, "committed", True):
        return jax.device_put(array)  # jnp.asarray copies what lies in NumPy twice
    if isinstance(sharding, SingleDeviceSharding):
        return jax.device_put(array, sharding)
    mesh = getattr(sharding, "mesh", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(mesh, Mesh):
        return jax.device_put(array)

    def parts(entry: str | tuple[str, ...] | None) -> int:
        names = (entry,) if isinstance(entry, str) else entry or ()
        return math.prod(mesh.shape[name] for name in names)

    axes = zip(sharding.spec, jnp.shape(array)) if split else ()
    spec = [entry if n % parts(entry) == 0 else None for entry, n in axes]
    placed = NamedSharding(mesh, P(*spec), memory_kind=sharding.memory_kind)
    if isinstance(array, np.ndarray) and not placed.is_fully_addressable:
        # Each process cuts its parts out, where device_put would first send the whole
        # array to compare what the processes have.
        return jax.make_array_from_callback(array.shape, placed, array.__getitem__)
    return jax.device_put(array, placed)
