"""Holds what a trace shows of arguments and results against what the program logged itself."""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from callscope.globs import without_parameters
from callscope.reports.database import CAPTURED_JOINS, CAPTURED_TEXTS, open_database

_HEX_FLOAT = re.compile(r"-?0x[0-9a-f](?:\.[0-9a-f]+)?p[+-]\d+")
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|\'.\'|-?0x[0-9a-f]+(?:\.[0-9a-f]+)?(?:p[+-]\d+)?|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|.'
)
_QUERY = f"""
SELECT f.name{CAPTURED_TEXTS} FROM call_rows c JOIN functions f USING (function_id) {CAPTURED_JOINS} ORDER BY c.call_id
"""


@dataclass
class Comparison:
    """calls: logged. wrong: those that differ; `details` has some of them. missing: logged or traced only."""

    calls: int = 0
    wrong: int = 0
    missing: int = 0
    details: list[str] = field(default_factory=list)
    by_function: Counter[str] = field(default_factory=Counter)


def compare_arguments(log: Path, trace: Path, functions: tuple[str, ...]) -> Comparison:
    """Every logged call in order with the traced one."""
    with open_database(trace) as database:
        rows = database.rows(_QUERY)
    shown = []
    for row in rows:
        name = without_parameters(row["name"]).rpartition("::")[2].partition("[abi:")[0]
        if name in functions:
            text = f"{name}({row['arguments'] or ''})" + (f" = {row['result']}" if row["result"] is not None else "")
            shown.append(text.replace(", ...)", ")").replace("(...)", "()"))
    logged = log.read_text(errors="backslashreplace").splitlines()
    found = Comparison(calls=len(logged), missing=abs(len(logged) - len(shown)))
    for mine, theirs in zip(shown, logged, strict=False):
        if not same(mine, theirs):
            found.wrong += 1
            found.by_function[theirs.partition("(")[0]] += 1
            if len(found.details) < 5:
                found.details.append(f"trace {mine}\n    truth {theirs}")
    return found


def same(shown: str, logged: str) -> bool:
    """Whether two texts say the same; numbers may be written in another way, but not be others."""
    mine, theirs = _TOKEN.findall(shown), _TOKEN.findall(logged)
    return len(mine) == len(theirs) and all(
        a == b or (_HEX_FLOAT.fullmatch(b) is not None and _is_number(a, b)) for a, b in zip(mine, theirs, strict=True)
    )


def _is_number(shown: str, logged: str) -> bool:
    exact = _fraction(logged)
    try:
        near = Fraction(shown)
    except ValueError:
        return False
    single = Fraction(struct.unpack("<f", struct.pack("<f", float(near)))[0]) if abs(near) < 2**127 else None
    return exact in (near, single, Fraction(float(near)), _rounded(near, 64))


def _fraction(text: str) -> Fraction:
    digits, _, exponent = text.removeprefix("-").removeprefix("0x").partition("p")
    whole, _, rest = digits.partition(".")
    value = Fraction(int(whole + rest, 16), 16 ** len(rest)) * Fraction(2) ** int(exponent)
    return -value if text.startswith("-") else value


def _rounded(value: Fraction, bits: int) -> Fraction:
    """The nearest number with so many bits."""
    if not value:
        return value
    scale = Fraction(2) ** (bits - 1)
    size = abs(value)
    shift = size.numerator.bit_length() - size.denominator.bit_length()
    power = Fraction(2) ** shift
    if size / power < 1:
        power /= 2
    if size / power >= 2:
        power *= 2
    return round(value / power * scale) * power / scale
