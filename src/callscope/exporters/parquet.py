"""All calls as one Parquet file: the columns of the view `calls`, for anything that reads Parquet.

Source of the format: https://parquet.apache.org/docs/file-format/; written by DuckDB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from callscope.reports.database import Database, quoted
from callscope.reports.selection import Selection, check_calls, condition

PIECE = 1 << 20


def chunks(database: Database, selection: Selection) -> Iterator[bytes]:
    """The file's bytes, in pieces of a MiB. It is made in the temporary directory first: its index stands at its end.

    Of `selection` thread and process are regarded. Raises TraceError.
    """
    check_calls(database)
    chosen = condition(database, Selection(thread=selection.thread, process=selection.process))
    query = database.calls_query(f"(SELECT * FROM call_rows WHERE {chosen})")
    with tempfile.TemporaryDirectory(prefix="callscope-") as directory:
        path = Path(directory) / "calls.parquet"
        database.rows(f"COPY ({query}) TO {quoted(str(path))} (FORMAT parquet, COMPRESSION zstd)")
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
