"""From what was recorded of branches, calls and exceptions to the instructions executed between: CPython 3.12 and 3.13.

Between two tokens a frame runs straight on through its code, so each token says how far. A token that the code cannot
lead to is an error, never passed over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from callscope.bytecode import tokens
from callscope.bytecode.codes import END_FOR, FOR_ITER, Code, Codes
from callscope.bytecode.executed import NONE, Edge, Executed, opening
from callscope.bytecode.tokens import Token
from callscope.errors import RecordError


class Kind(Enum):
    """How an instruction goes on: to the next one, unless said otherwise."""

    PLAIN = auto()
    BRANCH = auto()  # a token says where
    JUMP = auto()  # a token says so
    QUIET_JUMP = auto()  # no token does
    SEND = auto()  # to YIELD_VALUE behind it, or to its target
    YIELD = auto()
    RETURN = auto()
    RAISE = auto()  # nowhere


_NAMES: Final = {
    FOR_ITER: Kind.BRANCH, "POP_JUMP_IF_TRUE": Kind.BRANCH, "POP_JUMP_IF_FALSE": Kind.BRANCH,
    "POP_JUMP_IF_NONE": Kind.BRANCH, "POP_JUMP_IF_NOT_NONE": Kind.BRANCH, "JUMP_FORWARD": Kind.JUMP,
    "JUMP_BACKWARD": Kind.JUMP, "JUMP_BACKWARD_NO_INTERRUPT": Kind.QUIET_JUMP, "SEND": Kind.SEND,
    "YIELD_VALUE": Kind.YIELD, "RETURN_VALUE": Kind.RETURN, "RETURN_CONST": Kind.RETURN, "RERAISE": Kind.RAISE,
    "RAISE_VARARGS": Kind.RAISE,
}  # fmt: skip
_JUMPS: Final = frozenset({Kind.BRANCH, Kind.JUMP})
_RETURNS: Final = frozenset({Kind.RETURN})
_NOWHERE: Final[frozenset[Kind]] = frozenset()
_LOOP_ENDS: Final[tuple[list[str], ...]] = ([END_FOR], [END_FOR, "POP_TOP"])
"""What an exhausted FOR_ITER leads behind, having done its work."""
_CIRCLES: Final = 8
"""Most quiet jumps between two tokens: each leads back to SEND, and there is one a SEND."""


class Flow:
    """Where the instructions of a code object lead. stops: index of the first instruction from each on that is not
    PLAIN. targets: index that a jump leads to.
    """

    def __init__(self, code: Code) -> None:
        self.code = code
        self._offsets = [one.offset for one in code.instructions]
        self.kinds = [_NAMES.get(one.name, Kind.PLAIN) for one in code.instructions]
        self.targets = [
            code.by_offset.get(int(one.meaning or -1), -1)
            if kind in (Kind.BRANCH, Kind.JUMP, Kind.QUIET_JUMP, Kind.SEND)
            else -1
            for one, kind in zip(code.instructions, self.kinds, strict=True)
        ]
        self.stops = list(range(len(self.kinds)))
        for index in range(len(self.kinds) - 2, -1, -1):
            if self.kinds[index] is Kind.PLAIN:
                self.stops[index] = self.stops[index + 1]

    def index(self, unit: int) -> int:
        """Of the instruction that has this code unit, its caches included."""
        return max(bisect_right(self._offsets, unit * 2) - 1, 0)

    def passed(self, index: int, destination: int) -> range | None:
        """What is executed between a branch or jump at `index` and where it led; None when it cannot lead there."""
        target = self.targets[index]
        if destination == target or (destination == index + 1 and self.kinds[index] is Kind.BRANCH):
            return NONE
        names = [one.name for one in self.code.instructions[target:destination]]
        if self.code.instructions[index].name == FOR_ITER and names in _LOOP_ENDS:
            return range(target, destination)
        return None


@dataclass(eq=False)
class Frame:
    """A frame at work. last: index executed last, -1 before the first. next: index that comes next, -1 where it follows
    from `last`. thrown: an exception has been thrown in, and not led anywhere yet. mark: position in the last AT.
    """

    number: int
    thread: int
    code: Code | None
    caller: Frame | None
    thrown: bool
    last: int = -1
    next: int = -1
    mark: int = 0


class Inferred:
    """Walks through the code from token to token. unknown: tokens about code objects that could not be written down.

    jump_tells_first: whether JUMP_BACKWARD tells where it goes before it lets signal handlers run (CPython 3.12).
    """

    def __init__(self, codes: Codes, jump_tells_first: bool) -> None:
        self._codes = codes
        self._jump_tells_first = jump_tells_first
        self._flows: dict[int, Flow] = {}
        self._frames: dict[int, Frame] = {}
        self._current: Frame | None = None
        self._begun = 0
        self._thread = 0
        self._at = 0
        self.full = False
        self.unknown = 0

    def of(self, tokens_: Iterable[Token]) -> Iterator[Executed | Edge]:
        """All that was executed, in order. Raises RecordError when the recording contradicts the code."""
        for kind, first, second in tokens_:
            if kind == tokens.NEAR:
                yield from self._goes(self._at + first)
            elif kind == tokens.FAR:
                yield from self._goes(first)
            elif kind == tokens.AT:
                yield from self._is_at(first)
            elif kind == tokens.START or kind == tokens.THROW:
                yield from self._begins(first, second - 1, kind == tokens.THROW)
            elif kind == tokens.RETURN:
                frame = self._known()
                if frame is not None and frame.code is not None:
                    yield from self._walk(frame, -1, _RETURNS)
                yield from self._ends()
            elif kind == tokens.YIELD or kind == tokens.UNWIND:
                yield from self._ends()
            elif kind == tokens.HANDLED:
                self._handled(first)
            elif kind == tokens.FRAME:
                self._current = self._frames.get(first)
            elif kind == tokens.THREAD:
                self._thread, self._current = first, None
            elif kind == tokens.FULL:
                self.full = True
                return
            else:
                raise RecordError(f"the recording is damaged: token {kind:#x}")

    def _known(self) -> Frame | None:
        """The current frame, when its code is known."""
        frame = self._current
        if frame is None or frame.code is None:
            self.unknown += 1
            return None
        return frame

    def _flow(self, code: Code) -> Flow:
        flow = self._flows.get(code.number)
        if flow is None:
            flow = self._flows[code.number] = Flow(code)
        return flow

    def _begins(self, number: int, at: int, thrown: bool) -> Iterator[Executed | Edge]:
        self._begun += 1
        code = self._codes.by_number.get(number)
        frame = Frame(self._begun, self._thread, code, self._current, thrown)
        self._frames[frame.number] = self._current = frame
        self._at = at
        if code is None:
            return
        yield Edge(self._thread, code, True)
        if not thrown:
            frame.last = self._flow(code).index(at)
            for index in opening(code, frame.last):
                yield Executed(self._thread, code, index)

    def _ends(self) -> Iterator[Edge]:
        frame = self._current
        if frame is None:
            return
        del self._frames[frame.number]
        self._current = frame.caller
        self._at = frame.caller.mark if frame.caller is not None else 0
        if frame.code is not None:
            yield Edge(frame.thread, frame.code, False)

    def _handled(self, at: int) -> None:
        self._at = at
        frame = self._known()
        if frame is not None and frame.code is not None:
            frame.next, frame.thrown = self._flow(frame.code).index(at), False

    def _is_at(self, at: int) -> Iterator[Executed]:
        if self._current is not None:
            self._current.mark = at
        frame = self._known()
        if frame is None or frame.code is None or frame.thrown:
            return
        flow = self._flow(frame.code)
        index = flow.index(at)
        told = frame.next < 0 or (self._jump_tells_first and flow.kinds[index] is Kind.JUMP)
        if index != frame.last or not told:
            yield from self._walk(frame, index, _NOWHERE)

    def _goes(self, at: int) -> Iterator[Executed]:
        self._at = at
        frame = self._known()
        if frame is None or frame.code is None:
            return
        flow = self._flow(frame.code)
        if frame.next >= 0 or frame.last < 0 or flow.kinds[frame.last] not in _JUMPS:
            yield from self._walk(frame, -1, _JUMPS)
        destination = flow.index(at)
        passed = flow.passed(frame.last, destination)
        if passed is None:
            raise self._contradiction(frame, frame.last)
        for index in passed:
            yield Executed(frame.thread, frame.code, index)
        frame.next = destination

    def _walk(self, frame: Frame, goal: int, kinds: frozenset[Kind]) -> Iterator[Executed]:
        """On from what `frame` executed last: up to the instruction at `goal`, or the first of these kinds."""
        code = frame.code
        assert code is not None
        flow = self._flow(code)
        at, circles = frame.next, 0
        if at < 0:
            at = self._after(frame, flow, frame.last, goal)
        while True:
            stop = flow.stops[at]
            reached = at <= goal <= stop
            for index in range(at, (goal if reached else stop) + 1):
                yield Executed(frame.thread, code, index)
            if reached or flow.kinds[stop] in kinds:
                frame.last, frame.next = goal if reached else stop, -1
                return
            at = self._after(frame, flow, stop, goal)
            circles += flow.kinds[stop] is Kind.QUIET_JUMP
            if circles > _CIRCLES:
                raise self._contradiction(frame, stop)

    def _after(self, frame: Frame, flow: Flow, index: int, goal: int) -> int:
        """What follows without a token."""
        kind = flow.kinds[index] if index >= 0 else Kind.RAISE
        after = -1
        if kind is Kind.PLAIN or (kind is Kind.SEND and goal == index + 1):
            after = index + 1
        elif kind is Kind.QUIET_JUMP or kind is Kind.SEND:
            after = flow.targets[index]
        if not 0 <= after < len(flow.kinds):
            raise self._contradiction(frame, index)
        return after

    def _contradiction(self, frame: Frame, index: int) -> RecordError:
        assert frame.code is not None
        offset = frame.code.instructions[max(index, 0)].offset
        return RecordError(
            f"what was recorded of {frame.code.name} contradicts its code at {offset}: record again with --no-infer"
        )
