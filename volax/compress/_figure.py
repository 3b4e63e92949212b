"""The report as a figure: weights, units, path norms."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from volax.compress._kinds import PARAMETER
from volax.compress._table import percent, short

if TYPE_CHECKING:  # Matplotlib is an extra, and the report draws by this module
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from volax.compress._reports import GroupReport, Report

_INK, _MUTED, _GRID = "#1f2937", "#9ca3af", "#e5e7eb"
_BLUE, _PALE, _WALL = "#2563eb", "#dbeafe", "#c2410c"
_NAMED = 16  # as many layers as can be named beside their bars
_LEGEND = 6


def figure(report: "Report") -> "Figure":
    """Draws a report.

    Args:
      report: a ``Report``.

    Returns:
      A ``matplotlib.figure.Figure``.

    Raises:
      ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Report.figure needs Matplotlib: pip install 'volax-optax[compress]'"
        ) from error
    panels = [_weights, *((_alive, _path_norms) if report.groups else (_zeros,))]
    drawn = Figure(figsize=(4.6 * len(panels), 4.2), dpi=120, layout="constrained")
    for axes, panel in zip(np.atleast_1d(drawn.subplots(1, len(panels))), panels):
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_MUTED)
        axes.tick_params(colors=_INK, labelsize=8.5, length=3)
        panel(axes, report)
    return drawn


def _titled(axes: "Axes", title: str, under: str) -> None:
    axes.set_title(
        title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=22
    )
    axes.text(
        0, 1.025, under, transform=axes.transAxes, fontsize=8.5, color="#6b7280"
    )  # fmt: skip


def _weights(axes: "Axes", report: "Report") -> None:
    """Histogram of the weights, on a logarithmic scale, with the wall drawn in."""
    edges, counts = (np.asarray(x) for x in report.histogram)
    middle = (edges[1:] + edges[:-1]) / 2
    axes.bar(middle, counts, np.diff(edges), color=_BLUE, alpha=0.85, linewidth=0)
    if counts.any():
        axes.set_yscale("log")
    axes.set_ylim(0.7, 2 * max(counts.max(), 1))
    axes.set_xlabel("weight", fontsize=9, color=_INK)
    axes.grid(axis="y", color=_GRID)
    total = report.total
    walls = sorted({leaf.wall for leaf in report.leaves if leaf.wall})
    for wall in walls if len(walls) <= 4 else ():
        for side in (-wall, wall):
            axes.axvline(side, color=_WALL, linewidth=1.3, linestyle=(0, (4, 2)))
    under = f"{percent(total['zeros'], total['size'])} are zero and not drawn"
    if walls:
        name = f"wall at {walls[0]:.3g}" if len(walls) == 1 else f"{len(walls)} walls"
        under = (
            f"{name} (dashed), {percent(total['at_wall'], total['bounded'])} at it; "
            + (f"{percent(total['zeros'], total['size'])} zero, not drawn")
        )
        reach = 1.12 * max(walls[-1], edges[-1])
        axes.set_xlim(-reach, reach)
    _titled(axes, "Weights", under)


def _alive(axes: "Axes", report: "Report") -> None:
    """Units alive by layer: bars with names, or one line where the layers are many."""
    groups, total = report.groups, report.total
    layers = sum(not g.composed for g in groups)
    _titled(
        axes,
        "Units alive",
        f"{total['alive']:,} of {total['units']:,} in {layers} "
        f"layer{'s' * (layers != 1)}",
    )
    if len(groups) > _NAMED:
        share = [100 * g.alive / max(g.units, 1) for g in groups]
        steps = np.arange(len(groups))
        axes.bar(steps, 100, 1.0, color=_PALE, linewidth=0)
        axes.bar(steps, share, 1.0, color=_BLUE, linewidth=0)
        axes.set(xlim=(-0.5, len(groups) - 0.5), ylim=(0, 100))
        axes.set_xlabel("layer", fontsize=9, color=_INK)
        axes.set_ylabel("% alive", fontsize=9, color=_INK)
        return
    rows = np.arange(len(groups))
    axes.barh(rows, [g.units for g in groups], 0.62, color=_PALE, linewidth=0)
    axes.barh(rows, [g.alive for g in groups], 0.62, color=_BLUE, linewidth=0)
    widest = max(g.units for g in groups)
    for row, group in enumerate(groups):
        axes.text(
            group.units + 0.02 * widest,
            row,
            f"{group.alive}/{group.units}",
            va="center",
            fontsize=8.5,
            color=_INK,
        )
    axes.set_yticks(rows, _labels(groups))
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 1.22 * widest)
    axes.set_xlabel("units", fontsize=9, color=_INK)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=_GRID)


def _path_norms(axes: "Axes", report: "Report") -> None:
    """Path norm of the units, sorted within each layer; units at zero are left out."""
    from matplotlib import colormaps

    groups = report.groups
    if len(groups) > _NAMED:
        _path_norm_bands(axes, report)
        return
    colors = colormaps["viridis"](np.linspace(0.05, 0.82, len(groups)))
    named = len(groups) <= _LEGEND
    drawn = False
    for group, label, color in zip(groups, _labels(groups), colors):
        norms = np.asarray([x for x in group.path_norms if x > 0])
        if norms.size:
            drawn = True
            place = (np.arange(norms.size) + 1) / group.units * 100
            axes.plot(
                place,
                norms,
                color=color,
                linewidth=1.8 if named else 1.0,
                alpha=1.0 if named else 0.7,
                marker="o" if named and norms.size <= 16 else None,
                markersize=3.5,
                label=label,
            )
    if drawn:
        axes.set_yscale("log")
    axes.set_xlim(0, 102)
    axes.set_xlabel("% of the layer's units, sorted", fontsize=9, color=_INK)
    axes.grid(color=_GRID)
    if named and drawn:
        axes.legend(frameon=False, fontsize=8.5)
    order = "" if named else "; first layer dark, last layer light"
    axes.tick_params(axis="y", which="minor", length=0, labelleft=False)
    _titled(axes, "Path norm", f"sum {report.total['path_norm']:.3g}{order}")


def _path_norm_bands(axes: "Axes", report: "Report") -> None:
    """Path norms by layer: the middle of its live units, and most of them."""
    steps = np.arange(len(report.groups))
    bands = np.full((3, len(steps)), np.nan)
    for step, group in zip(steps, report.groups):
        norms = np.asarray([x for x in group.path_norms if x > 0])
        if norms.size:
            bands[:, step] = np.percentile(norms, (10, 50, 90))
    axes.fill_between(steps, bands[0], bands[2], color=_PALE, step="mid", linewidth=0)
    axes.plot(steps, bands[1], color=_BLUE, linewidth=1.4, drawstyle="steps-mid")
    if np.isfinite(bands).any():
        axes.set_yscale("log")
    axes.set_xlim(-0.5, len(steps) - 0.5)
    axes.set_xlabel("layer", fontsize=9, color=_INK)
    axes.grid(axis="y", color=_GRID)
    _titled(
        axes,
        "Path norm",
        f"sum {report.total['path_norm']:.3g}; median of live units, 10-90 % shaded",
    )


def _zeros(axes: "Axes", report: "Report") -> None:
    """Share of zeros by array, where no groups were given."""
    weights = [leaf for leaf in report.leaves if leaf.kind == PARAMETER]
    leaves = [leaf for leaf in weights if len(leaf.shape) > 1] or weights
    total = report.total
    _titled(axes, "Zeros", f"{short(total['zeros'])} of {short(total['size'])} weights")
    share = [100 * leaf.zeros / max(leaf.size, 1) for leaf in leaves]
    rows = np.arange(len(leaves))
    if len(leaves) > _NAMED:
        axes.bar(rows, share, 1.0, color=_BLUE, linewidth=0)
        axes.set(ylim=(0, 100), xlim=(-0.5, max(len(leaves) - 0.5, 0.5)))
        axes.set_xlabel("matrix", fontsize=9, color=_INK)
        axes.set_ylabel("% zero", fontsize=9, color=_INK)
        return
    axes.barh(rows, [100] * len(leaves), 0.62, color=_PALE, linewidth=0)
    axes.barh(rows, share, 0.62, color=_BLUE, linewidth=0)
    axes.set_yticks(rows, [_short_name(leaf.path) for leaf in leaves])
    axes.set_ylim(len(leaves) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% zero", fontsize=9, color=_INK)
    axes.tick_params(axis="y", length=0)


def _labels(groups: "Sequence[GroupReport]") -> list[str]:
    """The short names; with the count of the units where that of another is alike."""
    names = [_short_name(g.name) for g in groups]
    alike = Counter(names)
    return [
        f"{name} ({group.units})" if alike[name] > 1 else name
        for name, group in zip(names, groups)
    ]


def _short_name(name: str) -> str:
    """The first producer's path, shortened from the left, without its last part."""
    first = name.split(" -> ")[0].split(", ")[0]
    stem = first.rpartition("/")[0] or first
    return stem if len(stem) <= 22 else "…" + stem[-21:]
