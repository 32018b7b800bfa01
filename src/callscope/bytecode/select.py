"""Which of the executed instructions are written: by line, between two marks, the first ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from callscope.bytecode.executed import Executed
from callscope.errors import UsageError


@dataclass(frozen=True)
class Mark:
    """A place in the program: a line of source, or a code object by co_name."""

    line: int = 0
    name: str = ""

    def reached(self, one: Executed) -> bool:
        """Whether this instruction lies there."""
        return one.code.name == self.name or (self.line > 0 and one.code.instructions[one.at].line == self.line)


@dataclass(frozen=True)
class Selection:
    """What to write. lines: first and last line of source. begin, end: from the first instruction at the one mark on,
    up to the next one at the other; again when the first is met again. limit: how many at most, 0 for all.
    """

    lines: tuple[int, int] | None = None
    begin: Mark | None = None
    end: Mark | None = None
    limit: int = 0

    @property
    def partial(self) -> bool:
        """Whether any but the first ones may be left out."""
        return self.lines is not None or self.begin is not None or self.end is not None

    def of(self, executed: Iterator[Executed]) -> Iterator[Executed]:
        """Those selected, in order."""
        if self.begin is not None or self.end is not None:
            executed = self._between(executed)
        if self.lines is not None:
            first, last = self.lines
            executed = (
                one
                for one in executed
                if (line := one.code.instructions[one.at].line) is not None and first <= line <= last
            )
        return islice(executed, self.limit) if self.limit else executed

    def _between(self, executed: Iterator[Executed]) -> Iterator[Executed]:
        inside = self.begin is None
        for one in executed:
            if inside:
                inside = self.end is None or not self.end.reached(one)
            elif self.begin is not None:
                inside = self.begin.reached(one)
            if inside:
                yield one
            elif self.begin is None:
                return


def parse_mark(text: str) -> Mark:
    """A line number, or a name. Raises UsageError."""
    if re.fullmatch(r"\d{1,9}", text) and int(text):
        return Mark(line=int(text))
    if not text or text[0].isdigit():
        raise UsageError(f"{text!r} is no mark: give a line of the program, or the name of a function")
    return Mark(name=text)


def parse_lines(text: str) -> tuple[int, int]:
    """First and last line of `7`, `7-12`, `7-` or `-12`. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,9})?(-)?(\d{1,9})?", text)
    if match is None or not (match[1] or match[3]):
        raise UsageError(f"{text!r} are no lines: write a line, or two such as 7-12")
    first = int(match[1] or 1)
    last = int(match[3]) if match[3] else 10**9 if match[2] else first
    if first > last:
        raise UsageError(f"{text!r} are no lines: the first comes after the last")
    return first, last
