"""`callscope view --tui`, driven as by keys and clicks."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("textual", reason="Textual is not installed")

from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static, TabbedContent, Tree

from callscope.cli.main import main
from callscope.cli.view import run_in_terminal
from callscope.errors import UsageError
from callscope.viewer import answers as answers_module
from callscope.viewer.terminal.app import TABS, HelpScreen, ViewApp
from callscope.viewer.terminal.details import CallScreen
from tests.builders.calls_table import Call, Thread, TraceBuilder, sample
from tests.builders.viewer import busy, opened

HOSTILE = "[bold red]owned[/] \x1b[31m\u202e[@click=app.quit]x"
SHOWN = "[bold red]owned[/] \\x1b[31m\\u202e[@click=app.quit]x"
Steps = Callable[[ViewApp, Pilot[None]], Awaitable[None]]


def drive(builder: TraceBuilder, path: Path, steps: Steps, size: tuple[int, int] = (110, 34)) -> None:
    """Go through some steps in an app of this size; an error in a worker fails the test."""

    async def run() -> None:
        with opened(builder, path / "app.trace") as (_, answers):
            app = ViewApp(answers)
            async with app.run_test(size=size) as pilot:
                await settled(app, pilot)
                await steps(app, pilot)

    asyncio.run(run())


async def settled(app: ViewApp, pilot: Pilot[None]) -> None:
    """Wait until all that was asked for is there."""
    for _ in range(3):
        await pilot.pause()
        await app.workers.wait_for_complete()
    await pilot.pause()


async def press(app: ViewApp, pilot: Pilot[None], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await settled(app, pilot)


def column(app: ViewApp, table: str, title: str) -> list[str]:
    """What a column of a table shows."""
    found: DataTable[Any] = app.screen.query_one(f"#{table}", DataTable)
    return [str(cell) for cell in found.get_column(title)]


def content(app: ViewApp, selector: str) -> str:
    return str(app.screen.query_one(selector, Static).content)


def open_tab(app: ViewApp) -> str:
    return app.query_one("#tabs", TabbedContent).active


def test_functions_are_sorted_and_searched(tmp_path: Path) -> None:
    async def steps(app: ViewApp, pilot: Pilot[None]) -> None:
        names = [row["function"] for row in app.answers.functions()["rows"]]
        assert column(app, "functions", "Function") == names and len(names) > 5
        await press(app, pilot, "s")
        by_self = [row["function"] for row in app.answers.functions(sort="self")["rows"]]
        assert column(app, "functions", "Function") == by_self != names
        await press(app, pilot, "r")
        assert column(app, "functions", "Function") == by_self[::-1]
        table = app.query_one("#functions", DataTable)
        table.post_message(
            DataTable.HeaderSelected(table, table.ordered_columns[7].key, 7, table.ordered_columns[7].label)
        )
        await settled(app, pilot)
        assert column(app, "functions", "Function") == sorted(names)
        await press(app, pilot, "slash", "c", "m", "d")
        assert column(app, "functions", "Function") == ["cmd_log"]
        assert "1 of 1 functions with 'cmd'" in content(app, "#functions-status")
        await press(app, pilot, "enter")
        assert app.focused is table
        await press(app, pilot, "escape")
        assert len(column(app, "functions", "Function")) == len(names)
        assert not app.query_one("#search", Input).has_class("shown")

    drive(sample(), tmp_path, steps)


def test_further_functions_come_as_one_moves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callscope.viewer.terminal.functions.PAGE", 20)
    roots = tuple(Call(f"f{number:03}", 1000 - number) for number in range(70))

    async def steps(app: ViewApp, pilot: Pilot[None]) -> None:
        for shown in (20, 40, 60, 70, 70):
            assert column(app, "functions", "Function") == [f"f{number:03}" for number in range(shown)]
            await press(app, pilot, "ctrl+end")

    drive(TraceBuilder([Thread(1, roots)]), tmp_path, steps)


@pytest.mark.parametrize("size", [(110, 34), (40, 12)])
def test_the_call_graph_is_walked(size: tuple[int, int], tmp_path: Path) -> None:
    async def steps(app: ViewApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "2")
        assert content(app, "#center").startswith("main\n")
        await press(app, pilot, *["down"] * column(app, "callees", "Callee").index("cmd_log"), "enter")
        assert content(app, "#center").startswith("cmd_log\n")
        assert column(app, "callers", "Caller") == ["main"]
        assert column(app, "sites", "Caller") == ["main"]
        app.query_one("#callers").focus()
        await press(app, pilot, "enter")
        assert content(app, "#center").startswith("main\n")
        await press(app, pilot, "backspace", "backspace", "backspace")
        assert content(app, "#center").startswith("main\n")
        number = app.answers.functions(search="walk")["rows"][0]["id"]
        await press(app, pilot, "slash", *"walk", "enter", "enter")
        assert open_tab(app) == "tab-graph" and content(app, "#center").startswith("walk\n")
        assert len(column(app, "longest", "Duration")) == app.answers.function(number)["calls"]  # type: ignore[index]
        app.query_one("#longest").focus()
        await press(app, pilot, "enter")
        assert isinstance(app.screen, CallScreen) and content(app, "#facts").startswith("walk\n")
        await press(app, pilot, "g")
        assert not isinstance(app.screen, CallScreen) and content(app, "#center").startswith("walk\n")

    drive(sample(), tmp_path, steps, size)


def call_of(node: Any) -> Any:
    return node.data.call


def tree_of(app: ViewApp) -> Tree[Any]:
    return app.query_one("#tree", Tree)


def test_calls_are_opened_one_by_one(tmp_path: Path) -> None:
    async def steps(app: ViewApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "3")
        tree = tree_of(app)
        assert ["git 1000" in str(node.label) for node in tree.root.children] == [True, False]
        assert not tree.root.children[0].children
        await press(app, pilot, "enter", "down", "enter", "down")
        (main_node,) = tree.root.children[0].children
        assert "main" in str(main_node.label)
        found = app.answers.children(1, call_of(main_node))["calls"]
        assert [call_of(node) for node in main_node.children] == [row["call_id"] for row in found]
        assert tree.cursor_node is main_node.children[0]
        await press(app, pilot, "d")
        assert isinstance(app.screen, CallScreen) and content(app, "#facts").startswith("setup\n")
        assert column(app, "ancestors", "Inside of") == ["main"]
        await press(app, pilot, "p")
        assert content(app, "#facts").startswith("main\n")
        await press(app, pilot, "escape", "g")
        assert open_tab(app) == "tab-graph" and content(app, "#center").startswith("setup\n")
        await press(app, pilot, "3", "up", "enter")
        assert not main_node.is_expanded

    drive(sample(), tmp_path, steps)


def test_many_calls_come_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "CHILDREN", 4)
    inner = tuple(Call(f"f{number}", 5, (Call("deep", 1),)) for number in range(10))

    async def steps(app: ViewApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "3", "down", "enter")
        (node,) = tree_of(app).root.children[0].children
        for shown in (4, 8, 10):
            names = [str(child.label).split()[-1] for child in node.children if str(child.label) != "... more: Enter"]
            assert names == [f"f{number}" for number in range(shown)]
            tree_of(app).move_cursor(node.children[-1])
            await press(app, pilot, "enter")

    drive(TraceBuilder([Thread(1, (Call("main", 1, inner),))]), tmp_path, steps)


@pytest.mark.parametrize("clock", [True, False])
def test_hostile_names_are_text(clock: bool, tmp_path: Path) -> None:
    builder = TraceBuilder(
        [Thread(1, (Call(HOSTILE, 9, (Call("[/]", 1),), via="[blink]x"),), name=HOSTILE)], clock=clock
    )
    builder.session = {"command": [HOSTILE], "cwd": HOSTILE}

    async def steps(app: ViewApp, pilot: Pilot[None]) -> None:
        assert sorted(column(app, "functions", "Function")) == sorted([SHOWN, "[/]"])
        for key in map(str, range(1, len(TABS) + 1)):
            await press(app, pilot, key)
        await press(app, pilot, "2")
        near = {*column(app, "callees", "Callee"), *column(app, "callers", "Caller")} - {"[not traced]"}
        assert {content(app, "#center").partition("\n")[0]} | near == {SHOWN, "[/]"}
        await press(app, pilot, "3", "down", "enter", "d")
        assert content(app, "#facts").startswith(SHOWN)
        assert "[blink]x" in content(app, "#facts")
        await press(app, pilot, "escape", "7")
        assert SHOWN in content(app, "#trace-page Static")
        assert "\x1b[31m" not in app.export_screenshot()
        await press(app, pilot, "slash", *"[bold")
        assert column(app, "functions", "Function") == [SHOWN]

    drive(builder, tmp_path, steps)


def test_pages_help_and_theme(tmp_path: Path) -> None:
    async def steps(app: ViewApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "4")
        assert "/usr/bin/git" in content(app, "#modules-page Static")
        await press(app, pilot, "5")
        assert "No call stacks" in content(app, "#stacks-page Static")
        await press(app, pilot, "6")
        assert content(app, "#crash-page Static") == "Nothing crashed"
        await press(app, pilot, "7")
        assert "git log" in content(app, "#trace-page Static")
        await press(app, pilot, "question_mark")
        assert isinstance(app.screen, HelpScreen)
        await press(app, pilot, "escape")
        before = app.theme
        await press(app, pilot, "t")
        assert app.theme != before
        await press(app, pilot, "q")
        assert not app.is_running

    drive(sample(), tmp_path, steps)


def test_children_are_the_calls_that_a_call_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "CHILDREN", 7)
    with opened(busy(3, 400), tmp_path / "t.trace") as (database, answers):
        rows = database.rows(
            "SELECT call_id, CASE WHEN up > 0 THEN call_id - up END AS parent FROM call_rows ORDER BY 1"
        )
        for parent in (None, *(row["call_id"] for row in rows[:60])):
            found, after = [], None
            while True:
                answer = answers.children(1, parent, after)
                found += [call["call_id"] for call in answer["calls"]]
                after = answer["next"]
                if after is None:
                    break
            assert found == [row["call_id"] for row in rows if row["parent"] == parent]


def test_the_terminal_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "--tui", "--port", "80", str(tmp_path)]) == 2
    assert "--tui is for the terminal" in capsys.readouterr().err


def test_without_textual_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("callscope.viewer.terminal")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual", None)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(UsageError, match=r"needs the package textual.*: pip install 'callscope\[tui\]'"):
        run_in_terminal(None)  # type: ignore[arg-type]
