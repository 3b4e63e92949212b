"""What the example counts in a network, and the table and curves made of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import volax
from volax._numerics import inside
from volax._text import aligned
from volax.examples._files import replace_file
from volax.examples.models import MLP

Row = Mapping[str, Any]

_FLOAT_BYTES = 4


def measure(model: MLP, params: Any, volume: float) -> dict[str, Any]:
    """Count weights, units and bytes; pure, so that it can run inside `jit`.

    Args:
      model: says which weights belong to a hidden unit.
      params: its weights, as a dict by layer of `kernel` and `bias`.
      volume: the wall, for the share of the weights that are at it or beyond.

    Returns:
      Scalars. `weights_left` are non-zero and belong to active units only;
      `bytes_left` stores the layers without the inactive units, each as it is or as
      its non-zero weights and one bit a position, whichever is smaller.
    """
    leaves = jax.tree.leaves(params)
    total = sum(leaf.size for leaf in leaves)
    non_zero = sum(jnp.count_nonzero(leaf) for leaf in leaves)
    wall = inside(volume, jnp.float32)
    at_wall = sum(jnp.count_nonzero(jnp.abs(leaf) >= wall) for leaf in leaves)
    hidden = [norms > 0 for norms in volax.path_norm(params, model.pairs())]

    weights_left, bytes_left = 0, 0
    ends = [None, *hidden, None]
    for name, before, after in zip(model.layers, ends, ends[1:]):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        rows = jnp.ones(kernel.shape[0], bool) if before is None else before
        columns = jnp.ones(kernel.shape[1], bool) if after is None else after
        kept = jnp.count_nonzero(kernel * rows[:, None] * columns)
        kept += jnp.count_nonzero(bias * columns)
        positions = (jnp.count_nonzero(rows) + 1) * jnp.count_nonzero(columns)
        sparse = _FLOAT_BYTES * kept + (positions + 7) // 8
        weights_left += kept
        bytes_left += jnp.minimum(_FLOAT_BYTES * positions, sparse)

    return {
        "active_units": sum(jnp.count_nonzero(units) for units in hidden),
        "zero_share": (total - non_zero) / total,
        "wall_share": at_wall / total,
        "largest_weight": jnp.stack([jnp.abs(leaf).max() for leaf in leaves]).max(),
        "non_zero_weights": non_zero,
        "weights_left": weights_left,
        "bytes_left": bytes_left,
    }


def sizes(params: Any, hidden: Sequence[int]) -> dict[str, int]:
    """Count what training does not change: weights, hidden units, dense bytes."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"weights": weights, "units": sum(hidden), "bytes": _FLOAT_BYTES * weights}


def own_figure(regularizer: str, row: Row) -> tuple[str, float]:
    """Name and value of what the regularizer is there to change."""
    return {
        "path_prox": ("active units", row["active_units"]),
        "keep_units": ("active units", row["active_units"]),
        "lp_decay": ("share of zeros", row["zero_share"]),
        "volumize": ("share at the wall or beyond", row["wall_share"]),
    }.get(regularizer, ("largest weight", row["largest_weight"]))


def table(title: str, runs: Mapping[str, Row], size: Row, volume: float) -> str:
    """Lay out the last figures of the runs beside each other.

    Args:
      title: the first line.
      runs: the last row of each run, by its name.
      size: the counts of `sizes`.
      volume: the wall; infinite where there is none.

    Returns:
      The table and what is counted in it, as text.
    """

    def line(label, cell):
        return [label, *(cell(row) for row in runs.values())]

    def counted(key, whole):
        return lambda row: f"{row[key]:,} ({row[key] / whole:.1%})"

    lines = [
        ["", *runs],
        line("test accuracy", lambda row: f"{row['test_accuracy']:.2%}"),
        line("its worst class", lambda row: f"{row['worst_class_accuracy']:.2%}"),
        line("weights", lambda row: f"{size['weights']:,}"),
        line("  not zero", counted("non_zero_weights", size["weights"])),
        line("  left", counted("weights_left", size["weights"])),
        line("  largest", lambda row: f"{row['largest_weight']:.4g}"),
        line("hidden units", lambda row: f"{size['units']:,}"),
        line("  active", counted("active_units", max(size["units"], 1))),
        line("bytes", lambda row: f"{size['bytes']:,}"),
        line("  left", counted("bytes_left", size["bytes"])),
    ]
    if math.isfinite(volume):
        wall = line(f"  at or above {volume:g}", lambda row: f"{row['wall_share']:.1%}")
        lines.insert(-4, wall)
    return "\n".join([title, "", *aligned(lines, "lr"), "", _COUNTED])


_COUNTED = """\
weights: kernels and biases, 4 bytes each; a unit is active while the norms of its
incoming and outgoing weights are both above zero; left: not zero and between active
units; bytes left: each layer without inactive units, dense, or its weights that are
not zero and one bit a position, whichever is smaller."""


def plot_curves(
    path: Path, title: str, runs: Mapping[str, Sequence[Row]], regularizer: str
) -> None:
    """Draw loss, test accuracy and the regularizer's own figure over the epochs.

    Args:
      path: the PNG file, replaced as a whole.
      title: stands above the three panels.
      runs: the rows of each run, by its name.
      regularizer: chooses the figure of the third panel.
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained", dpi=150)
    loss, accuracy, own = figure.subplots(1, 3)
    for (name, rows), color in zip(runs.items(), ("#8a8f98", "#c2410c")):
        epochs = [row["epoch"] for row in rows]
        for axes, values in (
            (loss, [row["loss"] for row in rows]),
            (accuracy, [100 * row["test_accuracy"] for row in rows]),
            (own, [own_figure(regularizer, row)[1] for row in rows]),
        ):
            axes.plot(epochs, values, color=color, linewidth=2, label=name)
    loss.set(title="training loss", yscale="log")
    accuracy.set(title="test accuracy (%)")
    last = [row for rows in runs.values() for row in rows][-1]
    own.set(title=own_figure(regularizer, last)[0])
    own.set_ylim(0, 1.05 * own.get_ylim()[1])
    for axes in (loss, accuracy, own):
        axes.set_xlabel("epoch")
        axes.grid(color="#e5e7eb")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy.legend(frameon=False, loc="lower right")
    figure.suptitle(title, fontweight="bold")
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png"))
