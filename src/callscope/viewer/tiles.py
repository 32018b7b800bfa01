"""The viewer's index of a long thread: what to draw when its calls are too many to look at.

For a thread, with a power `base` of four nanoseconds:

- `calls-B`: the calls that last 4^B to 4^(B+1) ns, for every B from `base` on, in order of their start (rows.CALL).
  Of any window these are at most one every 4^B ns for each depth.
- `tiles-B`: for every stretch of 4^B ns and depth what began there and is shorter than 4^B ns (TILE), in order of
  time. A tile may be there twice, its parts to be added up.

So a window in which a pixel is 4^B ns is drawn from the calls of B and longer ones, and the tiles of B. Windows finer
than `base` hold few calls, which are read from the calls table itself. The files are derived, lie in `calls/view/`, and
are made again when missing. Memory does not grow with the number of calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from callscope.errors import TraceError
from callscope.viewer.rows import RowGroup, Rows

VERSION: Final = 2
META: Final = "meta.json"
SHORT_THREAD: Final = 300_000
"""Threads of so many calls need no index: all of them are looked at."""
CALLS_A_TILE: Final = 16
"""How many calls begin in a tile of the finest level, depths together, about."""
BANDS: Final = 32
"""4^32 ns is more than a signed 64-bit number."""
COARSEST: Final = 20
"""The last level of tiles: 4^20 ns are 18 minutes."""

TILE: Final = np.dtype([("tile", "<i8"), ("longest", "<u8"), ("busy", "<f4"), ("depth", "<i4"), ("calls", "<u4")])
"""tile: number of the stretch; longest: the longest call's duration << 32 | function_id; busy: all durations, ns."""
_GRID = 8
"""Dense tables may have so many cells for each call."""

Progress = Callable[[int, int], None]


def band_of(durations: NDArray[np.int64]) -> NDArray[np.int64]:
    """The B of 4^B <= duration < 4^(B+1); 0 for durations below 4."""
    exponents = np.frexp(np.maximum(durations, 1).astype(np.float64))[1] - 1
    bands = exponents.astype(np.int64) >> 1
    too_far = durations < np.left_shift(np.int64(1), 2 * bands)  # a float has 53 bits: it may have been rounded up
    found: NDArray[np.int64] = np.maximum(bands - too_far, 0)
    return found


def base_level(groups: list[RowGroup]) -> int:
    """The finest level worth having: tiles of the typical row group hold CALLS_A_TILE calls."""
    spacing = float(np.median([(group.end - group.begin + 1) / max(group.rows, 1) for group in groups]))
    return min(max(int(np.ceil(np.log2(max(spacing, 1e-3) * CALLS_A_TILE) / 2)), 1), COARSEST)


def ensure_tiles(rows: Rows, directory: Path, progress: Progress | None = None) -> Path:
    """The directory of the index, built if it is missing. `progress` is told of calls done and in all.

    Raises TraceError when it cannot be written.
    """
    target = directory / "view"
    if _is_fresh(target):
        return target
    scratch = directory / "view.tmp"
    total, done = sum(rows.count(thread) for thread in rows.groups), 0
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700, parents=True)
        for thread, groups in rows.groups.items():
            if rows.count(thread) <= SHORT_THREAD:
                continue
            with _Writer(scratch / str(thread), base_level(groups)) as writer:
                for calls in rows.stream(thread):
                    writer.add(calls)
                    done += len(calls)
                    if progress is not None:
                        progress(done, total)
        (scratch / META).write_text(json.dumps({"version": VERSION}))
        shutil.rmtree(target, ignore_errors=True)
        scratch.replace(target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise TraceError(f"cannot write {target} ({error.strerror}): free some space, or copy the trace") from error
    return target


def _is_fresh(target: Path) -> bool:
    try:
        meta = json.loads((target / META).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(meta, dict) and meta.get("version") == VERSION


class _Writer:
    """Writes one thread's index; a context manager."""

    def __init__(self, directory: Path, base: int) -> None:
        self._directory, self._base = directory, base
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        self._deepest = 0
        directory.mkdir(mode=0o700)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        (self._directory / META).write_text(json.dumps({"base": self._base, "deepest": self._deepest}))

    def add(self, calls: NDArray[np.void]) -> None:
        """Write the next calls of the thread."""
        self._deepest = max(self._deepest, int(calls["depth"].max(initial=0)))
        bands = band_of(calls["duration"])
        for band in range(self._base, BANDS):
            chosen = calls[bands == band]
            if len(chosen):
                self._write(f"calls-{band}", chosen)
        tiles = np.empty(0, TILE)
        for level in range(self._base, COARSEST + 1):
            of_band = calls[bands < level] if level == self._base else calls[bands == level - 1]
            tiles = _added(_raised(tiles), _tiles_of(of_band, level))
            if len(tiles):
                self._write(f"tiles-{level}", tiles)

    def _write(self, name: str, values: NDArray[np.void]) -> None:
        if name not in self._files:
            descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._files[name] = self._stack.enter_context(os.fdopen(descriptor, "wb"))
        self._files[name].write(values.tobytes())


def longest_key(durations: NDArray[np.int64], functions: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Numbers whose largest is that of the longest call, and names its function in its low half."""
    shortened = np.clip(durations, 0, 0xFFFFFFFF).astype(np.uint64) << np.uint64(32)
    return shortened | functions.astype(np.uint32).astype(np.uint64)


def _tiles_of(calls: NDArray[np.void], level: int) -> NDArray[np.void]:
    """A tile of its own for every call."""
    tiles = np.empty(len(calls), TILE)
    tiles["tile"] = calls["start"] >> (2 * level)
    tiles["longest"] = longest_key(calls["duration"], calls["function"])
    tiles["busy"] = calls["duration"]
    tiles["depth"] = calls["depth"]
    tiles["calls"] = 1
    return tiles


def _raised(tiles: NDArray[np.void]) -> NDArray[np.void]:
    """Tiles of the next level, not yet added up."""
    raised = tiles.copy()
    raised["tile"] >>= 2
    return raised


def _added(one: NDArray[np.void], other: NDArray[np.void]) -> NDArray[np.void]:
    """Both, with one entry for every tile and depth, in order of tiles."""
    parts = np.concatenate([one, other])
    if not len(parts):
        return parts
    first, depths = int(parts["tile"].min()), int(parts["depth"].max()) + 1
    cells = (int(parts["tile"].max()) - first + 1) * depths
    keys = (parts["tile"] - first) * depths + parts["depth"]
    places = None
    if cells > _GRID * len(parts) + 1024:  # a sparse table
        places, keys = np.unique(keys, return_inverse=True)
        cells = len(places)
    counts, busy, longest = summed(keys, cells, parts["calls"], parts["busy"], parts["longest"])
    filled = np.flatnonzero(counts)
    found = np.empty(len(filled), TILE)
    places = filled if places is None else places[filled]
    found["tile"], found["depth"] = places // depths + first, places % depths
    found["calls"], found["busy"], found["longest"] = counts[filled], busy[filled], longest[filled]
    return found


def summed(
    keys: NDArray[np.int64], cells: int, calls: NDArray[Any], busy: NDArray[Any], longest: NDArray[np.uint64]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint64]]:
    """Calls, busy nanoseconds, and the largest `longest`, of each of `cells` cells; `keys` are theirs."""
    counts = np.bincount(keys, calls, cells)
    total = np.bincount(keys, busy, cells)
    largest = np.zeros(cells, np.uint64)
    np.maximum.at(largest, keys, np.ascontiguousarray(longest))
    return counts, total, largest
