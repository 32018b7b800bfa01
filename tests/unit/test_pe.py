"""PE headers and tables: against GNU binutils for compiled programs, against what was written for small files."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callscope.binary.functions import find_functions
from callscope.binary.open import open_image, read_build_id, unwinding
from callscope.binary.pe import PeImage, pe_functions, read_pe
from callscope.errors import ImageError
from tests.builders import pe_file
from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.pe_file import BASE, PAGE, TEXT, PeFile, Unwind

PUSH_RBX = b"\x01\x30"  # offset 1: push rbx
needs_mingw = pytest.mark.skipif(not have("x86_64-w64-mingw32-gcc", "objdump"), reason="needs mingw-w64 and binutils")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def read(tmp_path: Path, file: PeFile) -> PeImage:
    return read_pe(write(tmp_path / "small.exe", file.build()))


def rich_file() -> PeFile:
    """A bit of everything."""
    file = PeFile(
        text=b"\x53\x5b\xc3".ljust(16, b"\xcc") + b"\xff\x25" + bytes(4) + bytes(90),
        unwinds=[Unwind(TEXT, TEXT + 3, PUSH_RBX, 1)],
        imports={"KERNEL32.dll": ["ExitProcess", "", "Sleep"], "msvcrt.dll": ["_setjmp"]},
        exports={"one": TEXT, "two": TEXT + 32},
    )
    displacement = file.slots["_setjmp"] - (TEXT + 16 + 6)
    file.text = file.text[:18] + struct.pack("<i", displacement) + file.text[22:]
    file.pointers = {file.data_at + 8: TEXT + 48, file.data_at + 16: file.data_at}
    return file


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = rich_file()
    image = read(tmp_path, file)
    assert (image.base, image.entry, image.is_fixed, image.is_library) == (BASE, TEXT, False, False)
    assert image.span == file.data_at + PAGE
    assert [section.name for section in image.sections] == [".text", ".rdata", ".data"]
    assert [section.name for section in image.code_sections] == [".text"]
    assert [(entry.library, entry.name) for entry in image.imports] == [
        ("KERNEL32.dll", "ExitProcess"),
        ("KERNEL32.dll", ""),
        ("KERNEL32.dll", "Sleep"),
        ("msvcrt.dll", "_setjmp"),
    ]
    assert dict(zip(image.exports.names, image.exports.rva.tolist(), strict=True)) == file.exports
    assert image.relocated_code_pointers().tolist() == [TEXT + 48]
    assert image.plt_ranges == ((TEXT + 16, TEXT + 22),)
    assert image.twice_callees.addresses == {TEXT + 16} and image.twice_callees.slots == {file.slots["_setjmp"]}
    assert pe_functions(image)[:, :2].tolist() == [[TEXT, TEXT + 3]]


def test_identity_of_a_file(tmp_path: Path) -> None:
    assert read(tmp_path, PeFile()).build_id == pe_file.GUID + struct.pack("<I", 7)
    unwinds = [Unwind(TEXT, TEXT + 3, PUSH_RBX, 1), Unwind(TEXT + 16, TEXT + 20, b"", 0)]
    image = read(tmp_path, PeFile(guid=None, unwinds=unwinds))
    total = 0  # format/SPEC.md, "Plans of PE images"
    for (word,) in struct.iter_unpack("<I", image.read(*image.directory(3))):
        total = (total * 0x100000001B3 + word) % (1 << 64)
    assert image.build_id == struct.pack("<IIIQ", 0x11223344, image.span, 0x55667788, total)
    assert read_build_id(image.path) == image.build_id
    assert read(tmp_path, PeFile(guid=None)).build_id == struct.pack("<IIIQ", 0x11223344, image.span, 0x55667788, 0)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (PeFile(machine=0x14C, magic=0x10B), "is built for 32-bit x86: only 64-bit x86-64 programs can be traced"),
        (PeFile(machine=0xAA64), "is built for ARM64"),
        (PeFile(directories={pe_file.RUNTIME: (0x2000, 72)}), r"is a \.NET program"),
        (PeFile(magic=0x107), "has no PE32\\+ header"),
    ],
)
def test_programs_that_cannot_be_traced(tmp_path: Path, file: PeFile, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        read(tmp_path, file)
    assert "\n" not in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    for data, words in (
        (b"MZ" + bytes(100), "DOS program"),
        (b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"NE" + bytes(100), "16-bit"),
        (b"MZ", "truncated"),
        (b"hello world", "not a Windows program"),
    ):
        with pytest.raises(ImageError, match=words):
            read_pe(write(tmp_path / "other", data))
    with pytest.raises(ImageError, match="is a DLL: name the program that loads it"):
        read(tmp_path, PeFile(characteristics=0x2022)).require_program()
    read(tmp_path, PeFile()).require_program()


def use_everything(path: Path) -> None:
    """Read all there is; only ImageError may come out."""
    try:
        image = open_image(path)
        assert isinstance(image, PeImage)
        source = unwinding(image)
        source.landing_pads()
        source.owners()
        functions = find_functions(image, np.array([TEXT + 8, 1 << 31]), source.frames)
        ends = functions.rva.astype(np.int64) + functions.size
        assert np.all(functions.size > 0) and np.all(ends[:-1] <= functions.rva[1:])
        assert np.all(ends <= image.span)
        image.relocated_code_pointers()
        assert len(image.twice_callees.slots) <= len(image.imports)
    except ImageError as error:
        assert "\n" not in str(error)


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    whole = rich_file().build()
    path = tmp_path / "image"
    # Without the last page's zeros nothing that was written is missing, but sections reach into it.
    for size in [*range(0, 0x220, 5), TEXT - 1, TEXT, TEXT + PAGE, len(whole) - PAGE, len(whole) - PAGE + 1]:
        write(path, whole[:size])
        with pytest.raises(ImageError, match=r"truncated|empty|not a Windows|DOS program"):
            read_pe(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(rich_file().build())
    tables = rich_file().rdata
    places = st.one_of(st.integers(0x3C, 0x200), st.integers(tables, tables + 0x200))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(places)
        value = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 0x7F, 0xFF])))
        whole[place] = value
    use_everything(write(tmp_path / "image", bytes(whole)))


@needs_mingw
def test_a_compiled_program(tmp_path: Path) -> None:
    path = compile_program([TARGETS / "windows_arguments.c"], tmp_path / "program.exe", ["-O2"], "mingw")
    image = read_pe(path)
    listing = subprocess.run(["objdump", "-h", "-p", "-t", str(path)], capture_output=True, text=True).stdout
    sections = re.findall(r"^ +\d+ (\.\S+) +([0-9a-f]{8})  ([0-9a-f]{16})", listing, re.M)
    told = {name: (int(address, 16) - image.base, int(size, 16)) for name, size, address in sections}
    for section in image.sections[:4]:
        assert told[section.name[:8]] == (section.rva, min(section.size, section.file_size))
    symbols = {
        (name, told[image.sections[int(number) - 1].name][0] + int(value, 16))
        for number, value, name in re.findall(
            r"\(sec +(\d+)\)\(fl 0x\w+\)\(ty +20\)\(scl +\d+\) \(nx \d+\) 0x([0-9a-f]+) (\S+)", listing
        )
    }
    assert symbols == set(zip(image.symbols.names, image.symbols.rva.tolist(), strict=True))
    assert ("main", int(image.symbols.rva[image.symbols.names.index("main")])) in symbols
    names = set(re.findall(r"^\t[0-9a-f]+\t +\d+  (\S+)", listing, re.M))
    assert {entry.name for entry in image.imports} == names and "VirtualProtect" in names
