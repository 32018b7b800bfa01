"""How reports put values into text: times, names, counts, colour."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

DURATION_WIDTH: Final = 7
"""Columns that `duration` takes."""

NO_CLOCK: Final = "recorded without a clock: the order of calls, no times"

BOLD, DIM, RED, YELLOW, CYAN = "1", "2", "31", "33", "36"
"""Attributes for `Style.paint`: parameters of SGR, ECMA-48 section 8.3.117."""

_STEPS = ((999_500, 1e3, "us"), (999_500_000, 1e6, "ms"), (9_999_500_000_000, 1e9, "s "))


@dataclass(frozen=True)
class Style:
    """Where text goes: a terminal `width` columns wide or, when that is None, a pipe or file that wants it all."""

    colour: bool = False
    width: int | None = None

    def paint(self, text: str, *attributes: str) -> str:
        """`text` in a colour, when there is colour."""
        return f"\x1b[{';'.join(attributes)}m{text}\x1b[0m" if self.colour and text and attributes else text

    def count(self, number: int) -> str:
        """A whole number: with separators for eyes, plain for programs."""
        return f"{number:,}" if self.width else str(number)

    def comment(self, text: str) -> str:
        """A remark beside the data, in a pipe easy to drop: it starts with #."""
        return self.paint(f"# {text}", DIM)

    def name(self, name: str, room: int) -> str:
        """A function's name as one printable line, in a terminal at most `room` columns of it."""
        name = printable(name)
        return name if self.width is None else shorten(name, max(room, 16))


def duration(ns: int | None) -> str:
    """Nanoseconds as three significant digits and a unit, always 7 columns: '1.23 ms', ' 456 ns', '12.0 s '."""
    if ns is None:
        return "      -"
    if ns < 1000:
        return f"{ns:4d} ns"
    for below, unit, name in _STEPS:
        if ns < below:
            value = ns / unit
            return f"{value:4.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {name}"
    return f"{ns / 3.6e12:4.{1 if ns < 3.5982e14 else 0}f} h "


def duration_colour(ns: int) -> tuple[str, ...]:
    """The attributes that make long durations stand out: none below a millisecond."""
    return (RED,) if ns >= 1_000_000_000 else (YELLOW,) if ns >= 1_000_000 else ()


def seconds(ns: int | None) -> str:
    """A moment since the session's start, in seconds with nanoseconds: '0.001234567'."""
    return "-" if ns is None else f"{ns // 1_000_000_000}.{ns % 1_000_000_000:09d}"


def size(count: int) -> str:
    """Bytes as three significant digits and a unit: '1.5 MB', '340 MB', '12 B'."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{value:.0f} TB"


def cut(text: str, room: int) -> str:
    """The first `room` columns of a text, a tilde standing for the rest."""
    return text if len(text) <= room else f"{text[: max(room - 1, 0)]}~"


def plural(number: int, noun: str) -> str:
    """'1 call', '2 calls', '3 processes', '4 patches'."""
    return f"{number:,} {noun if number == 1 else noun + ('es' if noun.endswith(('s', 'ch')) else 's')}"


def printable(text: str) -> str:
    """`text` with everything that is not printable escaped: a name from a binary must not steer a terminal.

    Control characters, line separators, direction marks and surrogates become '\\x1b', '\\u202e'.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)


@lru_cache(maxsize=65536)
def shorten(name: str, room: int) -> str:
    """A demangled name in at most `room` columns.

    Template arguments go first, then a template's return type, the parameters, and enclosing scopes: what is left at
    last is the function's own name. A tilde stands for what was cut.
    """
    if len(name) <= room:
        return name
    start = _RUST_TYPE.match(name)
    begin = start.end() if start else 0
    folded = name[:begin] + _fold(name[begin:], "<", ">")
    if folded != name:
        folded = _without_result(folded)
    if len(folded) > room:
        folded = _fold(folded, "(", ")")
    if len(folded) <= room:
        return folded
    if "::" in folded:
        return f"~{folded[1 - room :]}"
    half = (room - 1) // 2
    return f"{folded[: room - 1 - half]}~{folded[-half:]}"


def _without_result(name: str) -> str:
    """A function template's name without the type it returns, which only templates' names begin with."""
    head = name[: name.index("(", 1)] if "(" in name[1:] else name
    return name if "operator" in head else name[head.rfind(" ") + 1 :]


def _fold(name: str, opening: str, closing: str) -> str:
    """Replace what stands in outermost brackets by two dots; in operators such as `<<`, `->` and `()` they are none."""
    out: list[str] = []
    depth = inside = 0
    for token in _TOKEN.findall(name):
        if token == closing and depth:
            depth -= 1
            if depth == 0 and inside:
                out.append("..")
        if depth == 0:
            out.append(token)
            inside = 0
        else:
            inside += 1
        depth += token == opening
    return "".join(out) if depth == 0 else name


_RUST_TYPE = re.compile(r"(?:[^!<]*!)?<")
"""Before a type and its trait: `<alloc::vec::Vec<u8> as core::clone::Clone>::clone`, perhaps after a module."""
_TOKEN = re.compile(r"\boperator\s*(?:\(\)|<=>|<<=?|>>=?|<=?|>=?|->\*?)|->|.", re.DOTALL)
