"""Two traces of instructions side by side: the first place where they part. Text and JSON forms may be compared."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final

from callscope.errors import TraceError

AROUND: Final = 3
"""Instructions shown before the parting, and of each trace from it on."""
_LINE = re.compile(r"(?P<code>.+?)> (?P<offset>\d+) (?P<name>[A-Z_0-9+<>]+)(?: \((?P<operand>.*?)\))?(?: ; .*)?")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Parting:
    """Where two traces part. count: instructions before it, alike. before: the last of these; first, second: what each
    trace goes on with, nothing at its end.
    """

    count: int
    before: list[str]
    first: list[str]
    second: list[str]


def first_difference(first: Path, second: Path) -> Parting | int:
    """The parting, or how many instructions there are when the traces are the same. Raises TraceError."""
    before: deque[str] = deque(maxlen=AROUND)
    count = 0
    mine, yours = instructions(first), instructions(second)
    for one, two in zip_longest(mine, yours):
        if one != two:
            rest = [[start, *islice(more, AROUND - 1)] if start else [] for start, more in ((one, mine), (two, yours))]
            return Parting(count, list(before), *rest)
        before.append(one)
        count += 1
    return count


def instructions(path: Path) -> Iterator[str]:
    """The instructions of a trace in the text form, without addresses and values. Raises TraceError for other files."""
    number = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(_LONGEST):
                number += 1
                text = line.rstrip("\n")
                if text.startswith("{"):
                    text = _from_json(text)
                elif text.startswith("# thread ") or not text:
                    continue
                match = _LINE.fullmatch(text)
                if match is None:
                    raise TraceError(
                        f"{path} is no trace of instructions: line {number} is neither text nor JSON of one"
                    )
                operand = "" if match["operand"] is None else f" ({_ADDRESS.sub('0x', match['operand'])})"
                yield f"{match['code']}> {match['offset']} {match['name']}{operand}"
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}; name a trace") from None


def _from_json(text: str) -> str:
    """The text form of a JSON line; empty when it is none."""
    try:
        row: dict[str, Any] = json.loads(text)
        operand = row["meaning"] if row.get("meaning") is not None else row["operand"]
        return f"{row['code']}> {row['offset']} {row['name']}" + ("" if operand is None else f" ({operand})")
    except (ValueError, KeyError, RecursionError):
        return ""


def as_json(found: Parting | int) -> dict[str, Any]:
    """For programs."""
    if isinstance(found, int):
        return {"instructions": found, "same": True}
    return {"instructions": found.count, "same": False, "before": found.before, "first": found.first,
            "second": found.second}  # fmt: skip


def text(found: Parting | int, first: Path, second: Path) -> Iterator[str]:
    """For people, in the form of a diff."""
    yield f"- {first}"
    yield f"+ {second}"
    if isinstance(found, int):
        yield f"the same {found:,} instructions in the same order"
        return
    yield f"they part after {found.count:,} instructions"
    yield from (f"  {line}" for line in found.before)
    yield from (f"- {line}" for line in found.first or ["(ends)"])
    yield from (f"+ {line}" for line in found.second or ["(ends)"])
