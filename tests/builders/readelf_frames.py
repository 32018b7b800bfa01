"""Compares our call frame rows with what binutils' readelf prints, rule by rule."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from callscope.binary import cfi

_REGISTERS = ["rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16))]
_SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15", "ra")
_FDE = re.compile(r"^[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ FDE cie=[0-9a-f]+ pc=([0-9a-f]+)\.\.([0-9a-f]+)")


def rows_of_readelf(path: str | Path) -> Iterator[tuple[int, int, int, dict[str, str]]]:
    """(start, end, address, {column: rule}) of every row; "CFA" is a column. Bare entries print none."""
    command = ["readelf", "--debug-dump=frames-interp", "-W", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    start = end = 0
    columns: list[str] = []
    for line in process.stdout:
        if found := _FDE.match(line):
            start, end, columns = int(found[1], 16), int(found[2], 16), []
        elif line.startswith("   LOC"):
            columns = line.split()[1:]
        elif " CIE " in line or not line.strip():
            columns = []
        elif columns and start < end:
            address, *rules = re.sub(r" \(\w+\)", "", line).split()
            yield start, end, int(address, 16), dict(zip(columns, rules, strict=True))
    process.wait()


def differences(path: str | Path, table: cfi.FrameTable, base: int) -> tuple[int, list[str]]:
    """(rows compared, what differs): the state at every row of readelf must be ours."""
    wanted = [row for row in rows_of_readelf(path) if row[0] <= row[2] < row[1]]
    rvas = np.array([row[2] - base for row in wanted], np.int64)
    starts = np.array([row[0] - base for row in wanted], np.int64)
    found = table.rows_at(rvas)
    entries = table.entries_at(rvas)
    wrong = []
    for (start, end, address, rules), index, entry in zip(wanted, found.tolist(), entries.tolist(), strict=True):
        fde = table.fdes[entry]
        if entry < 0 or (fde["start"] + base, fde["size"]) != (start, end - start):
            wrong.append(f"{address:#x}: no entry {start:#x}..{end:#x}")
            continue
        ours = _texts(table.rows[index])
        for column in ("CFA", *_SAVED):
            rule = rules.get(column, "u")
            if ours[column] != rule and not (rule in "us" and ours[column] == "s") and not _unknown(rule, ours[column]):
                wrong.append(f"{address:#x} {column}: {ours[column]}, readelf says {rule}")
    assert len(np.unique(starts)) <= len(table.fdes)
    return len(wanted), wrong


def _unknown(rule: str, ours: str) -> bool:
    return ours == "?" and not re.fullmatch(r"c[+-]\d+|s", rule)


def _texts(row: np.void) -> dict[str, str]:
    kind, register = int(row["cfa_kind"]), int(row["cfa_register"])
    if kind in (cfi.CFA_EXPRESSION, cfi.CFA_MEMORY):
        texts = {"CFA": "exp"}
    elif kind == cfi.CFA_UNKNOWN:
        texts = {"CFA": "?"}
    else:
        assert (kind == cfi.CFA_RSP) == (register == 7) and (kind == cfi.CFA_RBP) == (register == 6)
        texts = {"CFA": f"{_REGISTERS[register]}{int(row['cfa_offset']):+d}"}
    for bit, (name, offset) in enumerate(zip(_SAVED, row["saved"].tolist(), strict=True)):
        texts[name] = (
            "exp"
            if int(row["from_rbp"]) >> bit & 1
            else {cfi.SAVED_SAME: "s", cfi.SAVED_UNKNOWN: "?"}.get(offset, f"c{offset:+d}")
        )
    return texts
