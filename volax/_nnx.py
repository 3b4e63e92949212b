"""Modules that hold their own parameters: Flax NNX.

A module's sizes are also written in its attributes. They follow from the new shapes
alone, so tracing a smaller model, cutting one and loading one share this code.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from volax import masks

Shapes = Mapping[str, tuple[int, ...]]


def is_module(model: Any) -> bool:
    """Whether this is a Flax NNX module; imports nothing."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def split(module: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The arrays of a module, and what makes a new module of others.

    Args:
      module: an NNX module; it is left alone.

    Returns:
      The state, and a function from a state of any shapes to a module.
    """
    from flax import nnx

    graph, state = nnx.split(module)
    return state, lambda new: nnx.merge(graph, new)


def resize(module: Any) -> None:
    """Brings the size attributes of all modules inside in line with the arrays."""
    from flax import nnx

    for _, inner in nnx.iter_modules(module):
        for name, rule in _RULES.items():
            array = getattr(inner, name, None)
            if isinstance(array, nnx.Variable):
                shape = tuple(array.get_value().shape)
                for attribute, size in rule(inner, shape).items():
                    if getattr(inner, attribute, size) != size:
                        setattr(inner, attribute, size)


def owners(module: Any) -> dict[str, str]:
    """Kernels whose output size belongs to the module around them, and its name.

    Attention cuts its projections into heads of one size: a query, key or value that
    is cut alone leaves a module that does not run.
    """
    if not is_module(module):
        return {}
    from flax import nnx

    found = {}
    for path, outer in nnx.iter_modules(module):
        if isinstance(getattr(outer, "head_dim", None), int):
            for name, inner in vars(outer).items():
                if isinstance(getattr(inner, "out_features", None), tuple):
                    kernel = "/".join(map(str, (*path, name, "kernel")))
                    found[kernel] = f"{type(outer).__name__} {'/'.join(map(str, path))}"
    return found


def _kernel(module: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Linear, Conv, ConvTranspose, Einsum and LinearGeneral; stacks lie in front."""
    found = {}
    written = getattr(module, "kernel_shape", None)
    if isinstance(written, tuple) and written:
        found["kernel_shape"] = shape[-len(written) :]
    ins = getattr(module, "in_features", None)
    outs = getattr(module, "out_features", None)
    if isinstance(ins, tuple) and isinstance(outs, tuple):
        last = shape[len(shape) - len(outs) :]
        before = shape[: len(shape) - len(outs)]
        return found | {
            "in_features": before[len(before) - len(ins) :],
            "out_features": last,
        }
    if not (isinstance(ins, int) and isinstance(outs, int)) or len(shape) < 2:
        return found
    fan_in, fan_out = shape[-2:]
    if getattr(module, "transpose_kernel", False):
        fan_in, fan_out = fan_out, fan_in
    count = getattr(module, "feature_group_count", 1)
    if count > 1 and count == ins:  # depthwise: a group a channel
        count = fan_out // (outs // ins)
        found["feature_group_count"] = count
    return found | {"in_features": fan_in * count, "out_features": fan_out}


def _vector(module: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"num_features": shape[-1]}


def _embedding(module: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"num_embeddings": shape[-2], "features": shape[-1]}


_RULES = {
    "kernel": _kernel, "scale": _vector, "bias": _vector, "mean": _vector,
    "embedding": _embedding,
}  # fmt: skip


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a tree by key path."""
    return {
        k: tuple(getattr(v, "shape", ())) for k, v in masks.named_leaves(tree).items()
    }
