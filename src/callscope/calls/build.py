"""Builds the calls table of a trace: docs/calls-table.md says what stands in it.

Each thread is gone through three times: to learn which tail jumps leave what is traced and which stacks are resumed; to
count and to build the table of paths; to write the rows. Memory does not grow with the number of calls.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from callscope import format as records
from callscope.calls import kernel
from callscope.calls.captures import CapturesWriter
from callscope.calls.kernel import Captured, PassInput, PassResult, Paths, rebuild_pass
from callscope.calls.scripts import script_ids
from callscope.calls.tables import CallsWriter, write_tables
from callscope.calls.targets import Targets
from callscope.errors import TraceError
from callscope.trace.open import Trace
from callscope.trace.processes import ends

TABLE_VERSION = 5
DIRECTORY = "calls"
META = "meta.json"
WORKERS = 2
"""threads of the trace that are rebuilt at a time"""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CallsTable:
    """A built calls table: its directory, and the contents of its meta.json."""

    path: Path
    meta: dict[str, Any]


@dataclass
class ThreadCalls:
    """One thread's way through the passes. `first_call`: its first call's id."""

    number: int
    chunks: Any
    given: PassInput
    result: PassResult | None = None
    first_call: int = 0

    @property
    def counted(self) -> PassResult:
        """The result of the last pass."""
        if self.result is None:
            raise TraceError("calls were asked for before they were counted")
        return self.result


def build_calls(trace: Trace, progress: Progress | None = None, force: bool = False) -> CallsTable:
    """The calls table of a trace, built when it is missing, stale, or `force` is given.

    `progress` is told of bytes of events done and in all. Raises TraceError when it cannot be written, NativeError.
    """
    target = trace.path / DIRECTORY
    wanted = {"size": trace.events.size, "mtime_ns": trace.events.mtime_ns, "chunks": len(trace.events.chunks)}
    if not force and (meta := _fresh(target, wanted)) is not None:
        return CallsTable(target, meta)
    scratch = trace.path / (DIRECTORY + ".tmp")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        meta = _build(trace, scratch, progress) | {"version": TABLE_VERSION, "events": wanted}
        (scratch / META).write_text(json.dumps(meta, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        scratch.replace(target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise TraceError(f"cannot write {target} ({error.strerror}): free some space, or copy the trace") from error
    return CallsTable(target, meta)


def _fresh(target: Path, wanted: dict[str, int]) -> dict[str, Any] | None:
    """The contents of meta.json if the table is of these events and this version."""
    try:
        meta = json.loads((target / META).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(meta, dict) or meta.get("version") != TABLE_VERSION or meta.get("events") != wanted:
        return None
    return meta


class _Steps:
    """Counts bytes of events over all passes."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, max(total, 1), 0

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _build(trace: Trace, target: Path, progress: Progress | None) -> dict[str, Any]:
    threads = thread_inputs(trace)
    steps = _Steps(progress, 3 * int(trace.events.chunks["bytes"].sum()) if len(trace.events.chunks) else 0)
    with trace.events.open() as reader, ThreadPoolExecutor(WORKERS) as pool:

        def go_over(thread: ThreadCalls) -> PassResult:
            results: list[PassResult] = []
            for step in rebuild_pass(reader, thread.chunks, thread.given, results):
                if isinstance(step, int):
                    steps.advance(step)
            return results[0]

        _learn(threads, pool.map(go_over, threads))
        for thread, result in zip(threads, pool.map(go_over, threads), strict=True):
            thread.result = result
        targets = Targets(trace, (thread.counted for thread in threads))
        with Paths() as paths:
            sites: list[tuple[int, np.void]] = []
            first = 0
            for thread in threads:
                result = thread.counted
                thread.first_call = first
                first += result.counts["calls"]
                target_names = targets.name(result)
                is_site = target_names < 0
                thread.given = replace(
                    thread.given,
                    late=result.late,
                    node_names=paths.merge(result.nodes),
                    site_names=(len(sites) - 1 + np.cumsum(is_site)).astype(np.int32),
                    target_names=target_names,
                )
                sites += [(thread.number, site) for site in result.sites[is_site]]
            nodes, outermost = paths.result()

        def write(thread: ThreadCalls) -> None:
            with (
                CallsWriter(target, thread.number, thread.first_call) as writer,
                CapturesWriter(target, thread.number, thread.first_call) as captures,
            ):
                for step in rebuild_pass(reader, thread.chunks, thread.given, []):
                    if isinstance(step, int):
                        steps.advance(step)
                    elif isinstance(step, Captured):
                        captures.write(step)
                    else:
                        writer.write(step)

        list(pool.map(write, threads))
    warnings = trace.warnings
    warnings += _troubles(threads)
    write_tables(trace, target, threads, sites, nodes, outermost, targets.found)
    last = max((thread.counted.counts["last_tsc"] for thread in threads), default=trace.clock.origin)
    return {
        "calls": first,
        "lost_events": trace.events.lost,
        "duration_ns": trace.clock.ns(max(last, trace.end_tsc)),
        "warnings": warnings,
        "muted": [
            {"function_id": function, "at_ns": trace.clock.ns(tsc)} for function, tsc in trace.history.muted().items()
        ],
    }


def thread_inputs(trace: Trace) -> list[ThreadCalls]:
    """The threads that recorded anything, ready for the first pass."""
    images = [(image.functions, image.rows, image.id_base) for image in trace.images]
    tables, kept = kernel.image_tables(images)
    functions = kernel.function_table(images)
    image_of = {image.id_base: index for index, image in enumerate(trace.images)}
    spans: dict[int, Any] = {}
    number = 0
    for process in trace.processes:
        rows = []
        for module in process.modules:
            unload = (1 << 64) - 1 if module.unload_tsc is None else module.unload_tsc
            image = image_of.get(module.id_base, -1) if module.is_traced else -1
            rows.append((module.base, module.span, number, image, module.load_tsc, unload))
            number += 1
        spans[process.number] = kernel.module_spans(rows)
    ended = ends(trace.history, trace.end_tsc)
    chunks = trace.events.chunks
    features = trace.events.features
    scripts = script_ids(trace.history.scripts)
    recorded = kernel.CALLS_RECORDED if features & records.FEATURE_CALLS else 0
    recorded |= kernel.CALLS_ONCE if features & records.FEATURE_CALLS_ONCE else 0
    offs = {process: kernel.off_spans(spans) for process, spans in trace.history.offs.items()}
    found = []
    for thread in trace.threads:
        mine = chunks[chunks["thread"] == thread.number]
        if not len(mine):
            continue
        given = PassInput(
            functions=functions,
            images=tables,
            modules=spans.get(thread.process, kernel.module_spans([])),
            origin_tsc=trace.clock.origin,
            tick_limit=trace.clock.tick_limit,
            tick_scale=trace.clock.scale,
            end_tsc=ended[thread.number],
            no_clock=not trace.has_clock,
            calls=recorded,
            resumed=np.empty(0, np.uint64),
            learning=True,
            kept=kept,
            scripts=scripts,
            offs=offs.get(thread.process, kernel.off_spans([])) if trace.has_clock else kernel.off_spans([]),
        )
        found.append(ThreadCalls(thread.number, mine, given))
    return found


def _learn(threads: list[ThreadCalls], results: Iterable[PassResult]) -> None:
    """Put what the first pass learned into the inputs of the next."""
    for thread, result in zip(threads, results, strict=True):
        out = thread.given.functions.out  # the same for all threads
        out[result.out[result.out < len(out)]] = 1
        thread.given = replace(thread.given, learning=False, resumed=np.sort(result.resumed))


def _troubles(threads: list[ThreadCalls]) -> list[str]:
    """What the kernel met that a user should know, one line each."""

    def total(name: str) -> int:
        return sum(thread.counted.counts[name] for thread in threads)

    found = []
    if count := total("unknown"):
        found.append(f"{count} words of events are damaged and were left out")
    if count := total("too_deep"):
        found.append(f"{count} calls were nested too deeply to be followed")
    if count := total("merged_paths"):
        found.append(f"{count} calls stand under a shortened path: there were too many different paths")
    return found
