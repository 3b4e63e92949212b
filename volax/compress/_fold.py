"""A constant unit moves into the bias behind it, where nothing between forbids it.

A ReLU unit whose incoming weights are all zero emits c = max(b, 0) wherever it is
read, so its part in the next layer is c times its outgoing weights, summed over its
positions: a change of that layer's bias. A convolution that pads with zeros sees the
constant everywhere but in the padding, so there it is no bias.
"""

from collections.abc import Sequence

import numpy as np

from volax.compress._dead import Leaves
from volax.pairs import _layout
from volax.pairs.records import Group, Member

_SIBLINGS = ("bias", "b")
# The operations between that map a constant c to max(c, 0), whatever its position.
_RELU = {"add", "add_any", "relu", "max", "reshape", "squeeze", "reduce_window_max"}


def fold(
    group: Group, units: np.ndarray, groups: Sequence[Group], leaves: Leaves
) -> dict[str, np.ndarray] | str:
    """The new biases that take over constant units, or why there are none.

    Args:
      group: a fitted group.
      units: the constant units, bool of the group's ``sizes``.
      groups: all groups, in which the next biases are looked up.
      leaves: the parameters by key path.

    Returns:
      New biases by key path, or the reason against folding.
    """
    if len(group.sizes) != 1 or len(group.producers) != 1 or len(group.biases) != 1:
        return "several weights make the constant"
    if not group.homogeneous or group.scales or group.fixed or group.states:
        return "its value where it is read is not known"
    if not set(group.through) <= _RELU:
        unknown = ", ".join(op for op in group.through if op not in _RELU)
        return f"its value behind {unknown} is not known"
    values = _constants(group, leaves)
    found: dict[str, np.ndarray] = {}
    for consumer in group.consumers:
        kernel = np.asarray(leaves[consumer.path])
        out = _output_axis(consumer, kernel.shape)
        if out is None:
            return f"{consumer.path!r} may pad with zeros, where there is no constant"
        path = _next_bias(group, consumer, kernel.shape[out], groups, leaves)
        if path is None:
            return f"no bias is known to stand behind {consumer.path!r}"
        where, _ = _layout.unit_indices(consumer, group.sizes, kernel.shape)
        axis = consumer.axes[0].axis
        rows = np.moveaxis(kernel, (axis, out), (0, -1)).reshape(kernel.shape[axis], -1)
        parts = rows.astype(np.float64)[where[units]].sum(axis=1)
        bias = found.get(path, np.asarray(leaves[path]))
        found[path] = (bias.astype(np.float64) + values[units] @ parts).astype(
            bias.dtype
        )
    return found


def _constants(group: Group, leaves: Leaves) -> np.ndarray:
    """What each unit emits if nothing but its bias feeds it, float64 ``[units]``."""
    bias = group.biases[0]
    leaf = np.asarray(leaves[bias.path]).astype(np.float64)
    where, _ = _layout.unit_indices(bias, group.sizes, leaf.shape)
    return np.maximum(leaf.reshape(-1)[where[:, 0]], 0.0)


def _output_axis(consumer: Member, shape: tuple[int, ...]) -> int | None:
    """The axis of the outputs, if the consumer looks at no neighbourhood."""
    if len(consumer.axes) != 1:
        return None
    axis = consumer.axes[0].axis
    if len(shape) == 2:
        return 1 - axis
    window = [n for i, n in enumerate(shape[:-1]) if i != axis]
    at_end = axis == len(shape) - 1
    return None if at_end or any(n != 1 for n in window) else len(shape) - 1


def _next_bias(
    group: Group,
    consumer: Member,
    length: int,
    groups: Sequence[Group],
    leaves: Leaves,
) -> str | None:
    """The bias that is added to what a consumer makes, or ``None``."""
    making = [g for g in groups if consumer.path in {m.path for m in g.producers}]
    if making:
        (after, *more) = making
        plain = not (after.scales or after.fixed or after.states or more)
        single = len(after.producers) == 1 and len(after.biases) == 1
        found = after.biases[0].path if plain and single else None
    elif len(group.output_biases or ()) == 1 and len(group.consumers) == 1:
        (found,) = (m.path for m in group.output_biases or ())
    else:
        parent = consumer.path.rpartition("/")[0]
        beside = [f"{parent}/{name}" if parent else name for name in _SIBLINGS]
        found = next((path for path in beside if path in leaves), None)
    fits = found is not None and leaves[found].shape == (length,)
    return found if fits else None
