"""One function: who calls it, what it calls, from where, its longest calls, its source. Enter walks on."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.widgets import DataTable, Static, TabbedContent, TabPane

from callscope.errors import TraceError
from callscope.reports.selection import label
from callscope.reports.text import duration, plural, printable, seconds
from callscope.viewer.terminal.cells import Pane, Rows, ShowCall, Source, captured, name_of, number, text, time


class GraphPane(Pane):
    """The call graph around a function."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("backspace", "back", "Back")]

    def __init__(self) -> None:
        super().__init__()
        self._path: list[int] = []

    def compose(self) -> ComposeResult:
        """Figures; callers and callees; calls, places and source."""
        yield Static(id="center", markup=False)
        with Container(id="walk"):
            yield Rows("#Calls", "#Total", "Caller", id="callers")
            yield Rows("#Calls", "#Total", "Callee", id="callees")
        with TabbedContent(id="more"):
            with TabPane("Longest calls" if self.view.summary["clock"] else "First calls", id="longest-pane"):
                yield Rows("#Duration", "#Start", "#Thread", "Call", id="longest")
            with TabPane("Call sites", id="sites-pane"):
                yield Rows("#Calls", "#Total", "Caller", "Place", id="sites")
            with TabPane("Source", id="source-pane"), Horizontal():
                yield Source(id="source")

    def on_mount(self) -> None:
        """Begin at the function with the largest total."""
        self._begin()

    @work(exclusive=True, group="begin")
    async def _begin(self) -> None:
        answer = await self.ask(self.answers.functions, "", "total", False, 0, 1)
        if answer is None or self._path:
            return
        if answer["rows"]:
            self.walk(answer["rows"][0]["id"])
        else:
            self.query_one("#center", Static).update(text("No function was called", "dim"))

    def walk(self, function: int) -> None:
        """Go to a function."""
        if not self._path or self._path[-1] != function:
            self._path.append(function)
        self._show(function)

    def action_back(self) -> None:
        """Go to where one came from."""
        if len(self._path) > 1:
            self._path.pop()
            self._show(self._path[-1])

    @work(exclusive=True)
    async def _show(self, function: int) -> None:
        found = await self.ask(self.answers.function, function)
        if found is None:
            return
        self.query_one("#center", Static).update(self._head(found))
        for side in ("callers", "callees"):
            rows = [
                (edge["function"], [number(edge["calls"]), time(edge["total_ns"]), self._function_name(found, edge)])
                for edge in found[side]
            ]
            self.query_one(f"#{side}", Rows).fill(rows)
        source = None
        reason = "No source: the module has no line information"
        if found["file"]:
            try:
                source = self.answers.source(found["file"], found["line"] or 1)
            except TraceError as error:
                reason = str(error)
        self.query_one("#source", Source).show(source, reason)
        longest = await self.ask(self.answers.longest_calls, function)
        self.query_one("#longest", Rows).fill(
            (row["call_id"], [time(row["duration_ns"]), text(seconds(row["start_ns"])), text(row["tid"]),
                              text(captured(row).strip() or f"#{row['call_id']}")])
            for row in longest or []
        )  # fmt: skip
        sites = await self.ask(self.answers.sites, function)
        self.query_one("#sites", Rows).fill(
            (
                row["function"],
                [number(row["calls"]), time(row["total_ns"]), self._function_name(found, row), _place(row)],
            )
            for row in sites or []
        )

    def _function_name(self, found: dict[str, Any], edge: dict[str, Any]) -> Text:
        return name_of(found["names"], edge["function"], self.view.own_module)

    def _head(self, found: dict[str, Any]) -> Text:
        module = None if found["module"] == self.view.own_module else found["module"]
        head = Text(printable(label(found["function"], module)), "bold", no_wrap=True)
        facts = f"\n{plural(found['calls'], 'call')}"
        if found["total_ns"] is not None:
            times = {"total": "total_ns", "self": "self_ns", "average": "average_ns", "longest": "max_ns"}
            facts += "".join(f", {name} {duration(found[key]).strip()}" for name, key in times.items())
        place = f"{found['file']}:{found['line']}" if found["file"] else found["path"] or "?"
        head.append(facts, "not bold")
        head.append(f"\n{printable(place)}", "not bold dim")
        return head

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Walk to a caller or callee; show a call."""
        event.stop()
        key = Rows.key_of(event)
        if key is None:
            return
        if event.data_table.id == "longest":
            self.post_message(ShowCall(key))
        else:
            self.walk(key)


def _place(row: dict[str, Any]) -> Text:
    return text(f"{row['file']}:{row['line']}" if row["file"] else row["call_site"] or "-")
