"""Aligned text tables: the one printer of everything that the library prints."""

from collections.abc import Sequence

_GAP = "  "


def aligned(
    rows: Sequence[Sequence[str]], sides: str = "", *, ruled: bool = False
) -> list[str]:
    """The lines of a table.

    Args:
      rows: the cells, the same number in each row; titles are the first row.
      sides: ``l`` or ``r`` for each column, that to which its cells are moved; the
        last of them, ``l`` where there is none, is that of all further columns.
      ruled: whether a rule of dashes follows the first row.

    Returns:
      A line for each row.
    """
    columns = list(zip(*rows))
    sides = sides.ljust(len(columns), (sides or "l")[-1])
    widths = [max(map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(cells, widths, sides)
        ]
        return _GAP.join(placed).rstrip()

    lines = [line(row) for row in rows]
    if ruled:
        lines.insert(1, "-" * len(_GAP.join("-" * width for width in widths)))
    return lines
