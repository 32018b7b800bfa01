"""What a window of a thread's timeline shows, at the detail that its pixels can.

Calls at least a pixel long are answered one by one; shorter ones are added up by pixel and depth.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from callscope.viewer.rows import CALL, Rows, damaged
from callscope.viewer.tiles import BANDS, COARSEST, META, TILE, longest_key, summed

MOST_PIXELS: Final = 8192
MOST_LANES: Final = 256
MOST_CELLS: Final = 1 << 17
"""Cells of a window's density; with more, pixels are taken together."""
MOST_CALLS: Final = 20_000
"""Calls answered one by one: the longest ones."""
MOST_ROWS: Final = 1 << 20
"""Rows of the calls table read for one window; where it has more, tiles must do."""


@dataclass(frozen=True)
class Window:
    """A stretch of time, `begin` to `end` ns, drawn so many pixels wide; of the depths from `lane` on, `lanes`."""

    begin: int
    end: int
    pixels: int
    lane: int = 0
    lanes: int = 64

    @property
    def pixel(self) -> int:
        """Nanoseconds of a pixel, at least one."""
        pixels = max(min(self.pixels, MOST_PIXELS, MOST_CELLS // max(self.lanes, 1)), 1)
        return max(-(-(self.end - self.begin) // pixels), 1)


@dataclass(frozen=True)
class View:
    """The answer. calls: CALL, in order of start. bins: by cells that have any, see `_density`. bin_ns: their width.

    finest: False where shorter calls are there that only a longer look would show.
    """

    calls: NDArray[np.void]
    bins: dict[str, NDArray[Any]]
    bin_ns: int
    finest: bool


class Timeline:
    """Answers windows of all threads; `index`: the directory that ensure_tiles made."""

    def __init__(self, rows: Rows, index: Path) -> None:
        self._rows = rows
        self._threads = {thread: _open(rows, thread, index / str(thread)) for thread in rows.groups}

    def lanes(self, thread: int) -> int:
        """How deep a thread's calls are nested; 0 for threads without calls."""
        found = self._threads.get(thread)
        return 0 if found is None else found.lanes

    def view(self, thread: int, window: Window) -> View:
        """A window of a thread; empty for threads without calls. Raises TraceError when a file is damaged."""
        found = self._threads.get(thread)
        if found is None:
            return _view(window, [np.empty(0, CALL)], np.empty(0, TILE), 0, window.pixel, True)
        return found.view(window)


def _open(rows: Rows, thread: int, directory: Path) -> _Short | _Long:
    return _Long(rows, thread, directory) if directory.is_dir() else _Short(rows, thread)


class _Short:
    """A thread whose calls are all looked at."""

    def __init__(self, rows: Rows, thread: int) -> None:
        self._rows, self._thread = rows, thread
        self.lanes = max((int(calls["depth"].max(initial=-1)) for calls in rows.stream(thread)), default=-1) + 1

    def view(self, window: Window) -> View:
        parts = [self._rows.all(group) for group in self._rows.groups[self._thread] if group.begin < window.end]
        return _view(window, parts, np.empty(0, TILE), 0, window.pixel, True)


class _Long:
    """A thread with an index."""

    def __init__(self, rows: Rows, thread: int, directory: Path) -> None:
        self._rows, self._groups = rows, rows.groups[thread]
        try:
            meta = json.loads((directory / META).read_text())
            self._base, self.lanes = int(meta["base"]), int(meta["deepest"]) + 1
            self._calls = {band: _mapped(directory / f"calls-{band}", CALL) for band in range(self._base, BANDS)}
            self._tiles = {
                level: _mapped(directory / f"tiles-{level}", TILE) for level in range(self._base, COARSEST + 1)
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(directory / META, error) from error

    def view(self, window: Window) -> View:
        level = min(max((window.pixel.bit_length() - 1) // 2, self._base), COARSEST)
        if window.pixel < 1 << 2 * self._base:
            short = self._read(window)
            if short is not None:
                parts = [short, *self._long(window, self._base)]
                return _view(window, parts, np.empty(0, TILE), 0, window.pixel, True)
        tiles = self._tiles[level]
        first = bisect_left(tiles["tile"], window.begin >> 2 * level)
        last = bisect_left(tiles["tile"], -(-window.end >> 2 * level))
        width = max(window.pixel, 1 << 2 * level)
        return _view(window, self._long(window, level), tiles[first:last], level, width, False)

    def _long(self, window: Window, level: int) -> list[NDArray[np.void]]:
        """The calls of 4^level ns or more that are open in the window, and some others."""
        found = []
        for band in range(level, BANDS):
            calls = self._calls[band]
            if len(calls):
                first = bisect_left(calls["start"], window.begin - (1 << 2 * band + 2))
                found.append(calls[first : bisect_left(calls["start"], window.end)])
        return found

    def _read(self, window: Window) -> NDArray[np.void] | None:
        """The calls shorter than 4^base ns in the window, and some before it; None when that takes too long."""
        limit = 1 << 2 * self._base
        begin = window.begin - limit
        groups = [group for group in self._groups if group.begin < window.end and group.end >= begin]
        if sum(group.rows for group in groups) > MOST_ROWS:
            return None
        if len(groups) == 1:
            return self._rows.between(groups[0], begin, window.end, limit)
        with ThreadPoolExecutor(max(len(groups), 1)) as pool:  # decoding leaves Python to others
            parts = list(pool.map(lambda group: self._rows.between(group, begin, window.end, limit), groups))
        return np.concatenate(parts) if parts else np.empty(0, CALL)


def _mapped(path: Path, kind: np.dtype[np.void]) -> NDArray[np.void]:
    """The records of a file; none where there is no file."""
    if not path.exists() or path.stat().st_size < kind.itemsize:
        return np.empty(0, kind)
    return np.memmap(path, kind, "r", shape=(path.stat().st_size // kind.itemsize,))


def _view(
    window: Window, parts: list[NDArray[np.void]], tiles: NDArray[np.void], level: int, width: int, finest: bool
) -> View:
    """Calls that a pixel can show, the longest first if there are too many, and the density of all others."""
    lanes = range(window.lane, window.lane + min(window.lanes, MOST_LANES))
    chosen = [calls[_open_in(calls, window, lanes)] for calls in parts]
    calls = np.concatenate(chosen) if chosen else np.empty(0, CALL)
    shown = calls["duration"] >= window.pixel
    if np.count_nonzero(shown) > MOST_CALLS:
        shown[np.argsort(calls["duration"])[:-MOST_CALLS]] = False
    rest = calls[~shown]
    tiles = tiles[(tiles["depth"] >= lanes.start) & (tiles["depth"] < lanes.stop)]
    bins = _density(window, rest, tiles, level, width, lanes)
    calls = calls[shown]
    return View(calls[np.argsort(calls["start"], kind="stable")], bins, width, finest)


def _open_in(calls: NDArray[np.void], window: Window, lanes: range) -> NDArray[np.bool_]:
    depth, start = calls["depth"], calls["start"]
    inside = (depth >= lanes.start) & (depth < lanes.stop) & (start < window.end)
    found: NDArray[np.bool_] = inside & (start + np.maximum(calls["duration"], 1) > window.begin)
    return found


def _density(
    window: Window, calls: NDArray[np.void], tiles: NDArray[np.void], level: int, width: int, lanes: range
) -> dict[str, NDArray[Any]]:
    """bin (from the window's begin), depth, calls, busy (0 to 255), function (the longest call's) of every cell."""
    across = -(-(window.end - window.begin) // width)
    starts = np.concatenate([calls["start"], tiles["tile"] << (2 * level)])
    columns = np.clip((starts - window.begin) // width, 0, max(across - 1, 0))
    depths = np.concatenate([calls["depth"], tiles["depth"]]).astype(np.int64)
    keys = columns * len(lanes) + (depths - lanes.start)
    ones = np.ones(len(calls), np.uint32)
    counts, busy, longest = summed(
        keys,
        max(across, 1) * len(lanes),
        np.concatenate([ones, tiles["calls"]]),
        np.concatenate([calls["duration"].astype(np.float32), tiles["busy"]]),
        np.concatenate([longest_key(calls["duration"], calls["function"]), tiles["longest"]]),
    )
    filled = np.flatnonzero(counts)
    return {
        "bin": filled // len(lanes),
        "depth": filled % len(lanes) + lanes.start,
        "calls": counts[filled].astype(np.int64),
        "busy": np.clip(busy[filled] * 255 / width, 1, 255).astype(np.int64),
        "function": (longest[filled] & np.uint64(0xFFFFFFFF)).astype(np.uint32).astype(np.int32),
    }
