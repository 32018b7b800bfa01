"""SQL functions that show what was captured of calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import duckdb

from callscope.reports.text import printable
from callscope.reports.values import Layout, Value, argument_list


def register(connection: duckdb.DuckDBPyConnection, layouts: Mapping[int, str]) -> None:
    """Define call_arguments, call_result and their JSON forms: (function_id, data) -> text, NULL where it is damaged.

    `layouts`: by function id, as JSON.
    """

    @lru_cache(None)
    def layout(function: int) -> Layout | None:
        try:
            return Layout(layouts[function])
        except (KeyError, ValueError):
            return None

    def shown(show: Callable[[Layout, bytes], str | None]) -> Callable[[int, bytes], str | None]:
        def call(function: int, data: bytes) -> str | None:
            known = layout(function)
            return show(known, data) if known is not None else None

        return call

    functions: dict[str, Callable[[Layout, bytes], str | None]] = {
        "call_arguments": lambda known, data: printable(argument_list(known, data)),
        "call_result": lambda known, data: printable(value.text) if (value := known.result(data)) else None,
        "call_arguments_json": lambda known, data: json.dumps([_json(value) for value in known.arguments(data)]),
        "call_result_json": lambda known, data: json.dumps(_json(value)) if (value := known.result(data)) else None,
    }
    for name, function in functions.items():
        connection.create_function(name, shown(function), ["INTEGER", "BLOB"], "VARCHAR")


def _json(value: Value) -> dict[str, Any]:
    named = {"name": value.name} if value.name else {}
    return {**named, "type": value.type, "value": value.value, "text": value.text}
