"""What is looked at as text: modules, captured stacks, the crash, the trace itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import ScrollableContainer
from textual.widgets import Static

from callscope.reports import info, modules
from callscope.reports.text import Style, printable, seconds
from callscope.viewer.answers import Answers
from callscope.viewer.terminal.cells import Pane

Lines = Callable[[Answers, Style], Iterator[str]]


class Page(Pane):
    """Lines of text, made when they are first seen, and anew for another width."""

    def __init__(self, lines: Lines, id: str) -> None:
        super().__init__(id=id)
        self._lines = lines
        self._width = 0

    def compose(self) -> ComposeResult:
        """One text."""
        with ScrollableContainer():
            yield Static("...", markup=False)

    def on_resize(self) -> None:
        """Show what fits."""
        if self.size.width and self.size.width != self._width:
            self._width = self.size.width
            self._show(Style(width=max(self.size.width - 2, 20)))

    @work(exclusive=True)
    async def _show(self, style: Style) -> None:
        lines = await self.ask(lambda: list(self._lines(self.answers, style)))
        if lines is not None:
            self.query_one(Static).update(Text("\n".join(map(printable, lines))))


def modules_lines(answers: Answers, style: Style) -> Iterator[str]:
    """`callscope modules`."""
    return modules.text(answers.modules(), style)


def trace_lines(answers: Answers, style: Style) -> Iterator[str]:
    """`callscope info`."""
    return info.text(answers.summary()["info"], style)


def crash_lines(answers: Answers, style: Style) -> Iterator[str]:
    """`callscope crash`."""
    crash = answers.crash()
    yield from ["Nothing crashed"] if crash is None else crash["text"]


def stacks_lines(answers: Answers, style: Style) -> Iterator[str]:
    """`callscope stacks`: equal stacks together."""
    found = answers.snapshots()
    if not found["groups"]:
        yield "No call stacks were captured: record with --stacks-at, --stacks-every or --stacks-on"
        return
    yield f"{len(found['groups']):,} of {found['count']:,} different stacks"
    for group in found["groups"]:
        yield ""
        yield f"{group['count']:,} x from {seconds(group['first_ns'])} to {seconds(group['last_ns'])}: " + ", ".join(
            group["causes"]
        )
        for number, frame in enumerate(group["frames"]):
            for inlined in frame.get("inlined") or []:
                yield f"      {inlined['function']} ({inlined['file']}:{inlined['line']}) inlined"
            place = f" ({frame['file']}:{frame['line']})" if frame.get("file") else ""
            module = f" in {frame['module']}" if frame.get("module") else ""
            yield f"  #{number:<3} {frame.get('function') or frame.get('address')}{place}{module}"
        if group.get("ends"):
            yield f"      {group['ends']}"
