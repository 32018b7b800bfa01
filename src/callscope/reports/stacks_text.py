"""Captured call stacks as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from callscope.reports.stacks import Group, ends
from callscope.reports.text import BOLD, Style, printable, seconds
from callscope.trace.clock import TraceClock
from callscope.trace.stacks import Snapshot


def groups_text(groups: Sequence[Group], style: Style) -> Iterator[str]:
    """Every group: how often, when, from where."""
    for index, group in enumerate(groups):
        if index:
            yield ""
        when = f"at {seconds(group.first_ns)} s"
        if group.count > 1:
            when = f"from {seconds(group.first_ns)} s to {seconds(group.last_ns)} s"
        tags = ", ".join(map(str, group.tags))
        yield style.paint(f"{group.count:,} x {when}", BOLD) + f"  {'/'.join(group.causes)}, tag {tags}"
        yield from frames_text(group, style)


def snapshot_text(snapshot: Snapshot, group: Group, clock: TraceClock, style: Style) -> Iterator[str]:
    """One stack."""
    head = f"{seconds(clock.ns(snapshot.tsc))} s"
    yield style.paint(head, BOLD) + f"  thread {snapshot.tid}, {snapshot.cause}, tag {snapshot.tag}"
    yield from frames_text(group, style)
    yield ""


def frames_text(group: Group, style: Style) -> Iterator[str]:
    """A line a frame, and one for each call inlined there, before it."""
    number = 0
    for frame in group.frames:
        for name, file, line in frame.inlines:
            yield printable(f"  #{number:<3} {name} ({file}:{line})") + " inlined"
            number += 1
        name = frame.function or f"{frame.address:#x}"
        source = f" ({frame.file}:{frame.line})" if frame.file else ""
        module = f" in {frame.module}" if frame.module else ""
        yield printable(f"  #{number:<3} {name}{source}{module}")
        number += 1
    reason = ends(group)
    if reason:
        yield style.comment(reason)
