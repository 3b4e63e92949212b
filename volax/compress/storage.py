"""Models on disk: arrays in the safetensors format with a JSON manifest beside them.

The manifest holds the key paths and what the user gave. Reading parses JSON and copies
bytes; nothing in a file is ever run. safetensors 0.8.0 writes float8 arrays but cannot
read them into NumPy (``safe_open(..., "np").get_tensor`` looks for
``numpy.float8_e4m3fn``), so they lie in the file as bytes, uint8, and the manifest says
what they are.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from volax import _modules, _paths
from volax._sharding import put_like
from volax._types import Json, Leaf, Tree
from volax.compress import _file
from volax.compress.compact import Compacted
from volax.compress.packing import Packed, is_packed

_STORED = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "bfloat16", "float32", "float64", "complex64",
)  # fmt: skip
_AS_BYTES = ("float8_e4m3fn", "float8_e5m2")
# What reading the manifest of a damaged file may raise.
_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
    RecursionError,
)  # fmt: skip

# What a step of a key path goes into, as the manifest says it.
_ITEM, _KEY, _NAME = "item", "key", "name"  # a sequence, a dictionary, anything else

Step = tuple[str, str | int]  # what a step goes into, and the name or number
Steps = tuple[str, ...]  # the names along a key path


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a file holds.

    Attributes:
      params: the arrays, as nested dictionaries and lists, or as ``into`` had them.
      manifest: what was saved beside them, plain JSON values.
    """

    params: Tree
    manifest: Json


def save(
    path: str | os.PathLike[str],
    params: Tree,
    *,
    manifest: Mapping[str, Any] | None = None,
) -> int:
    """Writes a model to one file, all of it or nothing.

    Where several processes train one model, process 0 writes the file. Arrays of which
    no process has all, one after the other, are gathered on each, so that every process
    has to make the call, and it returns when the file is written.

    Args:
      path: the file, by convention ``.safetensors``; it is replaced in one step, once
        the new one is on the disk.
      params: a tree of arrays, packed ones included, an NNX or Equinox module (its
        arrays), or what :func:`volax.compact` returned (its parameters and its
        manifest).
      manifest: further plain JSON values to keep beside the arrays.

    Returns:
      The size of the file in bytes; 0 on a process that does not write.

    Raises:
      ValueError: a dtype that the format lacks, a manifest that is no plain JSON, or
        two leaves whose key paths read the same.
      OSError: the file cannot be written (on any process: by process 0); the old one
        is still there.
      ImportError: safetensors is not installed.

    Example:
      >>> import jax.numpy as jnp, tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "small.safetensors")
      >>> size = save(path, {"w": jnp.arange(3.0)}, manifest={"accuracy": 0.97})
      >>> load(path).params["w"].tolist(), load(path).manifest
      ([0.0, 1.0, 2.0], {'accuracy': 0.97})
    """
    own = dict(manifest or {})
    if isinstance(params, Compacted):
        extra = {} if params.state is None else {"state": params.state}
        own = {"compact": params.manifest, **own}
        params = {"params": params.params, **extra} if extra else params.params
    tree, _ = _modules.split(params)
    arrays, places = {}, {}
    for key_path, node in _paths.flatten_with_path(tree, is_packed):
        name = jax.tree_util.keystr(key_path, simple=True, separator="/")
        name = name if key_path else "."
        place, parts = _parts(name, node)
        taken = name in places or not arrays.keys().isdisjoint(parts)
        if taken or name == "__metadata__":
            raise ValueError(
                f"save: the key path {name!r} is taken or reserved: expected one that "
                "no other array has, and not '__metadata__'"
            )
        places[name] = {"keys": [_key(k) for k in key_path], **place}
        arrays |= parts
    try:
        text = json.dumps({"leaves": places, "manifest": own}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"save: the manifest is no plain JSON: {error}") from error
    if all(_is_addressable(leaf) for leaf in jax.tree.leaves(tree)):
        return _file.write(Path(path), arrays, text)
    size, apart = 0, any(_is_apart(leaf) for leaf in jax.tree.leaves(tree))
    try:
        if jax.process_index() == 0:
            size = _file.write(Path(path), arrays, text)
    finally:
        # The others learn how it went, lest they wait for a process that has stopped.
        written = multihost_utils.broadcast_one_to_all(size > 0) if apart else True
    if not written:
        raise OSError(f"save: process 0 could not write {path}")
    return size


def load(path: str | os.PathLike[str], *, into: Tree = None) -> Loaded:
    """Reads a model that :func:`save` wrote.

    Args:
      path: the file.
      into: a tree, or an NNX or Equinox module, of the same key paths, whose arrays
        are replaced, whatever their shape. A module becomes a new one with its size
        attributes in line, all that is no array as it was, and packed weights unpacked
        where it had none. On a mesh every array is put where the one that it replaces
        lay, whatever mesh it was saved from; an axis whose new size the mesh does not
        divide is whole on every device. Of several processes each reads the file.
        ``None``: nested dictionaries and lists.

    Returns:
      The arrays and the manifest.

    Raises:
      ValueError: the file is truncated, altered, or none of :func:`save`'s; or the key
        paths of ``into`` differ. The message names the file.
      OSError: the file cannot be read.
      ImportError: safetensors is not installed.

    Example:
      >>> import jax.numpy as jnp, tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "small.safetensors")
      >>> size = save(path, {"w": jnp.arange(2.0)})
      >>> load(path, into={"w": jnp.zeros(5)}).params["w"].shape
      (2,)
    """
    tree, merge = _modules.split(into)
    likes = dict(zip(_below_params(_places(tree)), jax.tree.leaves(tree, is_packed)))
    leaves: dict[str, Leaf] = {}
    with _file.reading(Path(path)) as (text, read):
        try:
            about = json.loads(text)
            manifest, places = about["manifest"], about["leaves"]
            keys = {
                name: [(kind, step) for kind, step in place["keys"]]
                for name, place in places.items()
            }
            steps = {
                name: tuple(str(step) for _, step in path)
                for name, path in keys.items()
            }
            for name, below in zip(places, _below_params(list(steps.values()))):
                leaves[name] = _leaf(read, name, places[name], likes.get(below))
        except _MALFORMED as error:
            raise ValueError(
                f"load: {path} is damaged, or holds no model of volax ({error!r})"
            ) from error
    if into is None:
        return Loaded(_nested(leaves, keys), manifest)
    have = {steps[name]: leaf for name, leaf in leaves.items()}
    filled = _filled(str(path), tree, have, _modules.is_module(into))
    return Loaded(merge(filled), manifest)


def _is_addressable(leaf: Leaf) -> bool:
    """Whether this process has all of an array."""
    return getattr(leaf, "is_fully_addressable", True)


def _is_apart(leaf: Leaf) -> bool:
    """Whether an array lies in parts on several processes, none of which has all."""
    return not _is_addressable(leaf) and not leaf.is_fully_replicated


def _is_key(x: Leaf) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key)


def _key(entry: Any) -> list[str | int]:
    """One step of a key path, as JSON."""
    if isinstance(entry, jax.tree_util.SequenceKey):
        return [_ITEM, entry.idx]
    if isinstance(entry, jax.tree_util.DictKey) and isinstance(entry.key, str | int):
        return [_KEY, entry.key]
    return [_NAME, jax.tree_util.keystr((entry,), simple=True)]


def _parts(name: str, node: Leaf) -> tuple[Json, dict[str, np.ndarray]]:
    """What the manifest says of a leaf, and by their names the arrays that hold it.

    Packed weights are two arrays, the bits and the scales; a random key is the integers
    that it is made of; every other leaf is the array that it is.
    """
    if isinstance(node, Packed):
        place = {"shape": list(node.shape), "bits": node.bits}
        parts = {f"{name}/data": node.data, f"{name}/scale": node.scale}
    elif _is_key(node):
        place = {"random": str(jax.random.key_impl(node))}
        parts = {name: jax.random.key_data(node)}
    else:
        place, parts = {}, {name: node}
    stored = {}
    for part, leaf in parts.items():
        if _is_apart(leaf):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf, order="C")
        kind = array.dtype.name
        if kind in _AS_BYTES:
            place["dtype"], array = kind, array.view(np.uint8)
        elif kind not in _STORED:
            raise ValueError(f"save: {part!r}: dtype {array.dtype} cannot be stored")
        stored[part] = array
    return place, stored


def _leaf(
    read: Callable[[str], np.ndarray], name: str, place: Json, like: Leaf
) -> Leaf:
    """A leaf of the tree, of the arrays that ``read`` gives by their names."""
    if "bits" in place:
        data, scale = read(f"{name}/data"), read(f"{name}/scale")
        of = like if is_packed(like) else Packed(like, like, (), place["bits"])
        data = put_like(data, of.data, split=is_packed(like))
        shape, bits = tuple(place["shape"]), place["bits"]
        return Packed(data, put_like(scale, of.scale), shape, bits)
    array = read(name)
    if "random" in place:
        key = jax.random.wrap_key_data(jnp.asarray(array), impl=place["random"])
        return put_like(key, like)
    if "dtype" in place:
        array = array.view(jnp.dtype(place["dtype"]))
    # Without x64 a wide array stays as it is in NumPy, rather than lose its bits.
    kept = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return put_like(array, like) if kept else array


def _nested(leaves: dict[str, Leaf], keys: dict[str, list[Step]]) -> Tree:
    """Dictionaries and lists by the steps of the key paths, as (kind, step) each."""
    if list(keys.values()) == [[]]:  # the tree was one bare array
        return next(iter(leaves.values()))
    root: dict[Any, Any] = {}
    for name, leaf in leaves.items():
        *steps, (_, last) = keys[name]
        node = root
        for _, step in steps:
            node = node.setdefault(step, {})
        node[last] = leaf
    lists = {
        tuple(step for _, step in steps[:depth])
        for steps in keys.values()
        for depth, (kind, _) in enumerate(steps)
        if kind == _ITEM
    }

    def listed(node: Tree, above: tuple[str | int, ...]) -> Tree:
        if not isinstance(node, dict):
            return node
        inner = {k: listed(v, (*above, k)) for k, v in node.items()}
        if above not in lists:
            return inner
        # An entry that was None, which holds no array, has no key path and is missing.
        return [inner.get(k) for k in range(max(inner) + 1)]

    return listed(root, ())


def _filled(file: str, tree: Tree, have: dict[Steps, Leaf], runs: bool) -> Tree:
    """A tree with the arrays of a file, which stand there by the same key paths.

    Where ``runs`` the tree is that of a module, which computes with its arrays, so that
    packed weights of the file are unpacked unless the module had packed ones itself.
    """
    places = _places(tree)
    if set(places) != have.keys():
        # Saved as Linen variables and loaded as their parameters, or the other way.
        places, below = _below_params(places), _below_params(list(have))
        have = dict(zip(below, have.values()))
    want, names = set(places), ["/".join(steps) for steps in have]
    for steps in sorted(want - have.keys()):
        path = "/".join(steps)
        raise ValueError(f"load: {file} lacks {path!r}; {_paths.nearest(path, names)}")
    for steps in sorted(have.keys() - want):
        path = "/".join(steps)
        raise ValueError(
            f"load: {file} holds {path!r}, which into has not; "
            f"{_paths.nearest(path, ['/'.join(steps) for steps in places])}"
        )
    new = [have[steps] for steps in places]
    old, structure = jax.tree.flatten(tree, is_leaf=is_packed)
    return structure.unflatten(
        put_like(leaf.unpack(), like)
        if runs and is_packed(leaf) and not is_packed(like)
        else leaf
        for leaf, like in zip(new, old)
    )


def _places(tree: Tree) -> list[Steps]:
    """The key paths of a tree by their steps, in the tree's order."""
    paths = [path for path, _ in _paths.flatten_with_path(tree, is_packed)]
    return [tuple(str(_key(entry)[1]) for entry in path) for path in paths]


def _below_params(paths: list[Steps]) -> list[Steps]:
    """Key paths below ``params``, where all stand in this one Linen collection."""
    within = all(len(steps) > 1 and steps[0] == "params" for steps in paths)
    return [steps[1:] for steps in paths] if within else paths
