"""Call stacks that were captured, resolved and grouped: `callscope stacks`."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callscope import format as records
from callscope.native import AGENT_NAME, WINDOWS_AGENT_NAME
from callscope.reports.crash_trampoline import Region, read_region
from callscope.reports.frames import BINARIES, Frame, Resolver
from callscope.trace.open import Trace
from callscope.trace.processes import Module
from callscope.trace.stacks import Snapshot, read_snapshots

_AGENTS = (AGENT_NAME, WINDOWS_AGENT_NAME)
_NAMES = {
    records.STACK_LIMITED: f"deeper than {records.STACK_DEEPEST} frames: the outer ones are missing",
    records.STACK_BROKEN: "it breaks off here: the rest of the stack makes no sense or cannot be read",
}
MOST_TAGS = 16
"""different tags of a group that are listed"""

Place = tuple[str, bytes, int]
"""Module's path and build-id, address in it; for addresses in no module "" and the address."""


@dataclass
class Group:
    """Equal stacks. first_ns, last_ns: since the session's start. tags: the first few different ones."""

    places: tuple[Place, ...]
    frames: list[Frame]
    flags: int
    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    tags: list[int] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)

    def add(self, snapshot: Snapshot, at_ns: int) -> None:
        """One more."""
        self.first_ns = at_ns if not self.count else min(self.first_ns, at_ns)
        self.last_ns = at_ns if not self.count else max(self.last_ns, at_ns)
        self.count += 1
        if snapshot.tag not in self.tags and len(self.tags) < MOST_TAGS:
            self.tags.append(snapshot.tag)
        if snapshot.cause not in self.causes:
            self.causes.append(snapshot.cause)


class _Timeline:
    """Which module lay where in a process, by time."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self._modules = modules
        ends = {module.unload_tsc for module in modules if module.unload_tsc is not None}
        self._times = sorted({module.load_tsc for module in modules} | ends)
        self._known: dict[int, tuple[list[int], list[Module]]] = {}

    def epoch(self, tsc: int) -> int:
        """A number for the time between two changes."""
        return bisect_right(self._times, tsc)

    def module_at(self, epoch: int, address: int) -> Module | None:
        """The module at an address in an epoch."""
        if epoch not in self._known:
            since = self._times[epoch - 1] if epoch else -1
            there = [m for m in self._modules if m.load_tsc <= since and (m.unload_tsc is None or m.unload_tsc > since)]
            spans = [(m.base, m) for m in there] + [(m.region, m) for m in there if m.region]
            spans.sort(key=lambda span: span[0])
            self._known[epoch] = [span[0] for span in spans], [span[1] for span in spans]
        starts, modules = self._known[epoch]
        index = bisect_right(starts, address) - 1
        if index < 0:
            return None
        module = modules[index]
        in_region = module.region <= address < module.region + module.region_bytes
        return module if in_region or module.base <= address < module.base + module.span else None


class Stacks:
    """The stacks of a trace, resolved as they are asked for. directories: where to look for binaries and debug files
    besides where they were.
    """

    def __init__(self, trace: Trace, directories: Sequence[Path] = ()) -> None:
        self._trace = trace
        self._resolver = Resolver(trace.warnings, [*directories, trace.path / BINARIES])
        self._timelines: dict[int, _Timeline] = {}
        self._regions: dict[int, Region | None] = {}
        self._groups: dict[tuple[Place, ...], Group] = {}
        self._by_raw: dict[tuple[int, int, int, bytes], Group] = {}
        self._frames: dict[Place, Frame] = {}

    def each(self) -> Iterator[tuple[Snapshot, Group]]:
        """Every stack with the group it belongs to, which has counted it."""
        for snapshot in read_snapshots(self._trace):
            timeline = self._timeline(snapshot.process)
            entered = snapshot.tag if snapshot.cause == "entry" else 0
            key = (snapshot.process, timeline.epoch(snapshot.tsc), entered, snapshot.raw)
            group = self._by_raw.get(key)
            if group is None:
                group = self._by_raw[key] = self._resolve(snapshot, timeline)
            group.add(snapshot, self._trace.clock.ns(snapshot.tsc))
            yield snapshot, group

    def groups(self) -> list[Group]:
        """All groups, the most frequent first, of equally frequent ones the earliest."""
        for _ in self.each():
            pass
        return sorted(self._groups.values(), key=lambda group: (-group.count, group.first_ns))

    def _timeline(self, number: int) -> _Timeline:
        if number not in self._timelines:
            process = self._trace.history.processes.get(number)
            self._timelines[number] = _Timeline(process.modules if process is not None else [])
        return self._timelines[number]

    def _resolve(self, snapshot: Snapshot, timeline: _Timeline) -> Group:
        epoch = timeline.epoch(snapshot.tsc)
        places: list[Place] = []
        if snapshot.cause == "entry" and (entered := self._entered(snapshot)) is not None:
            owner, rva = entered
            places.append((owner.path, owner.build_id, rva))
            self._frames[places[0]] = self._resolver.named(owner, rva, owner.base + rva)
        for address, exact in snapshot.addresses:
            module = timeline.module_at(epoch, address - (not exact))
            if module is not None and Path(module.path).name in _AGENTS:
                continue
            place: Place = ("", b"", address)
            if module is not None:
                rva = self._rva(module, address, exact)
                place = (module.path, module.build_id, rva)
            places.append(place)
            if place not in self._frames:
                self._frames[place] = (
                    self._resolver.frame(None, address, exact)
                    if module is None
                    else self._resolver.named(module, place[2], address)
                )
        key = tuple(places)
        if key not in self._groups:
            self._groups[key] = Group(key, [self._frames[place] for place in key], snapshot.flags)
        return self._groups[key]

    def _entered(self, snapshot: Snapshot) -> tuple[Module, int] | None:
        """The function at whose entry the stack was captured: its module, and its address there."""
        process = self._trace.history.processes.get(snapshot.process)
        image = next((i for i in self._trace.images if 0 <= snapshot.tag - i.id_base < len(i.functions)), None)
        if process is None or image is None:
            return None
        module = next((m for m in reversed(process.modules) if m.id_base == image.id_base), None)
        return None if module is None else (module, int(image.functions["rva"][snapshot.tag - image.id_base]))

    def _rva(self, module: Module, address: int, exact: bool) -> int:
        """The address in the image that a place, which may be in a trampoline, stands for."""
        if not module.region <= address < module.region + module.region_bytes:
            return address - (not exact) - module.base
        if module.id_base not in self._regions:
            image = next((image for image in self._trace.file.images if image.id_base == module.id_base), None)
            path = None if image is None else (self._trace.path / image.functions).with_suffix(".plan")
            self._regions[module.id_base] = read_region(path) if path is not None else None
        region = self._regions[module.id_base]
        index = -1 if region is None else bisect_right(region.places, address - module.region) - 1
        return int(region.rvas[index]) if region is not None and index >= 0 else address - module.base


def group_json(group: Group) -> dict[str, Any]:
    """A group as JSON has it."""
    return {
        "count": group.count,
        "first_ns": group.first_ns,
        "last_ns": group.last_ns,
        "tags": group.tags,
        "causes": group.causes,
        "ends": ends(group),
        "frames": [frame_json(frame, place) for frame, place in zip(group.frames, group.places, strict=True)],
    }


def snapshot_json(snapshot: Snapshot, group: Group, at_ns: int) -> dict[str, Any]:
    """One stack as JSON has it."""
    return {
        "time_ns": at_ns,
        "pid": snapshot.pid,
        "tid": snapshot.tid,
        "tag": snapshot.tag,
        "cause": snapshot.cause,
        "addresses": [f"{address:#x}" for address, _ in snapshot.addresses],
        "ends": ends(group),
        "frames": [frame_json(frame, place) for frame, place in zip(group.frames, group.places, strict=True)],
    }


def ends(group: Group) -> str | None:
    """Why the stack is not whole, in words; None when it is."""
    return next((text for flag, text in _NAMES.items() if group.flags & flag), None)


def frame_json(frame: Frame, place: Place) -> dict[str, Any]:
    """A frame; inlined: the calls inlined there, the innermost first."""
    return {
        "function": frame.function,
        "module": frame.module,
        "path": place[0] or None,
        "address": f"{place[2]:#x}",
        "file": frame.file,
        "line": frame.line,
        "inlined": [{"function": name, "file": file, "line": line} for name, file, line in frame.inlines],
    }


def folded(groups: Sequence[Group]) -> Iterator[str]:
    """Lines of Brendan Gregg's folded format: names from the outermost, inlined ones too, and the count."""
    counts: Counter[str] = Counter()
    for group in groups:
        names: list[str] = []
        for frame in reversed(group.frames):
            names.append(frame.function or f"{frame.address:#x}")
            names += [name for name, _, _ in reversed(frame.inlines)]
        counts[";".join(name.replace(";", ":").replace("\n", " ") for name in names)] += group.count
    yield from (f"{names} {count}" for names, count in counts.items())
