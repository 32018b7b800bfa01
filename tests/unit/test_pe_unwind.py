"""Unwind information of PE files: against LLVM's reading of compiled programs, and small files for one thing each."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from callscope.binary import pe_unwind
from callscope.binary.cfi import CFA_RBP, CFA_RSP, FRAME_COLD
from callscope.binary.functions import find_functions
from callscope.binary.pe import read_pe
from callscope.binary.pe_unwind import UnwindTable
from tests.builders.compilers import TARGETS, WINDOWS_COMPILERS, compile_program, have
from tests.builders.pe_file import TEXT, PeFile, Unwind

PUSH_RBX, PUSH_RBP = 0x30, 0x50
CHAINED, HANDLER = 4, 3
OPERATIONS = {
    "PUSH_NONVOL": pe_unwind.PUSH,
    "ALLOC_LARGE": pe_unwind.ALLOC_LARGE,
    "ALLOC_SMALL": pe_unwind.ALLOC_SMALL,
    "SET_FPREG": pe_unwind.SET_FRAME,
    "SAVE_NONVOL": pe_unwind.SAVE,
    "SAVE_XMM128": pe_unwind.SAVE_XMM,
    "SAVE_XMM128_FAR": pe_unwind.SAVE_XMM_FAR,
}
needs_mingw = pytest.mark.skipif(not have("x86_64-w64-mingw32-g++", "llvm-readobj"), reason="needs mingw-w64 and LLVM")


def table(tmp_path: Path, file: PeFile) -> UnwindTable:
    path = tmp_path / "small.exe"
    path.write_bytes(file.build())
    return UnwindTable(read_pe(path))


def rows(unwinds: UnwindTable) -> list[tuple[int, int, int]]:
    return [(int(r["rva"]) - TEXT, int(r["cfa_kind"]), int(r["cfa_offset"])) for r in unwinds.frames.rows]


def test_a_prologue_with_a_frame_register(tmp_path: Path) -> None:
    # push rbp; push rbx; sub rsp,0x28; lea rbp,[rsp+0x20]
    codes = bytes([11, 3, 6, 0x42, 2, PUSH_RBX, 1, PUSH_RBP])
    unwinds = table(tmp_path, PeFile(unwinds=[Unwind(TEXT, TEXT + 40, codes, 11, 0x25)]))
    assert rows(unwinds) == [(0, CFA_RSP, 8), (1, CFA_RSP, 16), (2, CFA_RSP, 24), (6, CFA_RSP, 64), (11, CFA_RBP, 32)]


def test_fragments_make_one_function(tmp_path: Path) -> None:
    push = bytes([1, PUSH_RBX])
    whole = Unwind(TEXT, TEXT + 8, push, 1)
    unwind = table(tmp_path, PeFile(text=b"\x90" * 128, unwinds=[whole])).fragments[0].unwind
    chain = struct.pack("<III", TEXT, TEXT + 8, unwind)
    file = PeFile(
        text=b"\x90" * 128,
        unwinds=[
            whole,
            Unwind(TEXT + 8, TEXT + 16, bytes([4, 0x32]), 4, 0, CHAINED, chain),
            Unwind(TEXT + 64, TEXT + 80, b"", 0, 0, CHAINED, chain),
            Unwind(TEXT + 80, TEXT + 96, push, 1),
        ],
    )
    unwinds = table(tmp_path, file)
    spans = [(int(fde["start"]) - TEXT, int(fde["size"]), int(fde["flags"])) for fde in unwinds.frames.fdes]
    assert spans == [(0, 16, 0), (64, 16, FRAME_COLD), (80, 16, 0)]
    assert unwinds.owners() == {TEXT + 8: TEXT, TEXT + 64: TEXT}
    expected = [(0, 8), (1, 16), (8, 16), (12, 48), (64, 16), (80, 8), (81, 16)]
    assert rows(unwinds) == [(at, CFA_RSP, offset) for at, offset in expected]


def test_entries_that_begin_with_padding(tmp_path: Path) -> None:
    text = b"\xcc" * 4 + b"\x53\x5b\xc3".ljust(12, b"\xcc") + b"\xcc" * 16
    unwinds = [Unwind(TEXT, TEXT + 16, bytes([1, PUSH_RBX]), 1), Unwind(TEXT + 16, TEXT + 32)]
    found = table(tmp_path, PeFile(text=text, unwinds=unwinds))
    assert [(int(fde["start"]) - TEXT, int(fde["size"])) for fde in found.frames.fdes] == [(4, 12)]
    functions = find_functions(read_pe(tmp_path / "small.exe"))
    assert functions.rva.tolist() == [TEXT, TEXT + 4]  # where the program starts, and the entry


def test_scope_tables_and_damage(tmp_path: Path) -> None:
    scope = struct.pack("<IIIIII", 0x1234, 1, TEXT + 2, TEXT + 6, 1, TEXT + 9)
    outside = struct.pack("<IIIIII", 0x1234, 1, TEXT + 2, TEXT + 99, 1, TEXT + 30)
    file = PeFile(
        text=b"\x90" * 128,
        unwinds=[
            Unwind(TEXT, TEXT + 16, b"", 0, 0, HANDLER, scope),
            Unwind(TEXT + 16, TEXT + 32, b"", 0, 0, HANDLER, outside),
            Unwind(TEXT + 32, TEXT + 48, bytes([1, 0x07]), 1),  # no such operation
        ],
    )
    unwinds = table(tmp_path, file)
    landing = unwinds.landing_pads()
    assert landing.pads.tolist() == [TEXT + 9]
    assert unwinds.damaged == [(TEXT + 32, TEXT + 48)]
    assert [int(unwinds.frames.fdes["start"][index]) for index in landing.unreadable] == [TEXT + 32]


@needs_mingw
@pytest.mark.parametrize("compiler", WINDOWS_COMPILERS)
def test_compiled_programs_as_llvm_reads_them(tmp_path: Path, compiler: str) -> None:
    path = compile_program([TARGETS / "windows_plugin.c"], tmp_path / "plugin.dll", ["-O2", "-shared"], compiler)
    told = subprocess.run(["llvm-readobj", "--unwind", str(path)], capture_output=True, text=True).stdout
    expected = []
    for text in told.split("RuntimeFunction {")[1:]:
        codes = re.findall(r"0x([0-9A-F]+): (\w+)(?: reg=(\w+))?(?:,? ?size=(\d+))?", text)
        expected.append([(int(offset, 16), OPERATIONS[name], int(size or 0)) for offset, name, _, size in codes])
    unwinds = UnwindTable(read_pe(path))
    assert len(expected) > 20 and not unwinds.damaged
    sizes = (pe_unwind.ALLOC_SMALL, pe_unwind.ALLOC_LARGE)
    found = [
        [(code.offset, code.operation, code.size if code.operation in sizes else 0) for code in fragment.info.codes]
        for fragment in unwinds.fragments
    ]
    assert found == expected


@needs_mingw
def test_landing_pads_of_a_compiled_program(tmp_path: Path) -> None:
    path = compile_program([TARGETS / "windows_program.cpp"], tmp_path / "program.exe", ["-O1"], "mingw")
    image = read_pe(path)
    pads = UnwindTable(image).landing_pads()
    assert len(pads.unreadable) == 0
    told = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True).stdout
    code = {int(address, 16) - image.base for address in re.findall(r"^ +([0-9a-f]+):\t", told, re.M)}
    assert len(pads.pads) > 20 and set(pads.pads.tolist()) <= code
