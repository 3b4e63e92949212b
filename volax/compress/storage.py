"""Models on disk: arrays in the safetensors format with a JSON manifest beside them.

The file is an ordinary safetensors file: eight bytes with the length of a JSON header,
the header, and the bytes of all arrays (https://github.com/huggingface/safetensors).
The manifest and a checksum of everything stand in the header's metadata. Reading parses
JSON and copies bytes; nothing in a file is ever run. The safetensors library is not
needed for it: its readers of whole files know no bfloat16, and return no metadata.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from volax import _nnx as modules
from volax import masks
from volax.compress.compact import Compacted
from volax.compress.packing import Packed, is_packed

_FORMAT = "volax 1"
_HEADER_LIMIT = 100_000_000  # bytes, that of the safetensors format

_DTYPES = {
    "BOOL": jnp.bool_, "U8": jnp.uint8, "I8": jnp.int8, "U16": jnp.uint16,
    "I16": jnp.int16, "U32": jnp.uint32, "I32": jnp.int32, "U64": jnp.uint64,
    "I64": jnp.int64, "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2,
    "F16": jnp.float16, "BF16": jnp.bfloat16, "F32": jnp.float32, "F64": jnp.float64,
    "C64": jnp.complex64,
}  # fmt: skip
# What parsing a damaged file may raise.
_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
    RecursionError,
)  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a file holds.

    Attributes:
      params: the arrays, as nested dictionaries and lists, or as ``into`` had them.
      manifest: what was saved beside them, plain JSON values.
    """

    params: Any
    manifest: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    params: Any,
    *,
    manifest: Mapping[str, Any] | None = None,
) -> int:
    """Writes a model to one file, all of it or nothing.

    Args:
      path: the file, by convention ``.safetensors``; it is replaced in one step, once
        the new one is on the disk.
      params: a tree of arrays, packed ones included, an NNX module, or what
        :func:`volax.compact` returned (its parameters and its manifest).
      manifest: further plain JSON values to keep beside the arrays.

    Returns:
      The size of the file in bytes.

    Raises:
      ValueError: a dtype that the format lacks, or a manifest that is no plain JSON.
      OSError: the file cannot be written; the old one is still there.

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
    tree = modules.split(params)[0] if modules.is_module(params) else params
    arrays, places = {}, {}
    for key_path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_packed)[
        0
    ]:
        name = jax.tree_util.keystr(key_path, simple=True, separator="/") or "."
        own_names = {name, f"{name}/data", f"{name}/scale"}
        if name == "__metadata__" or not own_names.isdisjoint({*places, *arrays}):
            raise ValueError(f"save: the key path {name!r} is taken or reserved")
        places[name] = {"keys": [_key(k) for k in key_path]}
        if isinstance(node, Packed):
            places[name] |= {"shape": list(node.shape), "bits": node.bits}
            arrays[f"{name}/data"] = np.asarray(node.data)
            arrays[f"{name}/scale"] = np.asarray(node.scale)
        elif _is_key(node):
            places[name] |= {"random": str(jax.random.key_impl(node))}
            arrays[name] = np.asarray(jax.random.key_data(node))
        else:
            arrays[name] = np.asarray(node)
    with _writing(Path(path)) as file:
        return _write(file, arrays, {"leaves": places, "manifest": own})


def load(path: str | os.PathLike[str], *, into: Any = None) -> Loaded:
    """Reads a model that :func:`save` wrote.

    Args:
      path: the file.
      into: a tree, or an NNX module, of the same key paths, whose arrays are replaced,
        whatever their shape; a module becomes a new one with its size attributes set
        and packed weights unpacked.
        ``None``: nested dictionaries and lists.

    Returns:
      The arrays and the manifest.

    Raises:
      ValueError: the file is truncated, altered, or none of :func:`save`'s; or the key
        paths of ``into`` differ. The message names the file.
      OSError: the file cannot be read.

    Example:
      >>> import jax.numpy as jnp, tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "small.safetensors")
      >>> size = save(path, {"w": jnp.arange(2.0)})
      >>> load(path, into={"w": jnp.zeros(5)}).params["w"].shape
      (2,)
    """
    raw = Path(path).read_bytes()
    arrays, about = _read(str(path), raw)
    leaves = {}
    try:
        for name, place in about["leaves"].items():
            leaves[name] = _leaf(arrays, name, place)
        keys = {name: place["keys"] for name, place in about["leaves"].items()}
        manifest = about["manifest"]
    except _MALFORMED as error:
        raise ValueError(f"load: {path} holds no model of volax ({error!r})") from error
    if into is None:
        return Loaded(_nested(leaves, keys), manifest)
    tree, merge = modules.split(into) if modules.is_module(into) else (into, None)
    filled = _filled(str(path), tree, leaves, merge is not None)
    if merge is None:
        return Loaded(filled, manifest)
    module = merge(filled)
    modules.resize(module)
    return Loaded(module, manifest)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key)


def _key(entry: Any) -> list[Any]:
    """One step of a key path, as JSON."""
    if isinstance(entry, jax.tree_util.SequenceKey):
        return ["item", entry.idx]
    if isinstance(entry, jax.tree_util.DictKey) and isinstance(entry.key, str | int):
        return ["key", entry.key]
    return ["name", jax.tree_util.keystr((entry,), simple=True)]


def _leaf(arrays: dict[str, np.ndarray], name: str, place: dict[str, Any]) -> Any:
    if "bits" in place:
        data, scale = arrays[f"{name}/data"], arrays[f"{name}/scale"]
        shape, bits = tuple(place["shape"]), place["bits"]
        return Packed(jnp.asarray(data), jnp.asarray(scale), shape, bits)
    if "random" in place:
        return jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=place["random"])
    array = arrays[name]
    # Without x64 a wide array stays as it is in NumPy, rather than lose its bits.
    kept = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return jnp.asarray(array) if kept else array


def _nested(leaves: dict[str, Any], keys: dict[str, list[Any]]) -> Any:
    """Dictionaries and lists by the steps of the key paths."""
    if list(keys.values()) == [[]]:
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
        if kind == "item"
    }

    def listed(node: Any, above: tuple[Any, ...]) -> Any:
        if not isinstance(node, dict):
            return node
        inner = {k: listed(v, (*above, k)) for k, v in node.items()}
        return [inner[k] for k in sorted(inner)] if above in lists else inner

    return listed(root, ())


def _filled(file: str, tree: Any, leaves: dict[str, Any], unpacked: bool) -> Any:
    """A tree with the arrays of a file."""
    have = {masks.key_path(_path(name)): leaf for name, leaf in leaves.items()}
    named = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_packed)[0]
    want = {masks.key_path(path) for path, _ in named}
    for path in sorted(want - have.keys()):
        raise ValueError(f"load: {file} lacks {path!r}; {masks.nearest(path, have)}")
    for path in sorted(have.keys() - want):
        raise ValueError(
            f"load: {file} holds {path!r}, which into has not; "
            f"{masks.nearest(path, want)}"
        )

    def filled(path: tuple[Any, ...], _: Any) -> Any:
        new = have[masks.key_path(path)]
        return new.unpack() if unpacked and is_packed(new) else new

    return jax.tree_util.tree_map_with_path(filled, tree, is_leaf=is_packed)


def _path(name: str) -> tuple[Any, ...]:
    return tuple(jax.tree_util.GetAttrKey(part) for part in name.split("/"))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once it is complete and on the disk."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(file: BinaryIO, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> int:
    try:
        text = json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"save: the manifest is no plain JSON: {error}") from error
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise ValueError(f"save: {name!r}: dtype {array.dtype} cannot be stored")
        end = offset + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    blocks = [np.ascontiguousarray(a).tobytes() for a in arrays.values()]
    total = _checksum(header, text, blocks)
    header["__metadata__"] = {"format": _FORMAT, "volax": text, "sha256": total}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    for block in blocks:
        file.write(block)
    return 8 + len(head) + offset


def _checksum(header: dict[str, Any], text: str, blocks: list[bytes]) -> str:
    """Of the names, shapes and bytes of all arrays, and of the manifest."""
    digest = hashlib.sha256(json.dumps([header, text], sort_keys=True).encode())
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _read(file: str, raw: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the manifest of a file, checked."""
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or raw[8:9] != b"{" or size > _HEADER_LIMIT:
        raise ValueError(f"load: {file} is no safetensors file")
    if len(raw) < 8 + size:
        raise ValueError(f"load: {file} is truncated: it ends inside its header")
    try:
        header = json.loads(raw[8 : 8 + size])
        meta = header.pop("__metadata__", {})
        foreign = meta.get("format") != _FORMAT
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except _MALFORMED as error:
        raise ValueError(f"load: {file} has a damaged header: {error!r}") from error
    if foreign:
        raise ValueError(f"load: {file} was not written by volax.save")
    data = memoryview(raw)[8 + size :]
    if len(data) != end:
        kind = "truncated" if len(data) < end else "altered"
        raise ValueError(
            f"load: {file} is {kind}: it holds {len(data)} bytes of arrays, "
            f"expected {end}"
        )
    try:
        blocks = [bytes(data[slice(*e["data_offsets"])]) for e in header.values()]
        same = _checksum(header, meta["volax"], blocks) == meta["sha256"]
        arrays = {
            name: np.frombuffer(block, _DTYPES[e["dtype"]]).reshape(e["shape"])
            for (name, e), block in zip(header.items(), blocks)
        }
        about = json.loads(meta["volax"])
    except _MALFORMED as error:
        raise ValueError(f"load: {file} has a damaged header: {error!r}") from error
    if not same:
        raise ValueError(f"load: {file} was altered: its checksum does not match")
    return arrays, about
