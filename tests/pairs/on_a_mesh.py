"""Programs on a mesh of eight devices, and what is found in them.

Run as a script on eight simulated devices, it proves by running what was found.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from volax import check_groups, find_groups

SHAPES = {"w1": (4, 8), "b1": (8,), "w2": (8, 3)}
W = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
X = jax.ShapeDtypeStruct((16, 4), jnp.float32)
BATCH, WHOLE = P("d"), P()
SPLIT = {"w1": P(None, "d"), "b1": P("d"), "w2": P("d")}


def mlp(p, x):
    return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"]


def mapped(body, params: P | dict[str, P] = WHOLE, inputs=BATCH, outputs=BATCH, **more):
    """A function of the mesh: its body on every device."""

    def on(mesh):
        specs = {"in_specs": (params, inputs), "out_specs": outputs}
        return jax.shard_map(body, mesh=mesh, **specs, **more)

    return on


def mean(p, x):
    return lax.pmean(mlp(p, x).mean(0), "d")


def moved(mesh):
    """Units that go from one place of an explicit mesh to another."""

    def fn(p, x):
        x = jax.sharding.reshard(x, NamedSharding(mesh, P("d")))
        h = jax.nn.relu(x @ p["w1"] + p["b1"])
        h = jax.sharding.reshard(h, NamedSharding(mesh, P(None, "d")))
        h = jax.sharding.reshard(h, NamedSharding(mesh, P("d")))
        return h @ p["w2"]

    return fn


def normed_inside(mesh):
    def body(h):
        return h / lax.psum(jnp.abs(h).sum(), "d")

    norm = jax.shard_map(body, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    return lambda p, x: norm(jax.nn.relu(x @ p["w1"])) @ p["w2"]


def extreme(mesh):
    def body(p, x):
        h = jax.nn.relu(x @ p["w1"] + p["b1"])
        return lax.pmax(h.max(0), "d")

    inner = mapped(body, outputs=WHOLE, check_vma=False)(mesh)
    return lambda p, x: inner(p, x) @ p["w2"]


# function of the mesh, kind of the mesh, a reason why w1 -> w2 is refused
CASES = {
    "data parallel": (mapped(mlp), AxisType.Auto, None),
    "mean over devices": (mapped(mean, outputs=WHOLE), AxisType.Auto, None),
    "extreme over devices": (extreme, AxisType.Auto, None),
    "reshard": (moved, AxisType.Explicit, None),
    "split units": (
        mapped(lambda p, x: lax.psum(mlp(p, x), "d"), SPLIT, WHOLE, WHOLE),
        AxisType.Auto, "shard_map splits the units over devices",
    ),
    "norm inside": (normed_inside, AxisType.Auto, "reduce_sum runs over the units"),
    "units exchanged": (
        mapped(lambda p, x: mlp(p | {"w1": lax.ppermute(
            p["w1"], "d", [(k, (k + 1) % 8) for k in range(8)])}, x)),
        AxisType.Auto, "no rule for ppermute",
    ),
}  # fmt: skip


def found(name, mesh):
    """The groups of a case, and its function."""
    fn = CASES[name][0](mesh)
    return find_groups(fn, W, X), fn


def main():
    for name, (_, kind, _) in CASES.items():
        mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            groups, fn = found(name, mesh)
            print(name, len(groups), check_groups(groups, fn, W, X))


def abstract(kind):
    return AbstractMesh((8,), ("d",), axis_types=(kind,))


if __name__ == "__main__":
    main()
