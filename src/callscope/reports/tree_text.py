"""Calls in order, written as nested braces: what is kept is the stack of open calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from callscope.globs import without_parameters
from callscope.reports.database import Database
from callscope.reports.markers import before_calls
from callscope.reports.selection import command_line, label, main_module, origin
from callscope.reports.text import BOLD, DIM, YELLOW, Style, cut, duration, duration_colour, plural, printable, shorten
from callscope.reports.tree_stacks import NONE, Open, Stacks

INDENT: Final = 2
DEEPEST_INDENT: Final = 100
"""Levels that are indented in a pipe. Deeper ones are numbered: a deep recursion's text would grow by its square."""

LONGEST_HEADING: Final = 200
LONGEST_CLOSING: Final = 60
"""Columns of the name after a closing brace, which stands in full after the opening one."""

REMARKS: Final = ("", "ends in a tail call", "unwound", "still running", "open when recording went off")
"""By `ended_by`."""

_DURATION_COLUMNS = 8


class Row(NamedTuple):
    """A call as the tree needs it: columns of `call_rows`, and what was captured, as text."""

    call_id: int
    up: int
    thread: int
    function_id: int
    site: int
    duration_ns: int
    ended_by: int
    descendants: int
    gap: bool
    arguments: str | None
    result: str | None


@dataclass(frozen=True)
class Shape:
    """How much of the tree is written. depth: levels, the root being one. limit: calls in all. 0 is no limit.

    fold: one line for calls of the same function that follow each other and call nothing.
    """

    depth: int = 0
    limit: int = 0
    fold: bool = False


class _Name(NamedTuple):
    """How a function is written. brackets: what follows the text, nothing when that ends in the parameters."""

    text: str
    brackets: str
    module: str


@dataclass(slots=True)
class _Leaf:
    """A call that is not written yet: it may turn out to be a parent. `times`: calls like it folded into it."""

    row: Row
    times: int
    total_ns: int


@dataclass
class TreeWriter:
    """Turns rows into lines.

    first_calls: by thread, the call from which on rows were chosen; those before enclose it. After `lines`: `shown`
    calls were written, and `cut` tells whether the limit left some out.
    """

    database: Database
    style: Style
    shape: Shape
    first_calls: dict[int, int]
    shown: int = 0
    cut: bool = False
    _names: dict[tuple[int, str], _Name] = field(default_factory=dict)

    def __post_init__(self) -> None:
        database = self.database
        self._stacks = Stacks(hides=bool(self.shape.depth))
        self._clock = database.has_clock
        self._markers = before_calls(database)
        self._threads = {row["thread"]: row for row in database.rows("FROM threads")}
        self._processes = {row["process"]: row for row in database.rows("FROM processes")}
        self._functions = {row["function_id"]: row for row in database.rows("FROM functions")}
        self._sites = {row["site"]: row["name"] for row in database.rows("SELECT site, name FROM sites")}
        self._tid_columns = max((len(str(row["tid"])) for row in self._threads.values()), default=3)
        self._margin = (_DURATION_COLUMNS + 2 if self._clock else 0) + self._tid_columns + 2
        deepest = max((self.style.width - self._margin - 30) // INDENT, 4) if self.style.width else DEEPEST_INDENT
        self._indents = [" " * (INDENT * level) for level in range(deepest)]
        self._tid = self._main = ""

    def lines(self, rows: Iterable[Row]) -> Iterator[str]:
        """The whole text: titles, then every thread."""
        titles = ["Duration"] if self._clock else []
        yield self.style.paint("  ".join([*titles, "TID".rjust(self._tid_columns), "Call"]), BOLD)
        waiting: _Leaf | None = None
        thread, seen = None, -1
        for row in rows:
            before, seen = seen, row.call_id
            if waiting is not None:
                if row.call_id <= waiting.row.call_id + waiting.row.descendants:
                    if self._is_too_deep(waiting.row, row):
                        continue
                    yield self._open(waiting.row)
                elif self.shape.fold and alike(waiting, row) and not self._is_marked(row.thread, row.call_id):
                    waiting.times += 1
                    waiting.total_ns += row.duration_ns
                    continue
                else:
                    yield self._leaf(waiting)
                waiting = None
                if self.shape.limit and self.shown >= self.shape.limit:
                    self.cut = True
                    break
            if row.thread != thread:
                yield from self._marks(thread, None)
            yield from self._close(row.call_id)
            if row.thread != thread:
                yield from self._heading(row.thread, first=thread is None)
                thread = row.thread
            if row.call_id == self.first_calls.get(thread) and row.call_id > before + 1 and self._stacks.now:
                yield self._prefix(None) + self._indent() + self.style.paint("/* earlier calls left out */", DIM)
            yield from self._marks(thread, row.call_id)
            yield from self._switch(row)
            yield from self._bridge(row)
            waiting = _Leaf(row, 1, row.duration_ns)
        if waiting is not None:
            yield self._leaf(waiting)
        yield from self._marks(thread, None)
        yield from self._close(None)

    def _is_marked(self, thread: int | None, call_id: int | None) -> bool:
        """Whether markers of the thread came before a call began, or, without one, after all of its calls."""
        left = self._markers.get(thread or 0)
        return left is not None and len(left) > 0 and (call_id is None or left[0][0] <= call_id)

    def _marks(self, thread: int | None, call_id: int | None) -> Iterator[str]:
        while self._is_marked(thread, call_id):
            text = printable(self._markers[thread or 0].pop(0)[1])
            yield f"{self._prefix(None)}{self._indent()}{self.style.paint(f'/* marker: {text} */', YELLOW)}"

    def _open(self, row: Row) -> str:
        """A call with calls inside."""
        name = self._name(row.function_id)
        line = self._call(row, row.duration_ns, f"{brackets_of(row, name)} {{")
        closing = shorten(name.text, LONGEST_CLOSING)
        self._stacks.open(row.call_id, row.call_id + row.descendants, closing, name.module)
        return line

    def _leaf(self, leaf: _Leaf) -> str:
        """A call with nothing inside, or nothing that is shown."""
        row = leaf.row
        brackets = brackets_of(row, self._name(row.function_id))
        if row.descendants:
            return self._call(row, row.duration_ns, f"{brackets} {{...}}", f"{plural(row.descendants, 'call')} inside")
        self.shown += leaf.times - 1
        return self._call(row, leaf.total_ns, f"{brackets};", f"{leaf.times:,} times" if leaf.times > 1 else "")

    def _call(self, row: Row, ns: int, ending: str, remark: str = "") -> str:
        """The line of a call."""
        self.shown += 1
        comment = ""
        if remark or row.ended_by:
            comment = f" /* {', '.join(filter(None, (remark, REMARKS[min(row.ended_by, 4)])))} */"
        indent = self._indent()
        name = self._name(row.function_id).text
        if row.arguments is not None:
            name = without_parameters(name)
        if self.style.width:
            room = self.style.width - self._margin - len(indent) - len(ending) - len(comment)
            name = self.style.name(name, room)
        if comment:
            comment = self.style.paint(comment, YELLOW if row.ended_by else DIM)
        return f"{self._prefix(ns)}{indent}{name}{ending}{comment}"

    def _bridge(self, row: Row) -> Iterator[str]:
        """The brace of untraced code around a call made through it; calls in a row through the same share one."""
        via = self._via(row.site) if row.gap else None
        stacks = self._stacks
        if stacks.now and stacks.now[-1].via not in (None, via):
            yield self._closing(stacks.close())
        if via is not None and not (stacks.now and stacks.now[-1].via == via):
            end = stacks.now[-1].end if stacks.now else row.call_id + row.descendants
            room = (self.style.width or 0) - self._margin - len(self._indent()) - 14
            text = f"[untraced {self.style.name(via, room)}]"
            yield f"{self._prefix(None)}{self._indent()}{self.style.paint(text + ' {', DIM)}"
            stacks.open(stacks.call, end, text, self._module, via)

    def _switch(self, row: Row) -> Iterator[str]:
        """What is written where a thread goes on with another of its stacks: a coroutine's, a greenlet's."""
        changed, closed = self._stacks.switch(row.call_id, caller_of(row))
        yield from map(self._closing, closed)
        if changed and self._stacks.now:
            text = f"/* {self._stacks.now[-1].closing} goes on */"
            yield f"{self._prefix(None)}{self._indent()}{self.style.paint(text, YELLOW)}"

    def _is_too_deep(self, waiting: Row, row: Row) -> bool:
        """Whether a call that began while another was open is not shown, for that is the last level that is."""
        if not self.shape.depth or self._stacks.depth + 1 < self.shape.depth:
            return False
        if not self._stacks.is_hidden(waiting.call_id):
            self._stacks.hide(waiting.call_id, waiting.call_id + waiting.descendants)
        if not self._stacks.is_hidden(caller_of(row)):
            return False
        self._stacks.hide(row.call_id, row.call_id + row.descendants)
        return True

    def _close(self, call_id: int | None) -> Iterator[str]:
        """Closing braces of all that has ended before a call, or of everything."""
        yield from map(self._closing, self._stacks.ended(call_id))

    def _closing(self, entry: Open) -> str:
        comment = self.style.paint(f"/* {entry.closing} */", DIM)
        return f"{self._prefix(None)}{self._indent(entry.level)}}} {comment}"

    def _heading(self, thread: int, first: bool) -> Iterator[str]:
        """A line about a thread, from which on lines are this thread's."""
        row = self._threads.get(thread, {})
        process = self._processes.get(row.get("process"), {})
        self._tid = str(row.get("tid", "?")).rjust(self._tid_columns)
        self._main = main_module(process.get("path"))
        if not first:
            yield ""
        name = f' "{row["name"]}"' if row.get("name") else ""
        whence = f", {origin(process)}" if origin(process) else ""
        of = f"of process {row.get('pid', '?')}{whence}"
        text = printable(f"thread {row.get('tid', '?')}{name} {of}: {command_line(process)}")
        yield self.style.comment(cut(text, (self.style.width or LONGEST_HEADING) - 2))

    def _prefix(self, ns: int | None) -> str:
        """The columns before the tree."""
        if not self._clock:
            return f"{self._tid}  "
        if ns is None:
            return f"{'':{_DURATION_COLUMNS}}  {self._tid}  "
        return f" {self.style.paint(duration(ns), *duration_colour(ns))}  {self._tid}  "

    def _indent(self, of: int | None = None) -> str:
        """The space before a line, a brace deep for each around it; the number of the level where that is too much."""
        level = self._stacks.level if of is None else of
        if level < len(self._indents):
            return self._indents[level]
        return f"{self._indents[-1]}(+{level - len(self._indents) + 1}) "

    @property
    def _module(self) -> str:
        """The module of the innermost open call; outside of all calls, the program."""
        return self._stacks.now[-1].module if self._stacks.now else self._main

    def _name(self, function: int) -> _Name:
        """A function's name, with its module where that changes: where it is not that of the call around it."""
        key = function, self._module
        name = self._names.get(key)
        if name is None:
            row = self._functions.get(function) or {"name": "?", "module": None}
            text = printable(label(row["name"], row["module"], self.database.only_module or self._module))
            brackets = "" if without_parameters(text) != text else "()"
            name = self._names[key] = _Name(text, brackets, row["module"] or "")
        return name

    def _via(self, site: int) -> str:
        return printable(self._sites.get(site) or "?")


def caller_of(row: Row) -> int:
    """The id of the call that made it, or NONE."""
    return row.call_id - row.up if row.up > 0 else NONE


def brackets_of(row: Row, name: _Name) -> str:
    """What follows a function's name: its arguments, or the parameters that the name lacks; and the result."""
    text = f"({row.arguments})" if row.arguments is not None else name.brackets
    return text if row.result is None else f"{text} = {row.result}"


def alike(leaf: _Leaf, row: Row) -> bool:
    """Whether a call can be told together with the one before: both call nothing and differ in nothing but time."""
    last = leaf.row
    return (
        row.function_id == last.function_id
        and row.call_id == last.call_id + leaf.times
        and row.call_id - row.up == last.call_id - last.up
        and (row.up > 0) == (last.up > 0)
        and row.descendants == last.descendants == 0
        and (row.arguments, row.result) == (last.arguments, last.result)
        and row.ended_by == last.ended_by == 0
        and row.gap == last.gap
        and (not row.gap or row.site == last.site)
        and row.thread == last.thread
    )
