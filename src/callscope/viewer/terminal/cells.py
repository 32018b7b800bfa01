"""What all panes share: cells, tables whose rows lead somewhere, source text, and questions that hold up nothing.

Names from traces become rich.text.Text of printable characters, never markup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import ScrollableContainer
from textual.message import Message
from textual.widget import Widget
from textual.widgets import DataTable, Static

from callscope.errors import CallscopeError
from callscope.reports.selection import label
from callscope.reports.text import duration, printable
from callscope.viewer.answers import Answers

if TYPE_CHECKING:
    from callscope.viewer.terminal.app import ViewApp

P = ParamSpec("P")
T = TypeVar("T")
_CONTEXT = 4
"""Lines of source above the one that is looked at."""


class WalkTo(Message):
    """Show a function in the call graph."""

    def __init__(self, function: int) -> None:
        super().__init__()
        self.function = function


class ShowCall(Message):
    """Show a call's arguments, callers and source."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call = call


class Pane(Widget):
    """Part of the screen that asks for what it shows."""

    @property
    def view(self) -> ViewApp:
        """The app."""
        return cast("ViewApp", self.app)

    @property
    def answers(self) -> Answers:
        """What is asked."""
        return self.view.answers

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `function` answers, in a thread of its own; None, and a notice, when it cannot."""
        try:
            return await asyncio.to_thread(function, *args, **kwargs)
        except CallscopeError as error:
            self.notify(printable(str(error)), severity="error", markup=False)
            return None


def text(value: object, style: str = "") -> Text:
    """A cell of plain text."""
    return Text(printable(str(value)), style)


def number(value: int | None) -> Text:
    """A count, right-aligned."""
    return Text("-" if value is None else f"{value:,}", justify="right")


def time(value: int | None) -> Text:
    """A duration."""
    return Text(duration(value), justify="right")


def name_of(names: Mapping[int, Sequence[str | None]], function: int | None, own: str | None) -> Text:
    """A function's name; `own`: the module that need not be named."""
    if function is None:
        return Text("[not traced]", "dim")
    name, module = names.get(function) or ("?", None)
    return text(label(name or "?", None if module == own else module))


def captured(row: Mapping[str, Any]) -> str:
    """A call's arguments and result, '' where they were not recorded."""
    given = row.get("arguments")
    shown = ", ".join(
        f"{value['name']}={value['text']}" if value.get("name") else value["text"] for value in given or []
    )
    result = row.get("result")
    return (f"({shown})" if given is not None else "") + (f" = {result['text']}" if result else "")


class Rows(DataTable[Text]):
    """A table whose rows are chosen as a whole and lead to a number, their key."""

    def __init__(self, *titles: str, id: str) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=True)
        self._titles = titles

    def on_mount(self) -> None:
        """Set titles: those of figures begin with # and stand at the right."""
        for title in self._titles:
            shown = Text(title.removeprefix("#"), justify="right" if title.startswith("#") else "left")
            self.add_column(shown, key=title.removeprefix("#"))

    def fill(self, rows: Iterable[tuple[int | None, Sequence[Text]]]) -> None:
        """Replace all rows: (key, cells). Rows with None as their key lead nowhere."""
        self.clear()
        self.append(rows)

    def append(self, rows: Iterable[tuple[int | None, Sequence[Text]]]) -> None:
        """Add rows."""
        for place, (key, cells) in enumerate(rows, self.row_count):
            self.add_row(*cells, key=f"{place}:{'' if key is None else key}")

    @staticmethod
    def key_of(event: DataTable.RowSelected) -> int | None:
        """Where the row that was chosen leads."""
        _, _, found = (event.row_key.value or "").partition(":")
        return int(found) if found else None


class Source(ScrollableContainer):
    """Source text around a line."""

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static(id="lines", markup=False)

    def show(self, answer: Mapping[str, Any] | None, reason: str = "") -> None:
        """The answer `source`, or why there is none."""
        lines = self.query_one("#lines", Static)
        if answer is None:
            lines.update(text(reason, "dim"))
            return
        content = Text(no_wrap=True)
        content.append(f"{printable(answer['file'])}\n", "dim")
        for at, line in enumerate(answer["lines"], answer["first"]):
            style = "reverse" if at == answer["line"] else ""
            content.append(f"{at:5} ", "dim")
            content.append(f"{printable(line.expandtabs(4))}\n", style)
        lines.update(content)
        self.scroll_to(0, max(answer["line"] - answer["first"] - _CONTEXT, 0), animate=False)
