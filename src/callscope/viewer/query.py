"""Addresses of the data: what `/api/NAME?...` asks for, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from callscope.reports.functions import ORDERS
from callscope.viewer.answers import Answers
from callscope.viewer.timeline import MOST_LANES, MOST_PIXELS, Window

LONGEST_TEXT: Final = 4096
MOST_ROWS: Final = 1000
_LATEST = 1 << 62

Query = Mapping[str, str]


class QueryError(Exception):
    """The parameters make no sense; the message says which."""


class MissingError(Exception):
    """What was asked for does not exist."""


def number(query: Query, name: str, default: int | None = None, low: int = 0, high: int = _LATEST) -> int:
    """A whole number. Raises QueryError for what is none, or out of range."""
    text = query.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "") if len(text or "") <= 20 else high + 1
    except ValueError:
        value = high + 1
    if not low <= value <= high:
        raise QueryError(f"{name} must be a whole number from {low} to {high}")
    return value


def text(query: Query, name: str) -> str:
    """A text, '' when it is missing. Raises QueryError when it is too long."""
    value = query.get(name, "")
    if len(value) > LONGEST_TEXT:
        raise QueryError(f"{name} is too long")
    return value


def choice(query: Query, name: str, choices: tuple[str, ...]) -> str:
    """One of some words, the first when it is missing. Raises QueryError."""
    value = query.get(name, choices[0])
    if value not in choices:
        raise QueryError(f"{name} must be one of {', '.join(choices)}")
    return value


def _timeline(answers: Answers, query: Query) -> Any:
    begin, end = number(query, "from"), number(query, "to")
    if begin >= end:
        raise QueryError("from must be before to")
    window = Window(
        begin,
        end,
        number(query, "pixels", 1000, 1, MOST_PIXELS),
        number(query, "lane", 0, 0, 1 << 31),
        number(query, "lanes", 64, 1, MOST_LANES),
    )
    return answers.timeline(number(query, "thread", high=1 << 31), window)


def _functions(answers: Answers, query: Query) -> Any:
    return answers.functions(
        text(query, "search"),
        choice(query, "sort", ORDERS),
        choice(query, "reverse", ("0", "1")) == "1",
        number(query, "offset", 0),
        number(query, "limit", 100, 1, MOST_ROWS),
    )


def _flame(answers: Answers, query: Query) -> Any:
    chosen = {name: number(query, name, high=(1 << 31) - 1) for name in ("root", "thread") if name in query}
    return answers.flame(**chosen)


def _function(answers: Answers, query: Query) -> Any:
    return _known(answers.function(number(query, "id", high=(1 << 31) - 1)), "function")


def _call(answers: Answers, query: Query) -> Any:
    return _known(answers.call(number(query, "id")), "call")


def _known(answer: Any, what: str) -> Any:
    if answer is None:
        raise MissingError(f"the trace has no such {what}")
    return answer


ROUTES: Final[Mapping[str, Callable[[Answers, Query], Any]]] = {
    "summary": lambda answers, _: answers.summary(),
    "timeline": _timeline,
    "flame": _flame,
    "functions": _functions,
    "function": _function,
    "sites": lambda answers, query: answers.sites(number(query, "id", high=(1 << 31) - 1)),
    "longest": lambda answers, query: answers.longest_calls(number(query, "id", high=(1 << 31) - 1)),
    "call": _call,
    "source": lambda answers, query: answers.source(text(query, "file"), number(query, "line", 1, 0, 1 << 31)),
    "modules": lambda answers, _: answers.modules(),
    "snapshots": lambda answers, _: answers.snapshots(),
    "crash": lambda answers, _: answers.crash(),
}
"""What can be asked for, by name. Each raises QueryError, MissingError or TraceError."""
