"""From the recorder's tokens to the instructions that were executed. The tokens: native/python/bytecode_stream.h.

CPython tells of no event for some instructions that it executes, and they are supplied here:

- what follows EXTENDED_ARG (up to 3.11): it is always executed;
- RESUME, and all before the first one (3.11 on): they are executed when a frame begins. A generator's first part, up to
  RETURN_GENERATOR, really ran when it was made; it is shown when its body begins;
- END_FOR, and POP_TOP behind it in 3.13, where FOR_ITER that is exhausted leads (3.12 on): FOR_ITER does their work,
  unless it is specialised for generators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from callscope.bytecode import tokens
from callscope.bytecode.codes import END_FOR, EXTENDED_ARG, FOR_ITER, Code, Codes
from callscope.bytecode.executed import NONE, Edge, Executed, opening
from callscope.bytecode.infer import Inferred
from callscope.bytecode.tokens import Token, Tokens
from callscope.errors import RecordError


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
        self.full = False
        self.unknown = 0

    def read(self, directory: Path) -> Iterator[Executed | Edge]:
        """All of it in order. Raises RecordError when the file is damaged."""
        read = Tokens(directory)
        content = iter(read)
        first = next(content, None)
        if first is None:
            return
        if first[0] == tokens.INFER:
            inferred = Inferred(self._codes, self._codes.version < (3, 13))
            yield from inferred.of(content)
            self.full, self.unknown = inferred.full, inferred.unknown
        else:
            told = Told(self._codes, read)
            yield from told.of(chain([first], content))
            self.full, self.unknown = told.full, told.unknown


class Told:
    """Instructions of which each has its token."""

    def __init__(self, codes: Codes, read: Tokens) -> None:
        self._codes = codes
        self._tokens = read
        self._thread = 0
        self._code: Code | None = None
        self._at = 0
        self._supplied = NONE
        """Positions of instructions just supplied: when their own events follow, they are not executed again."""
        self._frames: dict[int, list[Frame]] = {}
        self.full = False
        self.unknown = 0

    def of(self, content: Iterable[Token]) -> Iterator[Executed | Edge]:
        """All of it in order."""
        values: str | None = None
        for kind, first, second in content:
            if kind == tokens.NEAR or kind == tokens.FAR or kind == tokens.CODE:
                at = first
                if kind == tokens.NEAR:
                    at += self._at
                elif kind == tokens.CODE:
                    self._code, self._supplied, at = self._codes.by_number.get(first), NONE, second
                yield from self._instruction(at, values)
                values = None
            elif kind == tokens.START:
                yield from self._start(self._codes.by_number.get(first), second - 1)
            elif kind == tokens.END:
                yield from self._end(self._codes.by_number.get(first))
            elif kind == tokens.THREAD:
                self._thread, self._code = first, None
            elif kind == tokens.VALUES:
                values = self._tokens.values
            elif kind == tokens.FULL:
                self.full = True
                return
            else:
                raise RecordError(f"the recording is damaged: token {kind:#x}")

    def _start(self, code: Code | None, at: int) -> Iterator[Executed | Edge]:
        self._code, self._at, self._supplied = code, at, NONE
        if code is None:
            return
        yield Edge(self._thread, code, True)
        frame = Frame(code)
        self._frames.setdefault(self._thread, []).append(frame)
        index = code.by_offset.get(at * self._codes.unit)
        for before in opening(code, index):
            yield Executed(self._thread, code, before)
            frame.last, self._supplied = before, range(at, at + 1)

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
