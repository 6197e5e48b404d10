"""Rows of text as columns for the terminal."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line for each row, its cells in columns two spaces apart.

    A column of figures stands to the right: every cell that is not empty begins with a digit, the
    first row's aside, which may be a heading. Every other column stands to the left.
    """
    if not rows:
        return []
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    to_the_right = [
        len(column) > 1 and all(cell.lstrip("-+")[:1].isdigit() for cell in column[1:] if cell)
        for column in columns
    ]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return lines
