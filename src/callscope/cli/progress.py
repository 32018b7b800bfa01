"""How far a long work has come, on standard error when that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

PATIENCE: Final = 2.0
"""Seconds of silence at first: shorter work shows nothing."""
_INTERVAL = 0.1
_BAR = 24


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function to tell (done, in all) to, or None when nobody would see it. The line is wiped at the end.

    With 0 in all, the share is unknown. The function may be called often and from one thread at a time.
    """
    if not sys.stderr.isatty():
        yield None
        return
    begin = time.monotonic()
    due = begin + PATIENCE
    shown = False

    def tell(done: int, total: int) -> None:
        nonlocal due, shown
        now = time.monotonic()
        if now < due:
            return
        due, shown = now + _INTERVAL, True
        print(f"\r\x1b[K{line(title, done, total, now - begin)}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def line(title: str, done: int, total: int, seconds: float) -> str:
    """The text of a progress line, below 80 columns."""
    if total <= 0:
        return f"{title[:40]}  {seconds:.0f} s"
    share = min(max(done / total, 0.0), 1.0)
    filled = round(share * _BAR)
    left = f", {seconds / share - seconds:.0f} s left" if share > 0.02 else ""
    return f"{title[:40]}  [{'#' * filled}{'.' * (_BAR - filled)}] {share:4.0%}{left}"
