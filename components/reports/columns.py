"""Rows of texts as lines with aligned columns."""

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line per row, two spaces between columns; a column that is empty in all rows is left out. Rows have equally many texts."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True) if width).rstrip() for row in rows]
