"""Entries and exits of threads whose coroutines take turns, against a model of such threads."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from callscope.exporters.steps import COLUMNS, Steps


@dataclass
class Coroutines:
    """A thread of random calls on several stacks. `switches`: with more than one."""

    seed: int
    stacks: list[list[int]] = field(default_factory=lambda: [[]])
    parents: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: dict[int, tuple[int, int]] = field(default_factory=dict)  # time, calls that had begun
    now: int = 0

    def run(self, length: int, several: bool) -> dict[str, np.ndarray]:
        choose = random.Random(self.seed)
        at = 0
        for _ in range(length):
            self.now += 1
            stack = self.stacks[at]
            what = choose.random()
            if what < 0.5 or not stack:
                self._call(at, stack[-1] if stack else self._innermost(0))
            elif what < 0.9 or not several:
                self.ends[stack.pop()] = (self.now, len(self.parents))
            elif choose.random() < 0.3:
                self.stacks.append([])
                self._call(len(self.stacks) - 1, stack[-1])
                at = len(self.stacks) - 1
            else:
                at = choose.randrange(len(self.stacks))
        for stack in self.stacks:
            while stack:
                self.ends[stack.pop()] = (self.now + 1, len(self.parents))
        return self._columns()

    def _innermost(self, stack: int) -> int:
        return self.stacks[stack][-1] if self.stacks[stack] else -1

    def _call(self, stack: int, parent: int) -> None:
        self.stacks[stack].append(len(self.parents))
        self.parents.append(parent)
        self.starts.append(self.now)

    def _columns(self) -> dict[str, np.ndarray]:
        ids = range(len(self.parents))
        columns = {
            "call_id": list(ids),
            "up": [call - self.parents[call] if self.parents[call] >= 0 else 0 for call in ids],
            "start_ns": self.starts,
            "duration_ns": [self.ends[call][0] - self.starts[call] for call in ids],
            "descendants": [self.ends[call][1] - call - 1 for call in ids],
            "function_id": [call % 7 for call in ids],
            "node": list(ids),
            "ended_by": [0 for _ in ids],
        }
        return {name: np.array(columns[name], kind) for name, kind in COLUMNS.items()}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("piece", [7, 5000])
def test_calls_are_entered_under_their_callers(seed: int, several: bool, piece: int) -> None:
    model = Coroutines(seed)
    columns = model.run(2000, several)
    found: list[tuple[int, ...]] = []
    names = ["is_entry", "is_switch", "call", "time", "depth", "node"]
    with Steps(has_clock=True) as steps:
        for first in range(0, len(model.parents), piece):
            for array in steps.feed({name: column[first : first + piece] for name, column in columns.items()}):
                found += array[names].tolist()
        for array in steps.finish():
            found += array[names].tolist()
    stack: list[int] = []
    waiting: set[int] = set()
    whole = {True: [], False: []}  # type: dict[bool, list[int]]
    last = 0
    for is_entry, is_switch, call, time, depth, node in found:
        assert time >= last
        last = time
        if not is_switch:
            whole[bool(is_entry)].append(call)
        if is_entry:
            assert (call in waiting) == bool(is_switch)
            waiting.discard(call)
            parent = model.parents[call]
            if not is_switch and parent >= 0 and model.ends[parent][1] > call:
                assert stack[-1] == parent
            assert depth == len(stack)
            stack.append(call)
            assert node == call
        else:
            assert stack.pop() == call
            assert depth == len(stack) and node == (stack[-1] if stack else -1)
            if is_switch:
                waiting.add(call)
    assert not stack and not waiting
    assert whole[True] == list(range(len(model.parents)))
    assert sorted(whole[False]) == whole[True]
    assert any(is_switch for _, is_switch, *_ in found) == several
