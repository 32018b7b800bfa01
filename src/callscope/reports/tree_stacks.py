"""The calls that are open at a place of the tree: one stack of them, or several where a thread has coroutines.

Calls come in order of time. When one comes whose caller is not the innermost open call, those within the caller are of
a stack that waits. They are put aside, and found again by their calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

NONE = -1
"""In place of a call's id: there is no such call."""


@dataclass(slots=True)
class Open:
    """An opening brace: of a call or, when `via` is set, of untraced code between the call and the next.

    end: the last id of a call that began before it ended. level: braces around it; depth: calls around it.
    """

    call: int
    end: int
    closing: str
    module: str
    level: int
    depth: int
    via: str | None = None


@dataclass
class Stacks:
    """One thread's. `now` is the stack at work, the innermost brace last. With `hides`, calls can be hidden."""

    hides: bool = False
    now: list[Open] = field(default_factory=list)
    _of: dict[int, list[Open]] = field(default_factory=dict)  # by call
    _hidden: dict[int, int] = field(default_factory=dict)  # call: its end

    @property
    def level(self) -> int:
        """Braces around the next line."""
        return self.now[-1].level + 1 if self.now else 0

    @property
    def depth(self) -> int:
        """Calls around the next one."""
        return self.now[-1].depth + (self.now[-1].via is None) if self.now else 0

    @property
    def call(self) -> int:
        """The innermost open call, or NONE."""
        return self.now[-1].call if self.now else NONE

    def open(self, call: int, end: int, closing: str, module: str, via: str | None = None) -> None:
        """A brace within the innermost; for untraced code `call` is the one around it."""
        self.now.append(Open(call, end, closing, module, self.level, self.depth, via))
        if via is None:
            self._of[call] = self.now

    def close(self) -> Open:
        """The innermost brace of the stack at work, which is not open any more."""
        entry = self.now.pop()
        if entry.via is None:
            del self._of[entry.call]
        return entry

    def ended(self, before: int | None) -> Iterator[Open]:
        """Close what ended before a call began in the stack at work; without one, everything."""
        while True:
            while self.now and (before is None or self.now[-1].end < before):
                yield self.close()
            if before is not None or not self._of:
                return
            self.now = next(reversed(self._of.values()))

    def switch(self, call: int, parent: int) -> tuple[bool, list[Open]]:
        """Go on with the stack that has the caller of a call as its innermost; with none where it is not known.

        Whether that took a change, and the braces of what ended meanwhile.
        """
        if parent == self.call:
            return False, []
        stack = self._of.get(parent)
        if stack is None and not self.now:
            return False, []
        waiting = self.now if stack is None else stack
        self.now = [] if stack is None else stack
        closed = []
        if stack is not None:
            place = next(at for at, entry in enumerate(stack) if entry.call == parent) + 1
            while place < len(stack) and stack[place].via is not None:
                place += 1
            waiting = stack[place:]
            del stack[place:]
        for entry in [entry for entry in reversed(waiting) if entry.end < call]:
            closed.append(entry)
            waiting.remove(entry)
            if entry.via is None:
                del self._of[entry.call]
        self._of.update((entry.call, waiting) for entry in waiting if entry.via is None)
        return True, closed

    def hide(self, call: int, end: int) -> None:
        """A call is not shown, nor is what it calls."""
        if self.hides:
            if len(self._hidden) > 10_000:
                self._hidden = {other: last for other, last in self._hidden.items() if last >= call}
            self._hidden[call] = end

    def is_hidden(self, call: int) -> bool:
        """Whether that call was hidden."""
        return call in self._hidden
