"""Aligned columns: everything in a pipe, what fits in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from callscope.reports.text import BOLD, Style

GAP: Final = "  "
ROOM_FOR_LAST: Final = 28
"""Columns a terminal should leave for the last column, a name as a rule, before others are left out."""


@dataclass(frozen=True)
class Column:
    """A column of text: `key` says of what, `width` how wide it is at least.

    rank: when a terminal is too narrow, columns of the lowest rank are left out first; those of rank 0 never.
    """

    key: str
    title: str
    width: int = 0
    left: bool = False
    rank: int = 0

    def aligned(self, text: str) -> str:
        """`text` in the column's width."""
        return text.ljust(self.width) if self.left else text.rjust(self.width)


def fit(columns: Sequence[Column], style: Style, room: int = ROOM_FOR_LAST) -> list[Column]:
    """The columns to show, each at least as wide as its title, the last as wide as its text. A pipe gets all."""
    shown = [
        Column(column.key, column.title, max(column.width, len(column.title)), column.left, column.rank)
        for column in columns
    ]
    while style.width is not None and taken(shown) + room > style.width:
        least = min((column for column in shown[:-1] if column.rank), key=lambda column: column.rank, default=None)
        if least is None:
            break
        shown.remove(least)
    return shown


def taken(columns: Sequence[Column]) -> int:
    """The screen columns before the last one."""
    return sum(column.width + len(GAP) for column in columns[:-1])


def header(columns: Sequence[Column], style: Style) -> str:
    """The line of titles."""
    *first, last = columns
    return style.paint(GAP.join([*(column.aligned(column.title) for column in first), last.title]), BOLD)


def line(columns: Sequence[Column], cells: Sequence[str]) -> str:
    """One line; the last cell is not padded."""
    aligned = [column.aligned(cell) for column, cell in zip(columns[:-1], cells, strict=False)]
    return GAP.join([*aligned, cells[-1]]).rstrip()


def widest(texts: Iterable[str], least: int = 0) -> int:
    """The width that all of `texts` need."""
    return max(map(len, texts), default=least)
