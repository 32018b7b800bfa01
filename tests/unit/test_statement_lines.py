"""Lines of addresses where a line table has several: gdb's choice is the truth; damaged programs do no harm."""

from __future__ import annotations

import ctypes
import random
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callscope.binary.debug_files import open_symbol_file
from callscope.binary.statement_lines import _ROW, StatementLines, _line_rows, _Program
from callscope.binary.symbols import open_symbols
from callscope.errors import ImageError
from tests.builders.compilers import TARGETS, compile_program, have


@pytest.mark.parametrize("flags", [["-O3", "-g"], ["-O2", "-gdwarf-4"]])
def test_lines_are_those_of_gdb(flags: list[str], tmp_path: Path) -> None:
    if not have("gdb", "g++", "objdump"):
        pytest.skip("gdb, g++ or objdump is not installed")
    program = compile_program([TARGETS / "captures_deep.cpp"], tmp_path / "deep", flags)
    code = subprocess.run(["objdump", "-d", "-j", ".text", program], capture_output=True, text=True, check=True).stdout
    addresses = [int(place, 16) for place in re.findall(r"^ +([0-9a-f]+):", code, re.M)]
    addresses = random.Random(1).sample(addresses, min(2000, len(addresses)))
    script = tmp_path / "script"
    script.write_text("set width 0\n" + "\n".join(f"info line *{address:#x}" for address in addresses))
    answers = subprocess.run(
        ["gdb", "-nx", "-batch", "-x", script, program], capture_output=True, text=True, check=True
    )
    truth = [re.match(r"Line (\d+) of \"(.*?)\"", line) for line in answers.stdout.splitlines()]
    assert len(truth) == len(addresses)
    lines, symbols = StatementLines(open_symbol_file(program)), open_symbols(program)
    known = 0
    for address, found in zip(addresses, truth, strict=True):
        mine = lines.line(address)
        assert (mine and mine[1]) == (int(found[1]) if found else None)
        if found and mine and (calls := symbols.inlines(address)):
            assert calls[0].line == int(found[1]) and Path(calls[0].file).name == Path(found[2]).name
            known += 1
    assert known > 500


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4), st.integers(-128, 127))
def test_programs_of_any_bytes(data: bytes, header: bytes, base: int) -> None:
    files = np.arange(3, dtype=np.uint32)
    program = _Program(data, len(data), files.ctypes.data, len(files), *header, base)
    rows = np.zeros(len(data) + 1, _ROW)
    count = _line_rows()(ctypes.byref(program), rows.ctypes.data, len(rows))
    assert 0 <= count <= len(rows)


def test_damaged_files(tmp_path: Path) -> None:
    if not have("g++"):
        pytest.skip("g++ is not installed")
    program = compile_program([TARGETS / "captures_deep.cpp"], tmp_path / "deep", ["-O1", "-g"])
    whole, chance = program.read_bytes(), random.Random(7)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(200):
            damaged[chance.randrange(64, len(damaged))] = chance.randrange(256)
        program.write_bytes(damaged)
        try:
            lines = StatementLines(open_symbol_file(program))
        except ImageError:
            continue
        for address in range(0x1000, 0x9000, 256):
            found = lines.line(address)
            assert found is None or found[1] >= 0
