"""The app: tabs, search, keys."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static, TabbedContent, TabPane

from callscope.reports.text import duration, printable
from callscope.viewer.answers import Answers
from callscope.viewer.terminal.calltree import TreePane
from callscope.viewer.terminal.cells import Rows, ShowCall, WalkTo
from callscope.viewer.terminal.details import CallScreen
from callscope.viewer.terminal.functions import FunctionsPane
from callscope.viewer.terminal.graph import GraphPane
from callscope.viewer.terminal.pages import Page, crash_lines, modules_lines, stacks_lines, trace_lines

TABS = {
    "functions": "Functions",
    "graph": "Call graph",
    "calls": "Calls",
    "modules": "Modules",
    "stacks": "Stacks",
    "crash": "Crash",
    "trace": "Trace",
}
HELP = """\
1 - 7         functions, call graph, calls in order, modules, stacks, crash, trace
/             search functions; Enter: to the table, Esc: no search
Tab, arrows   between tables, and in them; PgUp, PgDn, Ctrl+Home, Ctrl+End
Enter         functions: the function in the call graph
              call graph: walk to a caller, callee or call site's function; a call's details
              calls: open and close
Backspace     call graph: where one came from
s, r          functions: sort by the next column; turn the order around (or click a title)
d, g          calls: details of a call; its function in the call graph
g, p, Esc     details: the function in the call graph; the caller; close
t             light or dark
?             this
q             quit"""


class HelpScreen(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss(None)", "Close")]

    def compose(self) -> ComposeResult:
        """One text."""
        with VerticalScroll(id="help-box"):
            yield Static(Text(HELP), markup=False)


class ViewApp(App[None]):
    """A trace in the terminal."""

    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (90, "-wide")]  # noqa: RUF012  # declared so
    TITLE = "callscope view"
    CSS = """
    Screen { overflow: hidden; }
    #tabs, #tabs > ContentSwitcher, #tabs TabPane, #more > ContentSwitcher { height: 1fr; }
    #title { height: 1; background: $panel; color: $text; padding: 0 1; }
    #search { display: none; height: 1; border: none; padding: 0 1; }
    #search.shown { display: block; }
    TabPane { padding: 0; }
    FunctionsPane, GraphPane, TreePane, Page, CallPane { height: 1fr; width: 1fr; }
    #functions, #tree { height: 1fr; }
    #functions-status { height: 1; }
    #center { height: 3; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    Page Static, #lines { width: auto; text-wrap: nowrap; }
    #walk { layout: horizontal; height: 1fr; }
    #walk Rows { width: 1fr; height: 1fr; }
    .-narrow #walk { layout: vertical; }
    #more { height: 1fr; }
    #longest, #sites { height: 1fr; }
    HelpScreen, CallScreen { align: center middle; }
    #help-box { width: auto; max-width: 100%; height: auto; max-height: 90%; padding: 1 2; background: $panel; }
    #help-box Static { width: auto; }
    #call-box { width: 96%; height: 94%; background: $surface; border: round $primary; }
    #facts { height: auto; max-height: 50%; padding: 0 1; }
    #ancestors { height: auto; max-height: 30%; }
    #call-source { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("question_mark", "help", "Keys"),
        Binding("slash", "search", "Search"),
        Binding("t", "theme", "Theme", show=False),
        Binding("escape", "no_search", "No search", show=False),
        *(Binding(str(at), f"tab('{name}')", title, show=False) for at, (name, title) in enumerate(TABS.items(), 1)),
    ]

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers
        self.summary: dict[str, Any] = answers.summary()
        self.own_module: str | None = self.summary["own_module"]
        self.search = ""

    def compose(self) -> ComposeResult:
        """What was recorded, tabs, keys."""
        facts = self.summary["info"]
        lasted = f", {duration(facts['duration_ns']).strip()}" if facts["duration_ns"] else ""
        title = f"{self.summary['name']}  {facts['calls']:,} calls{lasted}"
        yield Static(Text(printable(title), no_wrap=True), id="title", markup=False)
        yield Input(placeholder="part of a function's name", id="search")
        panes = {
            "functions": FunctionsPane(),
            "graph": GraphPane(),
            "calls": TreePane(),
            "modules": Page(modules_lines, "modules-page"),
            "stacks": Page(stacks_lines, "stacks-page"),
            "crash": Page(crash_lines, "crash-page"),
            "trace": Page(trace_lines, "trace-page"),
        }
        with TabbedContent(id="tabs"):
            for at, (name, shown) in enumerate(TABS.items(), 1):
                with TabPane(f"{at} {shown}", id=f"tab-{name}"):
                    yield panes[name]
        yield Footer()

    def on_mount(self) -> None:
        """Begin in the table of functions."""
        self.query_one("#functions", Rows).focus()

    def action_tab(self, name: str) -> None:
        """Show a tab."""
        self.query_one("#tabs", TabbedContent).active = f"tab-{name}"
        first = {"functions": "#functions", "graph": "#callees", "calls": "#tree"}.get(name)
        if first is not None:
            self.query_one(first).focus()
        else:
            self.query_one(f"#tab-{name} ScrollableContainer").focus()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen())

    def action_theme(self) -> None:
        """Light or dark."""
        self.theme = "textual-light" if self.theme == "textual-dark" else "textual-dark"

    def action_search(self) -> None:
        """Ask what to search for."""
        self.action_tab("functions")
        field = self.query_one("#search", Input)
        field.add_class("shown")
        field.focus()

    def action_no_search(self) -> None:
        """Show all functions again."""
        field = self.query_one("#search", Input)
        field.value = ""
        field.remove_class("shown")
        self.query_one("#functions").focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search as it is typed."""
        self.search = event.value
        self.query_one(FunctionsPane).load()

    def on_input_submitted(self) -> None:
        """To what was found."""
        self.query_one("#functions").focus()

    def on_walk_to(self, event: WalkTo) -> None:
        """Show a function in the call graph."""
        self.query_one(GraphPane).walk(event.function)
        self.action_tab("graph")

    def on_show_call(self, event: ShowCall) -> None:
        """Show a call over the rest."""
        self.push_screen(CallScreen(event.call), self._from_call)

    def _from_call(self, function: int | None) -> None:
        if function is not None:
            self.on_walk_to(WalkTo(function))
