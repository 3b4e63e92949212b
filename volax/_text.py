"""Aligned text tables."""

from collections.abc import Sequence


def aligned(
    head: Sequence[str], rows: Sequence[Sequence[str]], sides: str
) -> list[str]:
    """The lines of a table.

    Args:
      head: the titles.
      rows: the cells.
      sides: ``l`` or ``r`` for each column; the remaining columns are left-aligned.

    Returns:
      A line for the titles, a rule, and a line for each row.
    """
    sides = sides.ljust(len(head), "l")
    widths = [max(map(len, column)) for column in zip(head, *rows)]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(cells, widths, sides)
        ]
        return "  ".join(placed).rstrip()

    return [line(head), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows)]
