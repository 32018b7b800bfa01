"""A call: times, arguments, result, the calls it is in, source."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from callscope.errors import TraceError
from callscope.reports.selection import label
from callscope.reports.text import duration, printable, seconds
from callscope.viewer.terminal.cells import Pane, Rows, Source, text, time


class CallScreen(ModalScreen[int | None]):
    """A call over the rest of the screen. Gives the function to show in the call graph, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "close", "Close"),
        Binding("g", "graph", "Call graph"),
        Binding("p", "caller", "Caller"),
    ]

    def __init__(self, call: int) -> None:
        super().__init__()
        self._call = call

    def compose(self) -> ComposeResult:
        """The pane."""
        with Vertical(id="call-box"):
            yield CallPane(self._call)
            yield Footer()

    def action_close(self) -> None:
        """Back to where one was."""
        self.dismiss(None)

    def action_graph(self) -> None:
        """To the function."""
        self.dismiss(self.query_one(CallPane).function)

    def action_caller(self) -> None:
        """The call that made this one."""
        self.query_one(CallPane).to_caller()


class CallPane(Pane):
    """What is known of a call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self._call = call
        self._caller: int | None = None
        self.function: int | None = None

    def compose(self) -> ComposeResult:
        """Facts, callers, source."""
        yield Static("...", id="facts", markup=False)
        yield Rows("#Duration", "Inside of", id="ancestors")
        yield Source(id="call-source")

    def on_mount(self) -> None:
        """Ask."""
        self.show(self._call)

    def to_caller(self) -> None:
        """Show the call that made this one."""
        if self._caller is not None:
            self.show(self._caller)

    @work(exclusive=True)
    async def show(self, number: int) -> None:
        """Show a call."""
        call = await self.ask(self.answers.call, number)
        if call is None:
            return
        self.function = call["function_id"]
        self._caller = call["ancestors"][0]["call_id"] if call["ancestors"] else None
        self.query_one("#facts", Static).update(self._facts(call))
        rows = [(row["call_id"], [time(row["duration_ns"]), self._function_name(row)]) for row in call["ancestors"]]
        self.query_one("#ancestors", Rows).fill(rows)
        source, reason = None, "No source: the module has no line information"
        if call["file"]:
            try:
                source = self.answers.source(call["file"], call["line"] or 1)
            except TraceError as error:
                reason = str(error)
        self.query_one("#call-source", Source).show(source, reason)

    def _function_name(self, row: dict[str, Any]) -> Text:
        module = None if row["module"] == self.view.own_module else row["module"]
        return text(label(row["function"] or "?", module))

    def _facts(self, call: dict[str, Any]) -> Text:
        facts = self._function_name(call)
        facts.stylize("bold")
        lines = [f"call {call['call_id']:,}, depth {call['depth']:,}, thread {call['tid']} of process {call['pid']}"]
        if call["duration_ns"] is not None:
            own = duration(call["self_ns"]).strip()
            lines.append(f"{duration(call['duration_ns']).strip()}, own {own}, from {seconds(call['start_ns'])} s")
        lines.append(f"ended by {call['ended_by'].replace('_', ' ')}, called from {call['call_site'] or '-'}")
        if call["via"]:
            lines.append(f"through {call['via']}, which was not traced")
        for place, value in enumerate(call.get("arguments") or []):
            kind = f"  {value['type']}" if value.get("type") else ""
            lines.append(f"  {value.get('name') or place} = {value['text']}{kind}")
        if call.get("result"):
            lines.append(f"  result = {call['result']['text']}")
        facts.append("".join(f"\n{printable(line)}" for line in lines), "not bold")
        return facts

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Go out to a call around this one."""
        event.stop()
        key = Rows.key_of(event)
        if key is not None:
            self.show(key)
