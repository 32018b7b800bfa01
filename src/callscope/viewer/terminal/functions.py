"""Every function called: sorted, searched."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Static

from callscope.reports.functions import ORDERS
from callscope.reports.selection import label
from callscope.viewer.terminal.cells import Pane, Rows, WalkTo, number, text, time

PAGE: Final = 300
_TITLES: Final = {
    "Total": "total", "Self": "self", "Calls": "calls", "Average": "average", "Min": "min", "Max": "max",
    "P99": "p99", "Function": "name",
}  # fmt: skip


class FunctionsPane(Pane):
    """The table of functions."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "sort", "Sort"), Binding("r", "reverse", "Reverse")]

    def __init__(self) -> None:
        super().__init__()
        self._sort, self._reverse = "total", False
        self._loaded = self._count = 0

    def compose(self) -> ComposeResult:
        """The table, and a line about it."""
        yield Rows(*(f"#{title}" for title in list(_TITLES)[:-1]), "Function", id="functions")
        yield Static(id="functions-status", markup=False)

    def on_mount(self) -> None:
        """Show the first rows."""
        self.load()

    def load(self) -> None:
        """Show the rows from the first on."""
        self._show(0)

    @work(exclusive=True)
    async def _show(self, offset: int) -> None:
        search = self.view.search
        question = partial(self.answers.functions, search, self._sort, self._reverse, offset, PAGE)
        answer = await self.ask(question)
        if answer is None or search != self.view.search:
            return
        table = self.query_one("#functions", Rows)
        rows = [(row["id"], self._cells(row)) for row in answer["rows"]]
        if offset:
            table.append(rows)
        else:
            table.fill(rows)
        self._loaded, self._count = offset + len(rows), answer["count"]
        found = f" with {search!r}" if search else ""
        order = f"by {self._sort}{', reversed' if self._reverse else ''}"
        self.query_one("#functions-status", Static).update(
            text(f"{self._loaded:,} of {self._count:,} functions{found}, {order}", "dim")
        )

    def _cells(self, row: dict[str, Any]) -> list[Text]:
        times = [time(row[f"{name}_ns"]) for name in ("total", "self", "average", "min", "max", "p99")]
        name = label(row["function"], None if row["module"] == self.view.own_module else row["module"])
        return [*times[:2], number(row["calls"]), *times[2:], text(name)]

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._order(ORDERS[(ORDERS.index(self._sort) + 1) % len(ORDERS)])

    def action_reverse(self) -> None:
        """Turn the order around."""
        self._reverse = not self._reverse
        self.load()

    def _order(self, sort: str) -> None:
        self._sort, self._reverse = sort, False
        self.load()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Sort by a title that was clicked; turn the order around if it is so sorted."""
        sort = _TITLES[str(event.column_key.value)]
        if sort == self._sort:
            self.action_reverse()
        else:
            self._order(sort)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Load more rows as the end comes near."""
        if self._loaded < self._count and event.cursor_row >= self._loaded - 10:
            self._show(self._loaded)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Walk to a function."""
        function = Rows.key_of(event)
        if function is not None:
            self.post_message(WalkTo(function))
