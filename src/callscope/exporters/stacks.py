"""Captured call stacks as flame graphs: folded stacks, and speedscope's sampled profiles, one a thread.

Sources: Brendan Gregg's flamegraph.pl; src/lib/file-format-spec.ts of https://github.com/jlfwong/speedscope.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from callscope.exporters.speedscope import SCHEMA
from callscope.exporters.walk import full_name
from callscope.reports.selection import Selection
from callscope.reports.stacks import Group, Stacks, folded
from callscope.trace.stacks import Snapshot

Pairs = Iterator[tuple[Snapshot, Group]]


def _chosen(stacks: Stacks, selection: Selection) -> Pairs:
    for snapshot, group in stacks.each():
        if selection.thread in (None, snapshot.tid) and selection.process in (None, snapshot.pid):
            yield snapshot, group


def _folded(pairs: Pairs) -> Iterator[str]:
    """A line a stack: names from the outermost, inlined ones too, and how often it was captured."""
    groups: dict[int, Group] = {}
    counts: Counter[int] = Counter()
    for _, group in pairs:
        groups[id(group)] = group
        counts[id(group)] += 1
    yield from folded([replace(groups[key], count=count) for key, count in counts.items()])


def _speedscope(pairs: Pairs) -> Iterator[str]:
    """One JSON object: a sample for every stack, in the order they were captured."""
    frames: dict[str, int] = {}
    stacks: dict[int, list[int]] = {}
    threads: dict[tuple[int, int], list[list[int]]] = {}
    for snapshot, group in pairs:
        if id(group) not in stacks:
            stacks[id(group)] = [frames.setdefault(json.dumps(f), len(frames)) for f in _frames(group)]
        threads.setdefault((snapshot.pid, snapshot.tid), []).append(stacks[id(group)])
    shared = f'{{"frames": [{", ".join(frames)}]}}'
    yield f'{{"$schema": "{SCHEMA}", "exporter": "callscope", "shared": {shared}, "profiles": ['
    before = ""
    for (pid, tid), samples in threads.items():
        head: dict[str, Any] = {"type": "sampled", "name": f"thread {tid} (process {pid})", "unit": "none"}
        head |= {"startValue": 0, "endValue": len(samples)}
        yield f'{before}{json.dumps(head)[:-1]}, "samples": ['
        yield from (f"{json.dumps(sample)}{',' if n + 1 < len(samples) else ''}" for n, sample in enumerate(samples))
        yield f'], "weights": [{", ".join(["1"] * len(samples))}]}}'
        before = ","
    yield "]}"


def _frames(group: Group) -> Iterator[dict[str, Any]]:
    """speedscope's frames of a stack, the outermost first."""
    for frame in reversed(group.frames):
        places = [(frame.function or f"{frame.address:#x}", frame.file, frame.line)]
        places += [(name, file, line) for name, file, line in reversed(frame.inlines)]
        for name, file, line in places:
            known = {"name": full_name(name, frame.module)} | ({"file": file} if file else {})
            yield known | ({"line": line} if line else {})


STACK_FORMATS: Final[dict[str, Callable[[Pairs], Iterator[str]]]] = {"folded": _folded, "speedscope": _speedscope}


def lines(name: str, stacks: Stacks, selection: Selection) -> Iterator[str]:
    """The lines of a file in the format `name` of STACK_FORMATS."""
    return STACK_FORMATS[name](_chosen(stacks, selection))
