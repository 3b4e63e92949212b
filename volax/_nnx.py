"""Modules that hold their own parameters: Flax NNX.

A module's sizes are also written in its attributes. They follow from the new shapes
alone, so tracing a smaller model, cutting one and loading one share this code.
"""

import sys
from collections.abc import Callable, Mapping

from volax import _paths
from volax._types import Module, Shape, Tree

Shapes = Mapping[str, Shape]
Fields = dict[str, int | Shape]  # the size attributes of a layer by name


def is_module(model: object) -> bool:
    """Whether this is a Flax NNX module; imports nothing."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def split(module: Module) -> tuple[Tree, Callable[[Tree], Module]]:
    """The arrays of a module, and what makes a new module of others.

    Args:
      module: an NNX module; it is left alone.

    Returns:
      The state, and a function from a state of any shapes to a module.
    """
    from flax import nnx

    graph, state = nnx.split(module)
    return state, lambda new: nnx.merge(graph, new)


def resize(module: Module, before: Module) -> None:
    """Brings size attributes in line with the arrays that have another shape.

    An attribute follows where it had the value that its rule gives for the shape
    before. In a class that is not Flax's own, equal sizes do not tell which of two
    attributes an axis is: there, attributes that were equal and would part stay.

    Args:
      module: a module whose arrays were replaced; it is changed in place.
      before: the module that it was made from.
    """
    from flax import nnx

    for (_, inner), (_, whole) in zip(
        nnx.iter_modules(module), nnx.iter_modules(before)
    ):
        old: Fields = {}
        new: Fields = {}
        for name, rule in _RULES.items():
            array, were = _inside(inner, name), _inside(whole, name)
            if isinstance(array, nnx.Variable) and isinstance(were, nnx.Variable):
                shapes = were.get_value().shape, array.get_value().shape
                if shapes[0] != shapes[1] and len(shapes[0]) == len(shapes[1]):
                    old |= rule(inner, tuple(shapes[0]))
                    new |= rule(inner, tuple(shapes[1]))
        kernels = _projections(whole), _projections(inner)
        if kernels[0] != kernels[1]:
            old, new = old | _attention(kernels[0]), new | _attention(kernels[1])
        held = {k: v for k, v in old.items() if getattr(inner, k, None) == v}
        known = any(c.__module__.startswith("flax.nnx.nn.") for c in type(inner).mro())
        for attribute, value in held.items():
            after = {repr(new[k]) for k, v in held.items() if v == value}
            if known or len(after) == 1:
                setattr(inner, attribute, new[attribute])


def _inside(module: Module, name: str) -> Module:
    """An attribute, or an attribute of an attribute, or ``None``."""
    for step in name.split("."):
        module = getattr(module, step, None)
    return module


def owners(module: Module) -> dict[str, str]:
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


def _kernel(module: Module, shape: Shape) -> Fields:
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


def _vector(module: Module, shape: Shape) -> Fields:
    """Norms; a group norm of one channel a group has as many groups as channels."""
    found: Fields = {"num_features": shape[-1]}
    if getattr(module, "group_size", None) == 1:
        found["num_groups"] = shape[-1]
    return found


def _embedding(module: Module, shape: Shape) -> Fields:
    return {"num_embeddings": shape[-2], "features": shape[-1]}


def _hidden(module: Module, shape: Shape) -> Fields:
    """A recurrent cell, which makes its first carry of this size."""
    return {"hidden_features": shape[-2]}


def _input(module: Module, shape: Shape) -> Fields:
    return {"in_features": shape[-2]}


def _projections(module: Module) -> tuple[Shape, ...]:
    """Shapes of the query, key and output kernels of an attention, else nothing.

    They are ``[in, heads, size]`` twice and ``[heads, size, out]``.
    """
    from flax import nnx

    if not isinstance(getattr(module, "head_dim", None), int):
        return ()
    inner = (getattr(module, name, None) for name in ("query", "key", "out"))
    kernels = [getattr(layer, "kernel", None) for layer in inner]
    found = [tuple(k.get_value().shape) for k in kernels if isinstance(k, nnx.Variable)]
    return tuple(found) if [len(s) for s in found] == [3, 3, 3] else ()


def _attention(kernels: tuple[Shape, ...]) -> Fields:
    (ins, heads, size), (kv_ins, kv_heads, _), (*_, outs) = kernels
    return {
        "in_features": ins, "in_kv_features": kv_ins, "out_features": outs,
        "num_heads": heads, "num_kv_heads": kv_heads, "qkv_features": heads * size,
    }  # fmt: skip


_RULES = {
    "kernel": _kernel, "scale": _vector, "bias": _vector, "mean": _vector,
    "embedding": _embedding, "dense_h.kernel": _hidden, "hi.kernel": _hidden,
    "dense_i.kernel": _input, "ii.kernel": _input,
}  # fmt: skip


def shapes(tree: Tree) -> dict[str, Shape]:
    """The shape of every array of a tree by key path."""
    return {
        k: tuple(getattr(v, "shape", ())) for k, v in _paths.named_leaves(tree).items()
    }
