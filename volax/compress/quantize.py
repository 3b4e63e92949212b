"""Weights on one or two bits: ``binarize`` and ``ternarize``, as float arrays."""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from volax import _paths, masks
from volax._numerics import wide
from volax._types import KeyPath, Leaf, Selection, Tree


def binarize(
    params: Tree,
    *,
    volume: Tree = None,
    channel_axis: int | None = None,
    mask: Selection = "matrices",
) -> Tree:
    r"""Replaces weights by their sign times a scale, $w \to s \cdot \mathrm{sign}(w)$.

    A weight of exactly 0 becomes $+s$, so remove dead units first
    (:func:`volax.compact`). The result holds ordinary float arrays, for evaluation and
    further training; :func:`volax.pack` stores them in one bit a weight.

    Args:
      params: a tree of parameters.
      volume: the scale: the wall V of :func:`volax.volumize`, a number, an array that
        broadcasts to the leaves, or a pytree prefix of these. Of a schedule or
        ``relative_to_init`` give the numbers, which the optimizer's state tells.
        ``None``: least squares, which for a
        sign is $s = \mathrm{mean}|w|$.
      channel_axis: the axis along which each index has a scale of its own, such as -1
        for the outputs of a Flax kernel; ``None``: one scale a leaf. Only with least
        squares.
      mask: which leaves, as in :func:`volax.volumize`; by default the matrices.

    Returns:
      A tree of the same structure and dtypes.

    Raises:
      ValueError: a selected leaf is not real floating-point, or is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> binarize({"kernel": jnp.array([[0.5, -1.5], [1.0, -1.0]])})["kernel"].tolist()
      [[1.0, -1.0], [1.0, -1.0]]

    References:
      Courbariaux et al., `BinaryConnect <https://arxiv.org/abs/1511.00363>`_, 2015 (the
      sign); Rastegari et al., `XNOR-Net <https://arxiv.org/abs/1603.05279>`_, 2016,
      equation 6 (the scale); Ziyin et al., `Volumization
      <https://arxiv.org/abs/2003.11243>`_, 2020 (the wall as the scale).
    """

    def rule(w: jax.Array, wall: jax.Array | None) -> jax.Array:
        axes = _other_axes(w, channel_axis)
        scale = (
            _mean(jnp.abs(w), jnp.ones(w.shape, bool), axes) if wall is None else wall
        )
        return on_grid(jnp.where(w >= 0, 1, -1), scale, w.dtype)

    return _quantized("binarize", rule, params, volume, channel_axis, mask)


def ternarize(
    params: Tree,
    *,
    volume: Tree = None,
    threshold: float | str = "twn",
    channel_axis: int | None = None,
    mask: Selection = "matrices",
) -> Tree:
    r"""Replaces weights by $-s$, 0 or $+s$.

    Weights with $|w| \le \Delta$ become 0, the others their sign times a scale. The
    result holds ordinary float arrays; :func:`volax.pack` stores them in two bits a
    weight.

    Args:
      params: a tree of parameters.
      volume: the scale: the wall V of :func:`volax.volumize`, a number, an array that
        broadcasts to the leaves, or a pytree prefix of these. Of a schedule or
        ``relative_to_init`` give the numbers, which the optimizer's state tells.
        ``None``: least squares over the
        weights that are not 0, $s = \mathrm{mean}_{|w| > \Delta} |w|$.
      threshold: ``"twn"``: $\Delta = 0.7\,\mathrm{mean}|w|$. A number t in [0, 1):
        $\Delta = t V$ where ``volume`` is given, else $t \max|w|$.
      channel_axis: the axis along which each index has a threshold and a scale of its
        own, such as -1 for the outputs of a Flax kernel; ``None``: one a leaf. With
        ``volume`` it concerns the threshold alone, so it is refused there.
      mask: which leaves, as in :func:`volax.volumize`; by default the matrices.

    Returns:
      A tree of the same structure and dtypes.

    Raises:
      ValueError: a threshold outside [0, 1); a selected leaf is not real
        floating-point, or is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[0.5, -2.0], [0.25, 1.0]])}
      >>> ternarize(params)["kernel"].tolist()
      [[0.0, -1.5], [0.0, 1.5]]

    References:
      Li et al., `Ternary Weight Networks <https://arxiv.org/abs/1605.04711>`_, 2016,
      equations 4 and 6; Zhu et al., `Trained Ternary Quantization
      <https://arxiv.org/abs/1612.01064>`_, 2016, equation 9 (the share of the maximum);
      Ziyin et al., `Volumization <https://arxiv.org/abs/2003.11243>`_, 2020 (the wall).
    """
    if threshold != "twn" and (isinstance(threshold, str) or not 0 <= threshold < 1):
        raise ValueError(
            "ternarize: threshold must be 'twn' or a number in [0, 1), "
            f"got {threshold!r}"
        )

    def rule(w: jax.Array, wall: jax.Array | None) -> jax.Array:
        size, axes = jnp.abs(w), _other_axes(w, channel_axis)
        if isinstance(threshold, str):
            delta = 0.7 * _mean(size, jnp.ones(w.shape, bool), axes)
        elif wall is None:
            delta = threshold * jnp.max(wide(size), axes, keepdims=True, initial=0)
        else:
            delta = threshold * wall
        kept = wide(size) > delta
        scale = _mean(size, kept, axes) if wall is None else wall
        return on_grid(jnp.where(kept, jnp.sign(w), 0), scale, w.dtype)

    return _quantized("ternarize", rule, params, volume, channel_axis, mask)


def on_grid(
    codes: jax.Array, scale: jax.typing.ArrayLike, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Codes -1, 0, +1 times a scale; a zero has no sign, so that bits compare."""
    scale = jnp.asarray(scale, dtype)
    value = jnp.where(codes < 0, -scale, scale)
    return jnp.where((codes == 0) | (scale == 0), jnp.zeros((), dtype), value)


def _quantized(
    name: str,
    rule: Callable[[jax.Array, jax.Array | None], jax.Array],
    params: Tree,
    volume: Tree,
    channel_axis: int | None,
    mask: Selection,
) -> Tree:
    """Applies a rule to the selected leaves."""
    if volume is not None and channel_axis is not None:
        raise ValueError(
            f"{name}: volume sets the scale of a whole leaf; give volume or "
            "channel_axis, not both"
        )
    chosen = floating(masks.selected(mask, params, name), params, name, mask)
    walls = {} if volume is None else walls_of(volume, params, name, chosen)

    def leaf(path: KeyPath, w: jax.Array | np.ndarray) -> jax.typing.ArrayLike:
        where = _paths.key_path(path)
        if where not in chosen:
            return w
        check_finite(name, where, w)
        if volume is not None and where not in walls:
            raise ValueError(
                f"{name}: volume has no entry for {where!r}, which mask selects"
            )
        if channel_axis is not None and not -np.ndim(w) <= channel_axis < np.ndim(w):
            raise ValueError(
                f"{name}: {where!r} of shape {np.shape(w)} has no axis {channel_axis}"
            )
        w, wall = jnp.asarray(w), walls.get(where)
        return rule(w, None if wall is None else jnp.asarray(wall, wide(w).dtype))

    return _paths.map_with_path(leaf, params)


def floating(chosen: set[str], params: Tree, name: str, mask: Selection) -> set[str]:
    """The chosen leaves, without integer leaves that only a default mask selects."""
    found = set()
    for path, leaf in _paths.named_leaves(params).items():
        if path in chosen and jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            found.add(path)
        elif path in chosen and not isinstance(mask, str):
            raise ValueError(
                f"{name}: {path!r} is of dtype {jnp.result_type(leaf)}, expected real "
                "floating-point; exclude it by mask"
            )
    return found


def walls_of(
    volume: Tree, tree: Tree, name: str, chosen: Collection[str], *, finite: bool = True
) -> dict[str, Leaf]:
    """The wall V of each chosen leaf that has one, of a shape that broadcasts to it.

    Args:
      volume: numbers or arrays, or a pytree prefix of these.
      tree: arrays, or their shapes.
      name: the function, for errors.
      chosen: key paths.
      finite: whether infinity, which is no wall, is refused.

    Returns:
      A float64 array, or a tracer, by key path.

    Raises:
      ValueError: something else than numbers >= 0, or a shape that does not fit.
    """
    shapes = {path: jnp.shape(leaf) for path, leaf in _paths.named_leaves(tree).items()}
    walls = {}
    for path, value in _paths.by_prefix(volume, tree, f"{name}: volume").items():
        if path not in chosen:
            continue
        wall = value
        if not isinstance(value, Tracer):
            try:
                wall = np.asarray(value, np.float64)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{name}: volume at {path!r} must be numbers, got {value!r}; for a "
                    "schedule give schedule(count), for relative_to_init the scale "
                    "times the maxima that volumize keeps in its state as 'initial', "
                    "infinity where one is 0"
                ) from None
            valid = (wall >= 0) & (np.isfinite(wall) | (not finite))
            if isinstance(value, str | bool) or not valid.all():
                kind = "a finite number" if finite else "a number"
                raise ValueError(
                    f"{name}: volume must be {kind} >= 0, or an array of such, "
                    f"got {value!r} for {path!r}"
                )
        shape = shapes[path]
        if len(wall.shape) > len(shape) or any(
            n not in (1, size) for n, size in zip(wall.shape[::-1], shape[::-1])
        ):
            raise ValueError(
                f"{name}: volume of shape {wall.shape} does not broadcast to leaf "
                f"{path!r} of shape {shape}"
            )
        walls[path] = wall
    return walls


def check_finite(name: str, path: str, w: jax.typing.ArrayLike) -> None:
    """Refuses a NaN or an infinity, which would become the scale of all weights."""
    if not isinstance(w, Tracer) and not bool(jnp.isfinite(w).all()):
        raise ValueError(
            f"{name}: {path!r} is not finite: it holds a NaN or an infinity, of which "
            "no scale can be taken"
        )


def _other_axes(w: jax.Array, channel_axis: int | None) -> tuple[int, ...]:
    kept = None if channel_axis is None else channel_axis % w.ndim
    return tuple(i for i in range(w.ndim) if i != kept)


def _mean(x: jax.Array, where: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean of the chosen entries; 0 where none is chosen."""
    total = jnp.sum(wide(x), axes, keepdims=True, where=where)
    count = jnp.sum(where, axes, keepdims=True)
    return total / jnp.maximum(count, 1).astype(total.dtype)
