"""From the recorder's tokens to the instructions that were executed. The tokens: native/python/bytecode_stream.h.

CPython tells of no event for some instructions that it executes, and they are supplied here:

- what follows EXTENDED_ARG (up to 3.11): it is always executed;
- RESUME, and all before the first one (3.11 on): they are executed when a frame begins. A generator's first part, up to
  RETURN_GENERATOR, really ran when it was made; it is shown when its body begins;
- END_FOR, and POP_TOP behind it in 3.13, where FOR_ITER that is exhausted leads (3.12 on): FOR_ITER does their work,
  unless it is specialised for generators.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from callscope.bytecode.codes import END_FOR, EXTENDED_ARG, FOR_ITER, RESUME, Code, Codes
from callscope.bytecode.run import EVENTS
from callscope.errors import RecordError

WINDOW_BYTES: Final = 1 << 22
NEAR_BIAS: Final = 97
FAR: Final = 0xE0
NONE: Final = range(0)
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


@dataclass
class Frame:
    """A frame at work. last: index of the instruction that it executed last, -1 before the first."""

    code: Code
    last: int = -1


class Decoder:
    """Reads one recording. full: whether the disk was, so that the end is missing. unknown: instructions of code
    objects that could not be written down.
    """

    def __init__(self, codes: Codes) -> None:
        self._codes = codes
        self._thread = 0
        self._code: Code | None = None
        self._at = 0
        self._supplied = NONE
        """Positions of instructions just supplied: when their own events follow, they are not executed again."""
        self._frames: dict[int, list[Frame]] = {}
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
                self._code, self._supplied = self._codes.by_number.get(number), NONE
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
                yield from self._end(self._codes.by_number.get(number))
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
        self._code, self._at, self._supplied = code, at, NONE
        if code is None:
            return
        yield Edge(self._thread, code, True)
        frame = Frame(code)
        self._frames.setdefault(self._thread, []).append(frame)
        index = code.by_offset.get(at * self._codes.unit)
        if index is None or code.instructions[index].name != RESUME:
            return
        for before in range(0 if index == code.opening else index, index + 1):
            yield Executed(self._thread, code, before)
        frame.last, self._supplied = index, range(at, at + 1)

    def _end(self, code: Code | None) -> Iterator[Edge]:
        frames = self._frames.get(self._thread, [])
        found = next((i for i in range(len(frames) - 1, -1, -1) if frames[i].code is code), None)
        if code is not None and found is not None:
            del frames[found:]
            yield Edge(self._thread, code, False)

    def _frame(self, code: Code) -> Frame:
        """The innermost frame of a code object: one that is not at work is taken to begin."""
        frames = self._frames.setdefault(self._thread, [])
        if frames and frames[-1].code is code:
            return frames[-1]
        found = next((frame for frame in reversed(frames) if frame.code is code), None)
        if found is None:
            found = Frame(code)
            frames.append(found)
        return found

    def _instruction(self, at: int, values: str | None) -> Iterator[Executed]:
        supplied, self._supplied, self._at = self._supplied, NONE, at
        code = self._code
        if code is None:
            self.unknown += 1
            return
        if at in supplied:
            self._supplied = range(at + 1, supplied[-1] + 1)
            return
        index = code.by_offset.get(at * self._codes.unit)
        if index is None:
            raise RecordError(f"the recording is damaged: {code.name} has no instruction at {at * self._codes.unit}")
        frame = self._frame(code)
        for skipped in _loop_end(code, frame.last, index):
            yield Executed(self._thread, code, skipped)
        yield Executed(self._thread, code, index, values)
        while code.instructions[index].name == EXTENDED_ARG and index + 1 < len(code.instructions):
            index += 1
            yield Executed(self._thread, code, index, values)
            self._supplied = range(at + 1, code.instructions[index].offset // self._codes.unit + 1)
        frame.last = index


def _loop_end(code: Code, last: int, index: int) -> range:
    """Indexes of what stands between an exhausted FOR_ITER at `last` and the next event, at `index`."""
    if last >= 0 and code.instructions[last].name == FOR_ITER and index > last + 1:
        for first in (index - 1, index - 2):
            behind = [one.name for one in code.instructions[first + 1 : index]]
            if code.instructions[first].name == END_FOR and behind in ([], ["POP_TOP"], ["POP_ITER"]):
                return range(first, index)
    return range(0)


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
