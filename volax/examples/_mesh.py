"""Where the arrays of a training lie on a mesh of devices; JAX moves them."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from volax.examples._errors import UserError

_AXES = ("data", "model")
LAYOUTS = ("replicated", "sharded", "tensor", "both")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Batches are split over the mesh's axis `data`, weights by a rule.

    The rule looks at shapes alone, so that the moments of an optimizer lie where their
    weights do. An axis is split where the mesh divides it.

    Attributes:
      mesh: with axes `data` and `model`.
      rule: matrices are `replicated`; `sharded`, their longest axis over `data`;
        `tensor`, their last axis over `model`; or `both`.
    """

    mesh: Mesh
    rule: str = "replicated"

    @property
    def whole(self) -> NamedSharding:
        """All of an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The first axis over the devices of `data`."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def of(self, leaf: Any) -> NamedSharding:
        """Where a weight lies, or a moment or mean of one."""
        shape, axes = leaf.shape, [None] * leaf.ndim
        if len(shape) < 2:
            return self.whole
        if (
            self.rule in ("tensor", "both")
            and shape[-1] % self.mesh.shape["model"] == 0
        ):
            axes[-1] = "model"
        free = [
            k
            for k, size in enumerate(shape)
            if axes[k] is None and size % self.mesh.shape["data"] == 0
        ]
        if self.rule in ("sharded", "both") and free:
            axes[max(free, key=lambda k: shape[k])] = "data"
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def held(self, tree: Any) -> Any:
        """The same arrays, for the compiler to lay out so."""
        return jax.lax.with_sharding_constraint(tree, jax.tree.map(self.of, tree))

    def placed(self, tree: Any) -> Any:
        """The same arrays, laid out so; every process has all of them."""
        return jax.tree.map(lambda x: _put(x, self.of(x)), tree)

    def copied(self, tree: Any) -> Any:
        """The same arrays on every device."""
        return jax.tree.map(lambda x: _put(x, self.whole), tree)

    def gathered(self, tree: Any) -> Any:
        """All of each array as this process holds it, in NumPy."""
        copy = jax.jit(lambda tree: tree, out_shardings=self.whole)
        return jax.tree.map(np.asarray, copy(tree))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])


def layout(config: Any, batch_size: int) -> Layout | None:
    """The layout that a config asks for; None where it names no mesh.

    Args:
      config: names the sizes of the mesh's axes and the rule.
      batch_size: examples in a step.

    Raises:
      UserError: for a mesh that the devices, or a batch that the mesh does not fit.
    """
    if config.layout not in LAYOUTS:
        raise UserError(f"layout is {config.layout!r}; there are {', '.join(LAYOUTS)}")
    sizes = tuple(config.mesh)
    if not sizes:
        if jax.process_count() > 1:
            raise UserError("several processes need a mesh, as in --config.mesh=(2,1)")
        return None
    if len(sizes) != 2 or min(sizes) < 1:
        raise UserError(f"mesh must be (data, model), both 1 or more, not {sizes}")
    if sizes[0] * sizes[1] != jax.device_count():
        raise UserError(
            f"mesh {sizes} has {sizes[0] * sizes[1]} devices, and there are "
            f"{jax.device_count()}"
        )
    if batch_size % sizes[0]:
        raise UserError(
            f"a batch of {batch_size} cannot be split over {sizes[0]} devices; "
            "batch_size must be a multiple of them"
        )
    kinds = (AxisType.Auto,) * 2
    return Layout(jax.make_mesh(sizes, _AXES, axis_types=kinds), config.layout)
