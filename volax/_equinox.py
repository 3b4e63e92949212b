"""Equinox modules: their arrays, and the sizes that their static fields repeat.

A layer of Equinox holds its sizes twice, in the shapes of its arrays and in static
fields, some of which its call reads: the groups of a convolution. A module made of
other arrays gets the sizes of those. Only layers of ``equinox.nn`` are known so well;
fields of other classes stay as they are.
"""

import sys
from collections.abc import Callable

import jax

from volax._types import Leaf, Module, Shape, Tree

# The size fields of a layer by name.
Fields = dict[str, int | Shape]


def is_module(node: object) -> bool:
    """Whether this is an Equinox module; imports nothing."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(node, equinox.Module)


def is_wrapper(node: object) -> bool:
    """Whether this is a function as ``eqx.filter_vmap`` and the like return it."""
    room = type(node).__module__
    return is_module(node) and room.startswith("equinox._")


def holds_module(tree: Tree) -> bool:
    """Whether a tree is or holds an Equinox module."""
    return any(map(is_module, jax.tree.leaves(tree, is_leaf=is_module)))


def is_array(leaf: Leaf) -> bool:
    """Whether a leaf is an array, or stands for one; no Python number is."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def split(
    tree: Tree, chosen: Callable[[Leaf], bool] = is_array
) -> tuple[Tree, Callable[[Tree], Tree]]:
    """The arrays of a tree of modules, and what makes such a tree of others.

    Args:
      tree: a module, or a tree that holds some; it is left alone.
      chosen: which leaves of modules count; outside of modules all do.

    Returns:
      The tree with ``None`` in the place of all other leaves, and a function that puts
      these back around arrays of any shapes and brings the sizes in line.
    """

    def part(counts: bool) -> Tree:
        def of(node: Tree) -> Tree:
            if not is_module(node):
                return node if counts else None
            return jax.tree.map(lambda x: x if chosen(x) == counts else None, node)

        return jax.tree.map(of, tree, is_leaf=is_module)

    arrays, rest = part(True), part(False)

    def merge(new: Tree) -> Tree:
        whole = jax.tree.map(
            lambda a, b: b if a is None else a, new, rest, is_leaf=_is_entry
        )
        return _sized(whole, tree)

    return arrays, merge


def _is_entry(node: object) -> bool:
    return node is None or is_array(node)


def _sized(node: Tree, before: Tree) -> Tree:
    """The tree with the size fields of its modules in line with their arrays."""

    def is_inner(x: object) -> bool:
        return is_array(x) or (x is not node and x is not before and is_module(x))

    inner, structure = jax.tree.flatten(node, is_leaf=is_inner)
    old = jax.tree.leaves(before, is_leaf=is_inner)
    new = structure.unflatten(
        _sized(a, b) if is_module(b) else a for a, b in zip(inner, old)
    )
    if is_module(before):
        was, now = _sizes(before), _sizes(new)
        for name in was:
            if getattr(before, name) == was[name] != now.get(name, was[name]):
                # Equinox freezes modules; this one was made just now.
                object.__setattr__(new, name, now[name])
    return new


def _sizes(module: Module) -> Fields:
    """What the fields of a layer have to be, by the shapes of its arrays."""
    nn = sys.modules["equinox"].nn
    if isinstance(module, nn.MLP):
        return _mlp(module)
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module)
    shape = _shape(module)
    for kind, rule in (
        (nn.Linear, _linear), (nn.Conv, _conv), (nn.ConvTranspose, _conv),
        (nn.GroupNorm, _group_norm), (nn.LayerNorm, _norm), (nn.RMSNorm, _norm),
        (nn.BatchNorm, _batch_norm), (nn.Embedding, _embedding),
    ):  # fmt: skip
        if shape and isinstance(module, kind):
            return rule(module, shape)
    return {}


def _shape(layer: Module) -> Shape | None:
    """Of the weight, if there is one: a filtered tree may lack it."""
    shape = getattr(getattr(layer, "weight", None), "shape", None)
    return None if shape is None else tuple(shape)


def _linear(layer: Module, shape: Shape) -> Fields:
    """The weight is ``[out, in]``; one of the sizes may be the word "scalar"."""
    return {"out_features": shape[-2], "in_features": shape[-1]}


def _conv(layer: Module, shape: Shape) -> Fields:
    """The weight is ``[out, in / groups, *window]``."""
    fan_out, fan_in = shape[-layer.num_spatial_dims - 2 :][:2]
    groups, found = layer.groups, {}
    if groups > 1 and groups == layer.in_channels:
        # A depthwise convolution, [groups * multiplier, 1, *window]: what is cut are
        # whole groups, and the multiplier stays.
        groups = fan_out // (layer.out_channels // groups)
        found["groups"] = groups
    return found | {"out_channels": fan_out, "in_channels": fan_in * groups}


def _group_norm(layer: Module, shape: Shape) -> Fields:
    """With one channel a group, as many groups as channels."""
    found: Fields = {"groups": shape[-1]} if layer.groups == layer.channels else {}
    return found | {"channels": shape[-1]}


def _norm(layer: Module, shape: Shape) -> Fields:
    return {"shape": shape[len(shape) - len(layer.shape) :]}


def _batch_norm(layer: Module, shape: Shape) -> Fields:
    return {"input_size": shape[-1]}


def _embedding(layer: Module, shape: Shape) -> Fields:
    return {"num_embeddings": shape[-2], "embedding_size": shape[-1]}


def _mlp(layer: Module) -> Fields:
    """The width follows where all hidden layers have one."""
    if not isinstance(layer.layers, tuple):
        return {}  # stacked, for a scan
    shapes = [shape for x in layer.layers if (shape := _shape(x))]
    if len(shapes) < len(layer.layers):
        return {}
    found: Fields = {"in_size": shapes[0][-1], "out_size": shapes[-1][-2]}
    widths = {shape[-2] for shape in shapes[:-1]}
    return found | ({"width_size": widths.pop()} if len(widths) == 1 else {})


def _attention(layer: Module) -> Fields:
    """The number of heads stays; their sizes follow."""
    names = ("query", "key", "value", "output")
    shapes = {name: _shape(getattr(layer, f"{name}_proj")) for name in names}
    query, key, value, output = shapes.values()
    if query is None or key is None or value is None or output is None:
        return {}
    return {
        "query_size": query[-1], "key_size": key[-1], "value_size": value[-1],
        "qk_size": query[-2] // layer.num_heads,
        "vo_size": value[-2] // layer.num_heads, "output_size": output[-2],
    }  # fmt: skip
