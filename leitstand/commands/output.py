"""Tables for people: columns padded to their widest cell, no borders, never truncated, so that `grep` works."""

from collections.abc import Sequence

import typer

__all__ = ["print_table"]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a header and rows to stdout; nothing when there are no rows."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
