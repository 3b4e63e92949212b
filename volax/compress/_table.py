"""The report as text."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from volax._text import aligned
from volax.compress._kinds import PARAMETER

if TYPE_CHECKING:  # it prints by this module
    from volax.compress._reports import GroupReport, LeafReport, Report


def text(report: "Report", rows: int) -> str:
    """The table of the arrays and the lines of the totals.

    Args:
      report: a ``Report``.
      rows: above this many arrays, alike ones share a row.

    Returns:
      The text.
    """
    leaves = report.leaves if len(report.leaves) <= rows else _alike(report.leaves)
    has_wall = any(leaf.at_wall is not None for leaf in leaves)
    has_units = bool(report.groups)
    head = ["weights", "shape", "zeros"]
    head += ["at wall"] * has_wall + ["units"] * has_units
    head += ["norm", "largest", "rank", "bytes", "mult-adds"]
    lines = [head]
    for leaf in leaves:
        shape = "x".join(map(str, leaf.shape)) if leaf.shape is not None else "various"
        path = leaf.path if leaf.kind == PARAMETER else f"{leaf.path} ({leaf.kind})"
        cells = [path, shape or "scalar", percent(leaf.zeros, leaf.size)]
        if has_wall:
            cells.append(
                "" if leaf.at_wall is None else percent(leaf.at_wall, leaf.size)
            )
        if has_units:
            cells.append("" if leaf.units is None else f"{leaf.alive}/{leaf.units}")
        rank = "" if leaf.stable_rank is None else f"{leaf.stable_rank:.1f}"
        cells += [f"{leaf.norm:.3g}", f"{leaf.largest:.3g}", rank]
        cells += [short(leaf.bytes), short(leaf.multiply_adds)]
        lines.append(cells)
    return "\n".join([*aligned(lines, "llr", ruled=True), "", *_totals(report)])


def percent(part: float, whole: float) -> str:
    """A share; what is not quite nothing or everything does not read as such."""
    if not whole or not part:
        return "0"
    share = 100 * part / whole
    if share < 0.1:
        return "<0.1 %"
    return "100 %" if part == whole else f"{min(share, 99.9):.1f} %"


def short(count: float) -> str:
    """A count in three digits or so."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{count:,.0f}"


def _totals(report: "Report") -> list[str]:
    total = report.total
    lines = [
        (
            "weights",
            f"{total['size']:,}, {percent(total['zeros'], total['size'])} zero",
        ),
        ("norm", f"{total['norm']:.4g}"),
    ]
    if total["at_wall"] is not None:
        reached = percent(total["at_wall"], total["bounded"])
        lines.append(("at the wall", f"{reached} of {total['bounded']:,} weights"))
    if report.groups:
        whole = [g for g in report.groups if g.composed]
        lines.append(
            ("units alive", _alive([g for g in report.groups if not g.composed]))
        )
        if whole:
            lines.append(("made of these", _alive(whole)))
        lines.append(("path norm", f"{total['path_norm']:.4g}"))
    counted = "" if report.traced else " (one a weight of a matrix)"
    lines += [
        ("bytes", f"{total['bytes']:,}"),
        ("multiply-adds", f"{total['multiply_adds']:,}{counted}"),
    ]
    if total["left"] < total["size"]:
        lines.append(
            (
                "without dead units",
                f"{total['left']:,} weights, {total['bytes_left']:,} bytes, "
                f"{total['multiply_adds_left']:,} multiply-adds",
            )
        )
    if total["state"]:
        left = f", {total['state_left']:,} without dead units"
        left = left if total["state_left"] < total["state"] else ""
        lines.append(
            ("state", f"{total['state']:,}, {total['state_bytes']:,} bytes{left}")
        )
    if total["other"]:
        lines.append(
            ("neither", f"{total['other']:,} (random keys, counters, integers)")
        )
    return aligned(lines)


def _alive(groups: "Sequence[GroupReport]") -> str:
    """How many units of some groups are alive, and why the others are not."""
    alive, units = sum(g.alive for g in groups), sum(g.units for g in groups)
    unread, unfed = sum(g.unread for g in groups), sum(g.unfed for g in groups)
    return (
        f"{alive:,} of {units:,} in {len(groups)} group{'s' * (len(groups) != 1)} "
        f"(dead: {unread:,} nothing reads, {unfed:,} nothing feeds)"
    )


def _alike(leaves: "Sequence[LeafReport]") -> "list[LeafReport]":
    """One row for all arrays whose paths differ in numbers alone."""
    found: dict[tuple[str, str], list[LeafReport]] = {}
    for leaf in leaves:
        alike = re.sub(r"\d+", "*", leaf.path), leaf.kind
        found.setdefault(alike, []).append(leaf)
    return [
        rows[0] if len(rows) == 1 else _merged(f"{path} ({len(rows)})", rows)
        for (path, _), rows in found.items()
    ]


def _merged(path: str, rows: "list[LeafReport]") -> "LeafReport":
    """The row of several arrays; a shape that differs among them is ``None``."""

    def summed(name: str) -> int | None:
        values = [v for r in rows if (v := getattr(r, name)) is not None]
        return sum(values) if values else None

    shapes = {r.shape for r in rows}
    ranks = [r.stable_rank for r in rows if r.stable_rank is not None]
    names = (
        "size",
        "zeros",
        "at_wall",
        "units",
        "alive",
        "bytes",
        "multiply_adds",
        "left",
    )
    return dataclasses.replace(
        rows[0],
        path=path,
        shape=shapes.pop() if len(shapes) == 1 else None,
        norm=math.sqrt(sum(r.norm**2 for r in rows)),
        largest=max(r.largest for r in rows),
        stable_rank=sum(ranks) / len(ranks) if ranks else None,
        **{name: summed(name) for name in names},
    )
