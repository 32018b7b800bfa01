import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from callscope.binary.dynamic import DT_GNU_HASH, DT_HASH
from callscope.binary.elf import read_image
from callscope.binary.functions import FunctionTable, find_functions
from callscope.binary.symbol_tables import dynamic_table, section_tables
from tests.builders.elf_file import IFUNC, LOCAL, OBJECT, PAGE, TEXT, ElfFile, Symbol
from tests.builders.frames import Frames

NODE = shutil.which("node")


def functions_of(
    tmp_path: Path,
    entries: Sequence[tuple[int, int, bytes] | tuple[int, int]],
    symbols: list[Symbol] | None = None,
    targets: list[int] | None = None,
    **file: object,
) -> FunctionTable:
    """The functions of a program whose code has frame entries (offset, size[, instructions]) and symbols at offsets."""
    file = {"text": b"\x90" * 0x400, "entry": 0, **file}

    def build(rva: int) -> ElfFile:
        frames = Frames(rva)
        cie = frames.cie()
        for entry in entries:
            frames.fde(cie, TEXT + entry[0], entry[1], entry[2] if len(entry) == 3 else b"")
        moved = [symbol._replace(rva=TEXT + symbol.rva) for symbol in symbols or []]
        return ElfFile(frames=bytes(frames.data), symbols=moved, **file)  # type: ignore[arg-type]

    first = build(0)
    first.build()
    (tmp_path / "image").write_bytes(build(first.frames_rva()).build())
    image = read_image(tmp_path / "image")
    extra = None if targets is None else np.array([TEXT + target for target in targets], np.uint32)
    found = find_functions(image, extra)
    ends = found.rva.astype(np.int64) + found.size
    assert np.all(ends[:-1] <= found.rva[1:]) and np.all(found.size > 0)
    return found


def spans(table: FunctionTable) -> list[tuple[int, int]]:
    return [(int(rva) - TEXT, int(size)) for rva, size in zip(table.rva, table.size, strict=True)]


def test_functions_of_frame_entries(tmp_path: Path) -> None:
    table = functions_of(tmp_path, [(0x40, 0x20), (0, 0x30), (0x80, 0x10, b"\x0e\x30")])
    assert spans(table) == [(0, 0x30), (0x40, 0x20), (0x80, 0x10)]
    assert table.has_fde.all() and not table.from_symbol.any() and not table.no_size.any()
    assert table.cold.tolist() == [False, False, True]
    assert table.entry.tolist() == [0, 1, 2]
    assert table.index_at(TEXT + np.array([-1, 0, 0x2F, 0x30, 0x40, 0x8F, 0x90])).tolist() == [-1, 0, 0, -1, 1, 2, -1]


@pytest.mark.parametrize(("first", "cold"), [(b"\x90", True), (b"\x55", False)], ids=["nop", "push rbp"])
@pytest.mark.parametrize("offset", [16, 304])
def test_part_that_begins_with_a_nop(first: bytes, cold: bool, offset: int, tmp_path: Path) -> None:
    depth = bytes([offset & 0x7F | 0x80, offset >> 7])
    table = functions_of(tmp_path, [(0, 0x40, b"\x41\x0e" + depth), (0x40, 0x20)], text=first + b"\xcc" * 0x3FF)
    assert table.cold.tolist() == [cold, False]


def test_entries_outside_code_and_overlapping_ones(tmp_path: Path) -> None:
    table = functions_of(tmp_path, [(0, 0x50), (0x20, 0x10), (0x3F0, 0x100), (-0x800, 0x10), (PAGE, 0x10)])
    assert spans(table) == [(0, 0x20), (0x20, 0x10), (0x3F0, 0x10)]


def test_stubs_of_the_linkage_table_are_no_functions(tmp_path: Path) -> None:
    symbols = [Symbol("stub", 0x10, 8)]
    table = functions_of(tmp_path, [(0, 0x40), (0x40, 0x20)], symbols, [0x20, 0x80], plt=(TEXT, TEXT + 0x40))
    assert spans(table) == [(0x40, 0x20), (0x80, 0x380)]


def test_symbols_add_what_has_no_entry(tmp_path: Path) -> None:
    symbols = [
        Symbol("known", 0, 0x20),
        Symbol("assembly", 0x40, 0x10, binding=LOCAL),
        Symbol("alias", 0x40, 0x10),
        Symbol("inside", 0x44, 4),
        Symbol("runs_into_the_next", 0x70, 0x50),
        Symbol("chosen_at_start", 0x60, 8, IFUNC),
        Symbol("data", 0xC0, 8, OBJECT),
        Symbol("undefined", 0xD0, 8, defined=False),
    ]
    table = functions_of(tmp_path, [(0, 0x20), (0x80, 0x20)], symbols)
    assert spans(table) == [(0, 0x20), (0x40, 0x10), (0x60, 8), (0x70, 0x10), (0x80, 0x20)]
    assert table.from_symbol.tolist() == [False, True, True, True, False]
    assert table.has_fde.tolist() == [True, False, False, False, True]
    assert table.named.tolist() == [True, True, True, True, False]
    assert table.entry.tolist() == [0, -1, -1, -1, 1]


def test_an_entry_over_several_symbols_is_split(tmp_path: Path) -> None:
    symbols = [Symbol("one", 0, 0x18), Symbol("two", 0x20, 0x10), Symbol("three", 0x38, 8)]
    table = functions_of(tmp_path, [(0, 0x60)], symbols)
    assert spans(table) == [(0, 0x20), (0x20, 0x18), (0x38, 0x28)], "no code gets lost between them"
    assert table.has_fde.all() and table.from_symbol.tolist() == [False, True, True]
    assert table.entry.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("symbols", "program"),
    [
        ([Symbol("whole", 0, 0x60), Symbol("second_way_in", 0x20, 0x10)], b""),
        ([Symbol("one", 0, 0x20), Symbol("no_size", 0x20, 0)], b""),
        ([Symbol("one", 0, 0x20), Symbol("after_a_push", 0x20, 0x10)], b"\x44\x0e\x10"),
        ([Symbol("one", 0, 0x20), Symbol("of_a_part", 0x20, 0x10)], b"\x0e\x10\x50\x0e\x08"),
    ],
)
def test_an_entry_is_not_split_where_that_is_unsafe(tmp_path: Path, symbols: list[Symbol], program: bytes) -> None:
    assert spans(functions_of(tmp_path, [(0, 0x60, program)], symbols)) == [(0, 0x60)]


def test_what_has_no_size_reaches_to_the_next(tmp_path: Path) -> None:
    symbols = [Symbol("asm", 0x10, 0), Symbol("inside", 0x88, 0)]
    targets = [0x20, 0x30, 0x85, 0x30, 0x200]
    table = functions_of(tmp_path, [(0x80, 0x20)], symbols, targets, entry=TEXT + 0x28)
    assert spans(table) == [(0x10, 0x10), (0x20, 8), (0x28, 8), (0x30, 0x50), (0x80, 0x20), (0x200, 0x200)]
    assert table.no_size.tolist() == [True, True, True, True, False, True]
    assert table.from_symbol.tolist() == [True, False, False, False, False, False]


def test_parts_are_known_by_name_too(tmp_path: Path) -> None:
    names = ["f.cold", "g.cold.3", "coldness", "h.cold.x", "both.cold", "both"]
    places = [0, 0x20, 0x40, 0x60, 0x80, 0x80]
    symbols = [Symbol(name, place, 0x10) for name, place in zip(names, places, strict=True)]
    table = functions_of(tmp_path, [(place, 0x10) for place in sorted(set(places))], symbols)
    assert table.cold.tolist() == [True, True, False, False, False]
    assert table.named.tolist() == [False, False, True, True, True]


def test_a_name_that_is_the_end_of_another(tmp_path: Path) -> None:
    # Linkers store "f.cold" and "ff.cold" once: a name may begin inside another's bytes.
    symbols = [Symbol("long.cold", 0, 0x10), Symbol("x", 0x20, 0x10)]
    table = functions_of(tmp_path, [(0, 0x10), (0x20, 0x10)], symbols)
    assert table.cold.tolist() == [True, False]
    data = bytearray((tmp_path / "image").read_bytes())
    strings = data.index(b"\0long.cold\0x\0")
    records = strings - 3 * 24
    assert data[records + 48 : records + 52] == (11).to_bytes(4, "little")
    data[records + 48 : records + 52] = (3).to_bytes(4, "little")
    (tmp_path / "image").write_bytes(data)
    assert find_functions(read_image(tmp_path / "image")).cold.tolist() == [True, True]


def test_dynamic_symbols_without_section_headers(tmp_path: Path) -> None:
    file = ElfFile(
        text=b"\x90" * 0x100,
        dynamic_symbols=[Symbol("exported", TEXT + 0x40, 0x20)],
        entry=0,
        section_headers=False,
    )
    (tmp_path / "image").write_bytes(file.build())
    assert spans(find_functions(read_image(tmp_path / "image"))) == [(0x40, 0x20)]


def test_the_gnu_hash_table_tells_how_many_symbols_there_are() -> None:
    path = shutil.which("bash")
    if path is None:
        pytest.skip("bash is not installed")
    image = read_image(path)
    if DT_GNU_HASH not in image.dynamic.tags:
        pytest.skip(f"{path} has another hash table")
    tags = {tag: value for tag, value in image.dynamic.tags.items() if tag != DT_HASH}
    found = dynamic_table(image.data, replace(image.dynamic, tags=tags), image.segments, image.base)
    listed = [table for table in section_tables(image.data, image.tables) if not table.is_complete]
    assert found.records.tolist() == listed[0].records.tolist()


@pytest.mark.parametrize("name", ["bash", "git", "/lib/x86_64-linux-gnu/libc.so.6"])
def test_real_programs(name: str, tmp_path: Path) -> None:
    """Every function of a real program's frame entries and symbols lies in exactly one found."""
    path = shutil.which(name)
    if path is None and not Path(name).exists():
        pytest.skip(f"{name} is not installed")
    image = read_image(path or name)
    table = find_functions(image)
    listed = subprocess.run(["readelf", "-sW", path or name], capture_output=True, text=True).stdout.split("\n")
    symbols = [line.split() for line in listed if " FUNC " in line and " UND " not in line]
    assert len(table.rva) > 1000
    starts = np.array([int(symbol[1], 16) - image.base for symbol in symbols if symbol[2] != "0"])
    stubs = [(first, last) for first, last in image.plt_ranges]
    found = table.index_at(starts)
    assert all(index >= 0 or any(a <= s < b for a, b in stubs) for index, s in zip(found, starts, strict=True))


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_node_takes_a_moment_only() -> None:
    assert NODE is not None
    begin = time.process_time()
    table = find_functions(read_image(NODE))
    assert len(table.rva) > 10_000
    assert time.process_time() - begin < 1.5
