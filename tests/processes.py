"""One of two processes that train together, of four devices each: number, port, folder.

The processes have to make the same calls in the same order.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import AxisType, NamedSharding

import volax
from volax.examples._files import Checkpoints

HOST = {
    "w": np.arange(64, dtype=np.float32).reshape(16, 4),
    "half": np.arange(8).astype(jnp.bfloat16),
    "b": np.ones(3, np.float32),
}


def on_a_mesh(kind, arrays, **specs):
    """The arrays on a mesh over both processes; each puts its parts there."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)
    return {
        k: jax.make_array_from_callback(
            x.shape, NamedSharding(mesh, specs.get(k, P())), x.__getitem__
        )
        for k, x in arrays.items()
    }


def is_whole(found, like):
    for k, array in found.items():
        assert array.sharding == like[k].sharding
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, HOST[k][shard.index])


def main(process, folder):
    params = on_a_mesh(AxisType.Auto, HOST, w=P("a", "b"), half=P(("b", "a")))
    zeros = {k: np.zeros_like(x) for k, x in HOST.items()}
    like = on_a_mesh(AxisType.Explicit, zeros, w=P("b"), half=P("a"))
    assert not params["w"].is_fully_addressable

    path = folder / "model.safetensors"
    size = volax.save(path, params)
    assert size == (0 if process else path.stat().st_size)
    is_whole(volax.load(path, into=like).params, like)
    # What every process has all of needs no call of the others.
    assert bool(volax.save(folder / f"b{process}", {"b": params["b"]})) == (process < 1)
    assert not (folder / "b1").exists()
    missing = "process 0 could not write" if process else "No such file or directory"
    with pytest.raises(OSError, match=missing):
        volax.save(folder / "nowhere/model", params)

    rows = [{"loss": 0.5}, {"loss": 0.25}]
    with Checkpoints(folder / "checkpoints", seed=1) as checkpoints:
        assert checkpoints.restore(params)[1] == []
        for epochs in (1, 2):
            checkpoints.save(params, rows[:epochs])
        found, read = checkpoints.restore(like)
    is_whole(found, like)
    assert read == rows


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    number, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    main(number, folder)
    print("done")
