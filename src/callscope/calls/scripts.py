"""Functions of interpreters: each has one id in a trace, however many processes told of it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.trace.journal import ScriptFunction

_MOST = records.LAST_FUNCTION - records.SCRIPT_FIRST + 1
UNKNOWN = "[unknown]"
"""stands for the module of a function of which nobody says where it is from"""


def script_ids(functions: list[ScriptFunction]) -> NDArray[np.uint32]:
    """By id - SCRIPT_FIRST, the id that stands for a function: that of the first of its kind, name, file and line.

    uint32, shape (ids that may occur,).
    """
    places = [function.function - records.SCRIPT_FIRST for function in functions]
    ids = np.arange(max((place for place in places if 0 <= place < _MOST), default=-1) + 1, dtype=np.uint32)
    ids += np.uint32(records.SCRIPT_FIRST)
    first: dict[tuple[int, str, str, int], int] = {}
    for place, function in zip(places, functions, strict=True):
        if 0 <= place < len(ids):
            key = (function.script_kind, function.name, function.file, function.line)
            ids[place] = first.setdefault(key, function.function)
    return ids


def script_rows(functions: list[ScriptFunction], called: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Rows of the `functions` table for those ids of `called` that are an interpreter's."""
    known = {function.function: function for function in reversed(functions)}
    wanted = called[(called >= records.SCRIPT_FIRST) & (called <= records.LAST_FUNCTION)].tolist()
    return [_row(number, known.get(number)) for number in wanted]


def _row(number: int, function: ScriptFunction | None) -> dict[str, Any]:
    module, file = (function.module, function.file) if function is not None else ("", "")
    return {
        "function_id": number,
        "module": module or PurePath(file).name or UNKNOWN,
        "path": file,
        "name": function.name if function is not None else f"{number:#x}",
        "address": function.address if function is not None else 0,
        "size": 0,
        "file": file or None,
        "line": function.line if function is not None and function.line else None,
        "owner": number,
        "traced": True,
        "captures": None,
    }
