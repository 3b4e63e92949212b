"""The table and the curves of what training left."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from volax._text import aligned
from volax.examples._files import replace_file

Row = Mapping[str, Any]

GREY, BLUE, RED, GREEN = "#9ca3af", "#2563eb", "#c2410c", "#15803d"

# What each regularizer is there to change: the figure, and how it is called.
_OWN = {
    "path_prox": ("alive", "units alive"),
    "group_prox": ("alive", "units alive"),
    "keep_units": ("alive", "units alive"),
    "lp_decay": ("zero_share", "share of zeros"),
    "volumize": ("wall_share", "share at the wall"),
}
_LARGEST = ("largest", "largest weight")


def own_figure(regularizer: str, row: Row) -> tuple[str, float]:
    """Name and value of what the regularizer is there to change."""
    key, name = _OWN.get(regularizer, _LARGEST)
    if key not in row:  # a model without units
        key, name = _LARGEST
    return name, row[key]


def table(title: str, models: Mapping[str, Row], volume: float) -> str:
    """Lay out the models beside each other.

    Args:
      title: the first line.
      models: what is known of each, by its name.
      volume: the wall; infinite where there is none.

    Returns:
      The table, as text. A line that no model has a figure for is left out.
    """

    def line(label, text, *keys):
        known = [all(key in row for key in keys) for row in models.values()]
        if any(known):
            cells = zip(known, models.values())
            lines.append([label, *(text(row) if k else "" for k, row in cells)])

    def counted(key, whole):
        return lambda row: f"{row[key]:,} ({row[key] / max(row[whole], 1):.1%})"

    lines = [["", *models]]
    line("test accuracy", lambda row: f"{row['test_accuracy']:.2%}", "test_accuracy")
    key = "worst_class_accuracy"
    line("its worst class", lambda row: f"{row[key]:.2%}", key)
    mean = "average_accuracy"
    line("of averaged weights", lambda row: f"{row[mean]:.2%}", mean)
    line("test loss", lambda row: f"{row['test_loss']:.4f}", "test_loss")
    line("weights", lambda row: f"{row['weights']:,}", "weights")
    line("  zero", counted("zeros", "weights"), "zeros")
    line("  largest", lambda row: f"{row['largest']:.4g}", "largest")
    if math.isfinite(volume):
        wall = f"  at the wall of {volume:g}"
        line(wall, lambda row: f"{row['wall_share']:.1%}", "wall_share")
    line("units", lambda row: f"{row['units']:,}", "units")
    line("  alive", counted("alive", "units"), "alive")
    line("multiply-adds", lambda row: f"{row['multiply_adds']:,}", "multiply_adds")
    line("bytes", lambda row: f"{row['bytes']:,}", "bytes")
    disk = "bytes_on_disk"
    line("  of the file", lambda row: f"{row[disk]:,}", disk)
    return "\n".join([title, "", *aligned(lines, "lr")])


def numbers(head: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    """Lay out a table of numbers, one row a name."""
    lines = [head]
    for name, values in rows.items():
        cells = (f"{v:,.3f}" if isinstance(v, float) else f"{v:,}" for v in values)
        lines.append([name, *cells])
    return "\n".join(aligned(lines, "lr"))


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
        plain_axes(axes)
    accuracy.legend(frameon=False, loc="lower right")
    figure.suptitle(title, fontweight="bold")
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png"))


def plain_axes(axes: Any) -> None:
    """A pale grid behind the curves, and no frame."""
    axes.grid(color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
