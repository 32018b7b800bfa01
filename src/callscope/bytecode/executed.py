"""What a decoded recording consists of."""

from __future__ import annotations

from typing import NamedTuple

from callscope.bytecode.codes import RESUME, Code


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


NONE = range(0)


def opening(code: Code, index: int | None) -> range:
    """Indexes of what is executed when a frame begins or goes on at `index`, and no event tells of: RESUME, and all
    before the first one.
    """
    if index is None or code.instructions[index].name != RESUME:
        return NONE
    return range(0 if index == code.opening else index, index + 1)
