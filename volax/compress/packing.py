"""Weights in one or two bits of real memory: ``pack``, ``unpack`` and ``Packed``."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from volax import _paths, masks
from volax._numerics import promoted
from volax._sharding import put_like
from volax._types import KeyPath, Leaf, Selection, Tree
from volax.compress.quantize import check_finite, floating, on_grid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Packed weights: a node of a pytree, whose leaves are bytes and scales.

    Weights lie in the order of the flat array, the first in the lowest bits of a byte.
    One bit is 1 for plus. Two bits are 0 for zero, 1 for plus, 2 for minus.

    Attributes:
      data: uint8, ``[ceil(n / 8)]`` or ``[ceil(n / 4)]``.
      scale: in the dtype of the weights, of shape ``[]``, or of as many dimensions as
        the weights with the channels along one axis.
      shape: of the weights.
      bits: 1 or 2.
    """

    __array_ufunc__ = None  # NumPy leaves ``x @ packed`` to this class

    data: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    bits: int = dataclasses.field(metadata={"static": True})

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the weights."""
        return self.scale.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions of the weights."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of weights and scales together."""
        return self.data.nbytes + self.scale.nbytes

    def codes(self) -> jax.Array:
        """The weights as -1, 0, +1, int8 of ``shape``."""
        each = 8 // self.bits
        shifts = jnp.arange(each, dtype=jnp.uint8) * self.bits
        fields = (self.data[:, None] >> shifts) & ((1 << self.bits) - 1)
        flat = fields.reshape(-1)[: math.prod(self.shape)].astype(jnp.int8)
        signs = 2 * flat - 1 if self.bits == 1 else (flat & 1) - (flat >> 1)
        return signs.reshape(self.shape)

    def unpack(self) -> jax.Array:
        """The weights as a float array."""
        return on_grid(self.codes(), self.scale, self.dtype)

    @property
    def T(self) -> jax.Array:
        """The weights with the axes in reverse order, unpacked."""
        return self.unpack().T

    def __matmul__(self, x: jax.Array | np.ndarray) -> jax.Array:
        """``packed @ x``, as Equinox has it: unpacks inside the computation.

        With weights ``[..., out, in]`` and a scale that is the same along ``in``, the
        scale is taken out of the sum.
        """
        x = jnp.asarray(x)
        kind = jnp.promote_types(x.dtype, self.dtype)
        inner = self.scale.ndim > 0 and self.scale.shape[-1] != 1
        if self.ndim < 2 or inner:
            return self.unpack().astype(kind) @ x
        # [..., out, 1], or without the last axis, which a vector has not.
        scale = self.scale[..., 0] if self.scale.ndim and x.ndim == 1 else self.scale
        return (self.codes().astype(kind) @ x.astype(kind)) * scale.astype(kind)

    def __rmatmul__(self, x: jax.Array | np.ndarray) -> jax.Array:
        """``x @ packed``: unpacks inside the computation.

        The scale is taken out of the sum wherever it is the same along it.
        """
        x = jnp.asarray(x)
        inner = self.scale.ndim > 1 and self.scale.shape[-2] != 1
        if self.ndim < 2 or x.ndim < 2 or inner:
            return x @ self.unpack().astype(promoted(x.dtype, self.dtype))
        kind = promoted(x.dtype, self.dtype)
        scale = self.scale.reshape(self.scale.shape[:-2] + self.scale.shape[-1:])
        if len(self.shape) > 2 and scale.ndim:
            scale = scale[..., None, :]
        return (x.astype(kind) @ self.codes().astype(kind)) * scale.astype(kind)


def is_packed(node: object) -> bool:
    """Whether a node of a tree is packed weights."""
    return isinstance(node, Packed)


def pack(
    params: Tree,
    *,
    bits: int,
    channel_axis: int | None = None,
    mask: Selection = "matrices",
) -> Tree:
    r"""Stores quantized weights in real bytes: eight or four weights in each.

    Takes what :func:`volax.binarize` (``bits=1``) or :func:`volax.ternarize`
    (``bits=2``) made, and gives back the same numbers bit for bit through
    :func:`volax.unpack`. The result goes through ``jax.jit`` as it is; inside, either
    ``x @ packed`` or ``model(unpack(params), x)``.

    Args:
      params: a tree of parameters; each selected leaf holds only $\pm s$, or with two
        bits $-s$, 0 and $+s$.
      bits: bits a weight, 1 or 2.
      channel_axis: the axis along which each index has its own scale, as it was given
        to ``binarize`` or ``ternarize``.
      mask: which leaves, as in :func:`volax.volumize`; by default the matrices.

    Returns:
      A tree with :class:`Packed` in the place of the selected leaves. A leaf of n
      weights takes exactly $\lceil n/8 \rceil$ or $\lceil n/4 \rceil$ bytes and its
      scales; on a mesh every device has all of the bytes.

    Raises:
      ValueError: ``bits`` is neither 1 nor 2, or a selected leaf is not on the grid.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = pack({"kernel": jnp.full((3, 3), -0.5)}, bits=1)["kernel"]
      >>> kernel.data.tolist(), float(kernel.scale), (jnp.ones(3) @ kernel).tolist()
      ([0, 0], 0.5, [-1.5, -1.5, -1.5])

    References:
      Rastegari et al., `XNOR-Net <https://arxiv.org/abs/1603.05279>`_, 2016; Li et al.,
      `Ternary Weight Networks <https://arxiv.org/abs/1605.04711>`_, 2016.
    """
    if bits not in (1, 2):
        raise ValueError(f"pack: bits must be 1 or 2, got {bits!r}")
    chosen = floating(masks.selected(mask, params, "pack"), params, "pack", mask)

    def leaf(path: KeyPath, w: Leaf) -> Leaf:
        where = _paths.key_path(path)
        return _packed(where, w, bits, channel_axis) if where in chosen else w

    return _paths.map_with_path(leaf, params)


def unpack(packed: Tree) -> Tree:
    """Turns packed weights back into float arrays; works inside ``jax.jit``.

    Args:
      packed: a tree with :class:`Packed` nodes, or one such node.

    Returns:
      The tree with a float array in the place of each of them.

    Example:
      >>> import jax.numpy as jnp
      >>> tree = {"kernel": jnp.array([[0.5, -0.5, 0.0]]), "bias": jnp.ones(3)}
      >>> unpack(pack(tree, bits=2))["kernel"].tolist()
      [[0.5, -0.5, 0.0]]
    """
    return jax.tree.map(
        lambda node: node.unpack() if is_packed(node) else node,
        packed,
        is_leaf=is_packed,
    )


def _packed(path: str, w: Leaf, bits: int, channel_axis: int | None) -> Packed:
    if isinstance(w, Tracer):
        raise ValueError(f"pack: {path!r} is traced; call pack outside jax.jit")
    check_finite("pack", path, w)
    values = np.asarray(w)
    axes, keep = tuple(range(values.ndim)), False
    if channel_axis is not None:
        if not -values.ndim <= channel_axis < values.ndim:
            raise ValueError(
                f"pack: {path!r} of shape {values.shape} has no axis {channel_axis}"
            )
        axes = tuple(i for i in axes if i != channel_axis % values.ndim)
        keep = True
    scale = np.max(np.abs(values), axes, keepdims=keep, initial=0)
    scale = np.asarray(scale, values.dtype)
    size = np.abs(values)
    if not ((size == scale) | ((size == 0) & (bits == 2))).all():
        have = np.unique(size.astype(float))
        grid, make = ("-s, +s", "binarize") if bits == 1 else ("-s, 0, +s", "ternarize")
        hint = ", and give channel_axis if its scales are by channel"
        raise ValueError(
            f"pack: {path!r} is not on a grid of {grid}: its sizes go from "
            f"{have[0]:.4g} to {have[-1]:.4g}; {make} it first"
            + (hint if channel_axis is None else "")
        )
    if bits == 1:
        # A channel of zeros has the scale 0 and any sign.
        codes = (values >= 0).astype(np.uint8)
    else:
        codes = np.where(values > 0, 1, np.where(values < 0, 2, 0)).astype(np.uint8)
    each = 8 // bits
    flat = codes.reshape(-1)
    flat = np.pad(flat, (0, -flat.size % each)).reshape(-1, each)
    shifts = np.arange(each, dtype=np.uint8) * bits
    data = (flat << shifts).sum(axis=1, dtype=np.uint8)
    data = put_like(data, w, split=False)  # bytes hold weights of several rows
    return Packed(data, put_like(scale, w), values.shape, bits)
