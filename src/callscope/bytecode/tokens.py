"""The recorder's tokens, as they stand in its file of events: native/python/bytecode_stream.h."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from callscope.bytecode.run import EVENTS
from callscope.errors import RecordError

WINDOW_BYTES: Final = 1 << 22
NEAR: Final = 0
"""Stands for every token below FAR."""
_NEAR_BIAS: Final = 97
FAR: Final = 0xE0
CODE, START, END, THREAD, VALUES, FULL = range(0xE1, 0xE7)
INFER, THROW, AT, HANDLED, RETURN, YIELD, UNWIND, FRAME = range(0xE7, 0xEF)
_NUMBERS: Final = {FAR: 1, CODE: 2, START: 2, END: 1, THREAD: 1, THROW: 2, AT: 1, HANDLED: 1, FRAME: 1} | dict.fromkeys(
    (FULL, INFER, RETURN, YIELD, UNWIND), 0
)

Token = tuple[int, int, int]
"""Kind, then its numbers, or 0; of NEAR the difference to the last position."""


class Tokens:
    """Reads the tokens of a recording. values: of the last VALUES, the text."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS
        self.values = ""

    def __iter__(self) -> Iterator[Token]:
        """All of them, up to one that is torn. Raises RecordError when the file is damaged."""
        with self._path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for start in range(0, len(content), WINDOW_BYTES):
                    window = content[start : start + WINDOW_BYTES].rstrip(b"\0")
                    if not window:
                        return
                    try:
                        yield from self._window(window)
                    except IndexError:
                        return  # killed while writing a token

    def _window(self, window: bytes) -> Iterator[Token]:
        place, size = 0, len(window)
        while place < size:
            kind = window[place]
            place += 1
            if kind < FAR:
                yield NEAR, kind - _NEAR_BIAS, 0
            elif kind == VALUES:
                length, place = _number(window, place)
                self.values = window[place : place + length].decode(errors="replace")
                place += length
                yield VALUES, 0, 0
            else:
                first = second = 0
                count = _NUMBERS.get(kind)
                if count is None:
                    raise RecordError(f"the recording is damaged: token {kind:#x}")
                if count > 0:
                    first, place = _number(window, place)
                if count > 1:
                    second, place = _number(window, place)
                yield kind, first, second


def _number(window: bytes, place: int) -> tuple[int, int]:
    """A number, and the place behind it. Raises IndexError at the window's end."""
    value = shift = 0
    while True:
        byte = window[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value - 1, place
        shift += 7
