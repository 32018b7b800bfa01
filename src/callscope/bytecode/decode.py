"""From the recorder's tokens to the instructions that were executed. The tokens: native/python/bytecode_stream.h.

CPython tells of no event for some instructions that it executes, and they are supplied here:

- what follows EXTENDED_ARG (up to 3.11): it is always executed;
- RESUME, and all before the first one (3.11 on): they are executed when a frame begins. A generator's first part, up to
  RETURN_GENERATOR, really ran when it was made; it is shown when its body begins.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from callscope.bytecode.codes import EXTENDED_ARG, RESUME, Code, Codes
from callscope.bytecode.run import EVENTS
from callscope.errors import RecordError

WINDOW_BYTES: Final = 1 << 22
NEAR_BIAS: Final = 97
FAR: Final = 0xE0
CODE, START, END, THREAD, VALUES, FULL = range(0xE1, 0xE7)


class Executed(NamedTuple):
    """One executed instruction: its thread (from 0 on, in order of appearance), code object, and which of its
    instructions. values: the stack before it as text, where it was recorded.
    """

    thread: int
    code: Code
    at: int
    values: str | None = None


class Edge(NamedTuple):
    """A frame begins or goes on (`enters`), or returns, yields or is unwound."""

    thread: int
    code: Code
    enters: bool


class Decoder:
    """Reads one recording. full: whether the disk was, so that the end is missing. unknown: instructions of code
    objects that could not be written down.
    """

    def __init__(self, codes: Codes) -> None:
        self._codes = codes
        self._thread = 0
        self._code: Code | None = None
        self._at = 0
        self._supplied: int | None = None
        """Position of an instruction just supplied: when its own event follows, it is not another execution."""
        self.full = False
        self.unknown = 0

    def read(self, directory: Path) -> Iterator[Executed | Edge]:
        """All of it in order. Raises RecordError when the file is damaged."""
        with (directory / EVENTS).open("rb") as file:
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

    def _window(self, window: bytes) -> Iterator[Executed | Edge]:
        place = 0
        values: str | None = None
        while place < len(window):
            token = window[place]
            place += 1
            if token < FAR:
                yield from self._instruction(self._at + token - NEAR_BIAS, values)
                values = None
            elif token == CODE:
                number, place = _number(window, place)
                at, place = _number(window, place)
                self._code, self._supplied = self._codes.by_number.get(number), None
                yield from self._instruction(at, values)
                values = None
            elif token == FAR:
                at, place = _number(window, place)
                yield from self._instruction(at, values)
                values = None
            elif token == START:
                number, place = _number(window, place)
                at, place = _number(window, place)
                yield from self._start(self._codes.by_number.get(number), at - 1)
            elif token == END:
                number, place = _number(window, place)
                if (code := self._codes.by_number.get(number)) is not None:
                    yield Edge(self._thread, code, False)
            elif token == THREAD:
                self._thread, place = _number(window, place)
                self._code = None
            elif token == VALUES:
                size, place = _number(window, place)
                values = window[place : place + size].decode(errors="replace")
                place += size
            elif token == FULL:
                self.full = True
                return
            else:
                raise RecordError(f"the recording is damaged: token {token:#x}")

    def _start(self, code: Code | None, at: int) -> Iterator[Executed | Edge]:
        self._code, self._at, self._supplied = code, at, None
        if code is None:
            return
        yield Edge(self._thread, code, True)
        index = code.by_offset.get(at * self._codes.unit)
        if index is None or code.instructions[index].name != RESUME:
            return
        for before in range(0 if index == code.opening else index, index + 1):
            yield Executed(self._thread, code, before)
        self._supplied = at

    def _instruction(self, at: int, values: str | None) -> Iterator[Executed]:
        supplied, self._supplied, self._at = self._supplied, None, at
        code = self._code
        if code is None:
            self.unknown += 1
            return
        if supplied == at:
            return
        index = code.by_offset.get(at * self._codes.unit)
        if index is None:
            raise RecordError(f"the recording is damaged: {code.name} has no instruction at {at * self._codes.unit}")
        yield Executed(self._thread, code, index, values)
        while code.instructions[index].name == EXTENDED_ARG and index + 1 < len(code.instructions):
            index += 1
            yield Executed(self._thread, code, index)
            self._supplied = code.instructions[index].offset // self._codes.unit


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
