"""A thread's calls as flat arrays, read from the calls table a row group at a time.

Where a trace has no clock, calls lie on an axis of their order: a call begins at its number in the thread and lasts for
itself and its descendants. Everything below speaks of nanoseconds and means calls then.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from callscope.errors import TraceError

CALL: Final = np.dtype([("start", "<i8"), ("duration", "<i8"), ("call", "<i8"), ("function", "<i4"), ("depth", "<i4")])
"""A call: nanoseconds, `call_id`, `function_id`."""
CACHED_ROWS: Final = 6 << 20
"""decoded rows that are kept for the next request: 144 MiB"""

Columns = dict[str, NDArray[Any]]
"""A row group's calls: start, duration, function, depth."""

_FILE = re.compile(r"calls-(\d+)-(\d+)\.parquet")


@dataclass(frozen=True)
class RowGroup:
    """Part of a thread's calls: where it is, its first call's id and number in the thread, when its calls begin."""

    path: Path
    index: int
    first_call: int
    first_number: int
    rows: int
    begin: int
    end: int


class Rows:
    """The calls of all threads of a calls table. May be used by several threads at a time."""

    def __init__(self, calls: Path, has_clock: bool) -> None:
        """Read where calls are. Raises TraceError when a file is damaged."""
        self.has_clock = has_clock
        self.groups: dict[int, list[RowGroup]] = {}
        self._cache: OrderedDict[RowGroup, Columns] = OrderedDict()
        self._metadata: dict[Path, pq.FileMetaData] = {}
        self._lock = Lock()
        files = [(int(m[1]), int(m[2]), path) for path in calls.iterdir() if (m := _FILE.fullmatch(path.name))]
        for thread, _, path in sorted(files):
            self._add_file(thread, path)

    def between(self, group: RowGroup, begin: int, end: int, shorter_than: int) -> NDArray[np.void]:
        """A row group's short calls that began in a stretch of time, as CALL. Raises TraceError for a damaged file."""
        columns = self._columns(group)
        first, last = np.searchsorted(columns["start"], [begin, end])
        chosen = first + np.flatnonzero(columns["duration"][first:last] < shorter_than)
        return _calls(group, columns, chosen)

    def all(self, group: RowGroup) -> NDArray[np.void]:
        """The calls of a row group."""
        return _calls(group, self._columns(group), np.arange(group.rows))

    def _columns(self, group: RowGroup) -> Columns:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        columns = self._decode(group)
        with self._lock:
            self._cache[group] = columns
            while len(self._cache) > 1 and sum(kept.rows for kept in self._cache) > CACHED_ROWS:
                self._cache.popitem(last=False)
        return columns

    def _decode(self, group: RowGroup) -> Columns:
        times = ["start_ns", "duration_ns"] if self.has_clock else ["descendants"]
        try:
            with pq.ParquetFile(group.path, metadata=self._metadata[group.path]) as file:
                # one request is one thread's work: several are answered at a time
                table = file.read_row_group(group.index, columns=[*times, "function_id", "depth"], use_threads=False)
            columns: dict[str, Any] = {name: table.column(name).to_numpy() for name in table.column_names}
        except (pa.ArrowException, OSError, KeyError) as error:
            raise damaged(group.path, error) from error
        if not self.has_clock:
            columns["start_ns"] = np.arange(group.first_number, group.first_number + group.rows)
            columns["duration_ns"] = columns["descendants"] + 1
        found = {"start": "start_ns", "duration": "duration_ns", "function": "function_id", "depth": "depth"}
        return {name: columns[stored] for name, stored in found.items()}

    def stream(self, thread: int) -> Iterator[NDArray[np.void]]:
        """All calls of a thread in order, a row group at a time."""
        for group in self.groups.get(thread, []):
            yield _calls(group, self._decode(group), np.arange(group.rows))

    def first_call(self, thread: int) -> int:
        """The id of a thread's first call; 0 for threads without calls."""
        groups = self.groups.get(thread)
        return groups[0].first_call if groups else 0

    def begin(self, thread: int) -> int | None:
        """When a thread's first call began; None for threads without calls."""
        groups = self.groups.get(thread)
        return groups[0].begin if groups else None

    def count(self, thread: int) -> int:
        """Calls of a thread."""
        return sum(group.rows for group in self.groups.get(thread, []))

    def _add_file(self, thread: int, path: Path) -> None:
        try:
            metadata = self._metadata[path] = pq.read_metadata(path)
            for index in range(metadata.num_row_groups):
                part = metadata.row_group(index)
                columns = {part.column(at).path_in_schema: at for at in range(part.num_columns)}
                first, _ = _limits(part.column(columns["call_id"]))
                number = self.count(thread)
                begin, end = number, number + part.num_rows - 1
                if self.has_clock:
                    begin, end = _limits(part.column(columns["start_ns"]))
                group = RowGroup(path, index, first, number, part.num_rows, begin, end)
                self.groups.setdefault(thread, []).append(group)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> TraceError:
    """What to say of a file that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TraceError(f"{path} cannot be read ({reason}): delete {path.parent} and try again, it is rebuilt")


def _limits(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """A column's least and largest value. Raises ValueError where they are missing."""
    found = column.statistics
    if found is None or not found.has_min_max:
        raise ValueError(f"{column.path_in_schema} has no statistics")
    return int(found.min), int(found.max)  # type: ignore[arg-type]  # there are some


def _calls(group: RowGroup, columns: Columns, chosen: NDArray[np.int64]) -> NDArray[np.void]:
    found = np.empty(len(chosen), CALL)
    for name, values in columns.items():
        found[name] = values[chosen]
    found["call"] = group.first_call + chosen
    return found
