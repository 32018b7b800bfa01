"""From an image to its plan: scan, decide, emit, join; on all cores."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope.binary.cfi import FrameTable
from callscope.binary.edges import Edges, merge, scan
from callscope.binary.functions import FunctionTable, find_functions, likely_starts
from callscope.binary.image import Image
from callscope.binary.open import open_image, unwinding
from callscope.binary.pe_unwind import UnwindTable
from callscope.errors import PlanError
from callscope.patching.arguments import add_callers, find_captures
from callscope.patching.barriers import build_text, code_bounds
from callscope.patching.hooks import silence_hooks
from callscope.patching.runs import KINDS, Refusal
from callscope.patching.scope import FUNCTIONS, Scope
from callscope.patching.seh import SehFrames
from callscope.patching.text import Text
from callscope.patching.unwind import EhFrames
from callscope.patching.worker import Part, plan_range

PARALLEL_BYTES = 1 << 20
"""images with less code are planned in one process"""
_PR_SET_PDEATHSIG = 1
_SPLITS = 4
"""ranges a process, so that none waits long for the slowest"""

Progress = Callable[[int, int], None]
_shared: dict[str, Any] = {}


@dataclass
class Plan:
    """A planned image. `functions` and `frames` are what was found; `parts` in address order; `seconds` the planning
    time.
    """

    image: Image
    functions: FunctionTable
    frames: FrameTable
    text: Text
    parts: list[Part]
    seconds: float = 0.0
    refusals: list[Refusal] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def plan_image(
    path: str | Path, jobs: int | None = None, progress: Progress | None = None, scope: Scope = FUNCTIONS
) -> Plan:
    """Plan every function of an image, or what else is in `scope`, with up to `jobs` processes (default: one a core).

    `progress` is called with (bytes done, bytes in all) of two passes over the code. Raises ImageError for a file that
    cannot be planned, PlanError when the plan fails its own checks.
    """
    begin = time.perf_counter()
    image = open_image(path)
    if not image.code_sections:
        raise PlanError(f"{path} holds no code: there is nothing to trace")
    source = unwinding(image)
    frames = source.frames
    functions = find_functions(image, frames=frames)
    low, high = code_bounds(image)
    size = high - low
    if size < PARALLEL_BYTES:
        jobs = 1
    jobs = jobs or len(os.sched_getaffinity(0))
    tell = _Teller(progress, 2 * size)
    _shared.update(image=image, low=low, high=high)
    edges = _scan(functions, jobs, tell)
    starts = _unowned(functions, edges.starts)
    if image.is_pe:
        jumped = edges.branch_targets[~edges.branch_conditional]
        pointed = np.concatenate([image.relocated_code_pointers(), edges.code_references, jumped])
        starts = np.union1d(starts, likely_starts(image, functions, pointed))
    more = find_functions(image, extra_targets=starts, frames=frames)
    if len(more.rva) != len(functions.rva):
        functions = more
        edges = _scan(functions, jobs, tell)
    edges = merge([edges, _scan_gaps(image, functions, low, high)])
    text = build_text(image, source, functions, edges)
    silence_hooks(image, text)
    text.captures = find_captures(image, functions, scope.arguments) if scope.arguments else {}
    if scope.stacks_at:
        text.captures = add_callers(image, functions, scope.stacks_at, text.captures)
    rules = SehFrames(source, text) if isinstance(source, UnwindTable) else EhFrames(frames)
    _shared.update(text=text, frames=rules, scope=scope)
    parts = _run(_plan_task, _ranges(functions, jobs), jobs, tell)
    _shared.clear()
    counts = {kind: sum(part.counts[kind] for part in parts) for kind in KINDS}
    refusals = [refusal for part in parts for refusal in part.refusals]
    return Plan(image, functions, frames, text, parts, time.perf_counter() - begin, refusals, counts)


class _Teller:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def advance(self, amount: int) -> None:
        self._done = min(self._done + amount, self._total)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _scan_task(bounds: tuple[int, int]) -> Edges:
    functions: FunctionTable = _shared["functions"]
    first, last = bounds
    starts = functions.rva[first:last].tolist()
    sizes = functions.size[first:last].tolist()
    return scan(_shared["image"], first, starts, sizes, _shared["low"], _shared["high"])


def _plan_task(bounds: tuple[int, int]) -> Part:
    return plan_range(_shared["text"], _shared["frames"], _shared["scope"], *bounds)


def _scan(functions: FunctionTable, jobs: int, tell: _Teller) -> Edges:
    _shared["functions"] = functions
    return merge(_run(_scan_task, _ranges(functions, jobs), jobs, tell))


def _ranges(functions: FunctionTable, jobs: int) -> list[tuple[int, int]]:
    """Split the functions into ranges of about the same number of code bytes."""
    total = np.cumsum(functions.size.astype(np.int64))
    pieces = 1 if jobs == 1 else jobs * _SPLITS
    cuts = np.searchsorted(total, np.linspace(0, int(total[-1]), pieces + 1)[1:-1]).tolist() if len(total) else []
    bounds = sorted({0, *cuts, len(total)})
    return list(pairwise(bounds))


def _run(
    task: Callable[[tuple[int, int]], Any], ranges: Sequence[tuple[int, int]], jobs: int, tell: _Teller
) -> list[Any]:
    """Run a task over ranges, in forked processes that share what is in `_shared`; the results in order."""
    functions: FunctionTable = _shared["functions"]
    sizes = [int(functions.size[first:last].sum()) for first, last in ranges]
    results = []
    if jobs == 1:
        for bounds, size in zip(ranges, sizes, strict=True):
            results.append(task(bounds))
            tell.advance(size)
        return results
    with multiprocessing.get_context("fork").Pool(jobs, _begin_worker) as pool:
        for size, result in zip(sizes, pool.imap(task, ranges), strict=True):
            results.append(result)
            tell.advance(size)
    return results


def _begin_worker() -> None:
    """What a planning process does first."""
    # The workers only add to what they share: collecting garbage there would copy every page of it.
    gc.disable()
    # Ctrl-C is for the process that planned with them, and is followed by the pool's end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The pool ends its workers so; the command's own handler would keep them.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Without this, workers wait for ever when that process is killed (prctl(2)).
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _unowned(functions: FunctionTable, targets: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Call targets that lie in no known function."""
    starts = functions.rva.astype(np.int64)
    index = np.searchsorted(starts, targets, "right") - 1
    ends = starts + functions.size
    return targets[(index < 0) | (targets >= ends[np.maximum(index, 0)])]


def _scan_gaps(image: Image, functions: FunctionTable, low: int, high: int) -> Edges:
    """Scan the code between functions: hand-written routines without call frame information may jump into their
    neighbours.
    """
    starts = functions.rva.astype(np.int64)
    ends = starts + functions.size
    gap_starts: list[int] = []
    gap_sizes: list[int] = []
    for section in image.code_sections:
        inside = (starts >= section.rva) & (starts < section.rva + section.size)
        first = np.concatenate([[section.rva], ends[inside]])
        last = np.concatenate([starts[inside], [section.rva + section.size]])
        wide = last - first >= 16
        gap_starts += first[wide].tolist()
        gap_sizes += (last - first)[wide].tolist()
    edges = scan(image, 0, gap_starts, gap_sizes, low, high)
    none = np.empty(0, np.int64)
    return Edges(
        edges.branch_sources,
        edges.branch_targets,
        edges.branch_conditional,
        edges.call_targets,
        edges.second_returns,
        edges.code_references,
        none.reshape(-1, 3),
        none.reshape(-1, 2),
        edges.exposed,
        none.astype(np.uint32),
        none,
        none,
        none,
    )
