"""The Parquet files of what was captured of calls: their arguments and results, as the agent wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from callscope import format as records
from callscope.calls.kernel import Captured

_MOST_LAYOUT_BYTES = 1 << 28
KINDS = {records.EXTENDED_ARGUMENTS: "arguments", records.EXTENDED_RESULT: "results"}
_COLUMNS: dict[str, Any] = {"call_id": pa.int64(), "data": pa.binary()}
SCHEMA = pa.schema(list(_COLUMNS.items()))


class CapturesWriter:
    """Writes those of one thread; a context manager. A file begins with its first row."""

    def __init__(self, directory: Path, thread: int, first_call: int) -> None:
        self._directory, self._thread, self._first = directory, thread, first_call
        self._files: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> CapturesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, captured: Captured) -> None:
        """Write what one chunk holds, in order of call."""
        for kind, name in KINDS.items():
            rows = captured.rows[captured.rows["kind"] == kind]
            if not len(rows):
                continue
            rows = rows[np.argsort(rows["call"], kind="stable")]
            data = _joined(captured.data, rows["offset"].astype(np.int64), rows["bytes"].astype(np.int64))
            ends = np.concatenate([[0], np.cumsum(rows["bytes"], dtype=np.int64)]).astype(np.int32)
            values = pa.Array.from_buffers(
                pa.binary(), len(rows), [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(data)]
            )
            table = pa.table([pa.array(rows["call"].astype(np.int64) + self._first), values], schema=SCHEMA)
            if name not in self._files:
                path = self._directory / f"{name}-{self._thread}-0.parquet"
                self._files[name] = pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1)
            self._files[name].write_table(table, row_group_size=len(rows))


def read_layouts(path: Path, warnings: list[str]) -> dict[str, str]:
    """By function index the layout of what was captured, as JSON; nothing, and a warning, when the file is damaged."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MOST_LAYOUT_BYTES))
        return {str(index): json.dumps(layout) for index, layout in data.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        warnings.append(f"{path.name} is damaged: arguments are not shown")
        return {}


def _joined(data: NDArray[np.uint8], offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> bytes:
    """The pieces of `data` at `offsets` one after the other."""
    view = data.tobytes()
    return b"".join(view[offset : offset + size] for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True))
