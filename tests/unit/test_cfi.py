import random
import shutil
import struct
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from callscope.binary import cfi
from callscope.binary.cfi import SAVED_SAME, SAVED_UNKNOWN, FrameTable, compile_frames
from callscope.binary.elf import read_image
from tests.builders.frames import Frames, sleb, uleb
from tests.builders.readelf_frames import differences

RVA = 0x500
START = 0x1000


def compile_one(program: bytes, size: int = 0x100, **cie: object) -> FrameTable:
    frames = Frames(RVA)
    frames.fde(frames.cie(**cie), START, size, program)  # type: ignore[arg-type]
    return compile_frames(bytes(frames.data), RVA)


def rules(table: FrameTable, entry: int = 0) -> list[tuple[int, int, int, list[int]]]:
    """(offset in the function, CFA kind, CFA offset, saved) of an entry's rows."""
    fde = table.fdes[entry]
    rows = table.rows[fde["first_row"] : fde["first_row"] + fde["row_count"]]
    return [(int(r["rva"] - fde["start"]), int(r["cfa_kind"]), int(r["cfa_offset"]), r["saved"].tolist()) for r in rows]


def saved(**offsets: int) -> list[int]:
    names = ("rbx", "rbp", "r12", "r13", "r14", "r15", "ra")
    return [offsets.get(name, -8 if name == "ra" else SAVED_SAME) for name in names]


def test_an_ordinary_function() -> None:
    # push rbp; mov rbp, rsp; push rbx; ...; pop; pop; ret; and the code behind the ret.
    table = compile_one(
        b"\x41\x0e\x10\x86\x02"  # advance 1: CFA rsp+16, rbp at CFA-16
        b"\x43\x0d\x06"  # advance 3: CFA rbp+16
        b"\x41\x83\x03"  # advance 1: rbx at CFA-24
        b"\x60\x0a\x0c\x07\x08\xc6\xc3"  # advance 32: remember; CFA rsp+8; restore rbp and rbx
        b"\x41\x0b"  # advance 1: as before
    )
    assert table.problems == () and len(table.fdes) == 1
    assert rules(table) == [
        (0, cfi.CFA_RSP, 8, saved()),
        (1, cfi.CFA_RSP, 16, saved(rbp=-16)),
        (4, cfi.CFA_RBP, 16, saved(rbp=-16)),
        (5, cfi.CFA_RBP, 16, saved(rbp=-16, rbx=-24)),
        (37, cfi.CFA_RSP, 8, saved()),
        (38, cfi.CFA_RBP, 16, saved(rbp=-16, rbx=-24)),
    ]
    assert table.rows["cfa_register"].tolist() == [7, 7, 6, 6, 7, 6]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (b"\x00", saved()),
        (b"\x2d", saved()),
        (b"\x2e\x40", saved()),
        (b"\x8c\x02", saved(r12=-16)),
        (b"\x05\x0d\x03", saved(r13=-24)),
        (b"\x11\x0e" + sleb(-4), saved(r14=32)),
        (b"\x2f\x0f\x04", saved(r15=32)),
        (b"\x07\x10", saved(ra=SAVED_UNKNOWN)),
        (b"\x07\x10\x06\x10", saved()),
        (b"\x86\x02\x08\x06", saved()),
        (b"\x09\x03\x00", saved(rbx=SAVED_UNKNOWN)),
        (b"\x10\x06\x02\x77\x10", saved(rbp=SAVED_UNKNOWN)),
        (b"\x16\x06\x02\x77\x10", saved(rbp=SAVED_UNKNOWN)),
        (b"\x14\x0c\x02", saved(r12=SAVED_UNKNOWN)),
        (b"\x15\x0c\x7e", saved(r12=SAVED_UNKNOWN)),
        (b"\x80\x05\x05\x32\x06", saved()),  # rax and a vector register: not kept
        (b"\x83" + uleb(1 << 40), saved(rbx=SAVED_UNKNOWN)),
        (b"\x11\x03" + sleb(-(1 << 62)), saved(rbx=SAVED_UNKNOWN)),
    ],
)
def test_rules_of_registers(instruction: bytes, expected: list[int]) -> None:
    table = compile_one(instruction + b"\x45\x0e\x10")
    assert table.problems == ()
    assert rules(table)[0] == (0, cfi.CFA_RSP, 8, expected)
    assert rules(table)[1][:3] == (5, cfi.CFA_RSP, 16)


@pytest.mark.parametrize(
    ("instruction", "kind", "register", "offset"),
    [
        (b"\x0c\x0a\x00", cfi.CFA_REGISTER, 10, 0),
        (b"\x0c\x06\x10", cfi.CFA_RBP, 6, 16),
        (b"\x0e\x90\x01", cfi.CFA_RSP, 7, 144),
        (b"\x12\x07" + sleb(-3), cfi.CFA_RSP, 7, 24),
        (b"\x13" + sleb(-5), cfi.CFA_RSP, 7, 40),
        (b"\x0f\x03\x76\x78\x06", cfi.CFA_MEMORY, 6, -8),
        (b"\x0f\x02\x76\x78", cfi.CFA_EXPRESSION, 255, 0),
        (b"\x0c\x81\x02\x08", cfi.CFA_UNKNOWN, 255, 0),
        (b"\x0e" + uleb(1 << 33), cfi.CFA_UNKNOWN, 7, 0),
        (b"\x0e" + uleb(1 << 33) + b"\x0e\x08", cfi.CFA_RSP, 7, 8),
    ],
)
def test_rules_of_the_frame_address(instruction: bytes, kind: int, register: int, offset: int) -> None:
    row = compile_one(instruction).rows[0]
    assert (row["cfa_kind"], row["cfa_register"], row["cfa_offset"]) == (kind, register, offset)


def test_a_first_frame_address_other_than_rsp_plus_8_marks_a_part() -> None:
    frames = Frames(RVA)
    cie = frames.cie()
    frames.fde(cie, START, 16, b"\x0e\x30")
    frames.fde(cie, START + 16, 16, b"\x41\x0e\x30")
    signal = frames.cie(letters="S")
    frames.fde(signal, START + 32, 16)
    table = compile_frames(bytes(frames.data), RVA)
    assert table.fdes["flags"].tolist() == [cfi.FRAME_COLD, 0, cfi.FRAME_SIGNAL]


@pytest.mark.parametrize("code_align", [1, 4])
def test_every_way_to_advance(code_align: int) -> None:
    change = iter(bytes([0x0E, 8 * n]) for n in range(2, 9))
    program = b"\x41" + next(change) + b"\x02\x02" + next(change) + b"\x03\x00\x01" + next(change)
    program += b"\x04\x00\x00\x01\x00" + next(change) + b"\x1d" + struct.pack("<Q", 0x100000) + next(change)
    table = compile_one(program, size=0x1000000, code_align=code_align)
    offsets = np.cumsum([0, 1, 2, 0x100, 0x10000, 0x100000]) * code_align
    assert [row[0] for row in rules(table)] == offsets.tolist()
    absolute = compile_one(b"\x01" + struct.pack("<Q", START + 9) + b"\x0e\x10", encoding=0x00)
    assert [row[0] for row in rules(absolute)] == [0, 9]


@pytest.mark.parametrize("encoding", [0x00, 0x03, 0x04, 0x0B, 0x0C, 0x10, 0x1A, 0x1B, 0x1C, 0x01, 0x09, 0x12 ^ 0x10])
@pytest.mark.parametrize("wide", [False, True])
def test_pointer_encodings_and_lengths(encoding: int, wide: bool) -> None:
    base = 0 if encoding & 0x70 else 0x400000 if encoding not in (0x02,) else 0x100
    frames = Frames(RVA, base)
    cie = frames.cie(encoding, lsda=encoding, wide=wide)
    frames.fde(cie, START, 32, lsda=0x2000, wide=wide)
    frames.fde(cie, START + 64, 32, wide=wide)
    table = compile_frames(bytes(frames.data), RVA, base=base)
    assert table.problems == ()
    assert table.fdes[["start", "size", "lsda"]].tolist() == [(START, 32, 0x2000), (START + 64, 32, 0)]


def test_offsets_are_factored() -> None:
    table = compile_one(b"\x83\x04\x12\x07\x7c", data_align=-4, instructions=b"\x0c\x07\x08\x90\x02")
    assert rules(table) == [(0, cfi.CFA_RSP, 16, saved(rbx=-16))]


def test_the_augmentation_of_gcc_2() -> None:
    frames = Frames(RVA)
    head = b"\x01eh\0" + struct.pack("<Q", 0x1234) + uleb(1) + sleb(-8) + b"\x10\x0c\x07\x08\x90\x01"
    cie = frames.entry(struct.pack("<I", 0), head)
    frames.entry(struct.pack("<I", len(frames.data) + 4 - cie), struct.pack("<QQ", START, 32))
    table = compile_frames(bytes(frames.data), RVA)
    assert table.problems == () and table.fdes["start"].tolist() == [START]
    assert rules(table) == [(0, cfi.CFA_RSP, 8, saved())]


def test_function_relative_exception_tables() -> None:
    frames = Frames(RVA)
    frames.fde(frames.cie(lsda=0x43), START, 32, lsda=0x40)
    assert compile_frames(bytes(frames.data), RVA).fdes["lsda"].tolist() == [START + 0x40]


def test_a_location_cannot_go_back() -> None:
    program = b"\x44\x0e\x10\x01" + struct.pack("<Q", START + 2) + b"\x0e\x18"
    table = compile_one(program, encoding=0x00)
    assert table.fdes["flags"].tolist() == [cfi.FRAME_DAMAGED]
    assert [row[:3] for row in rules(table)] == [(0, 1, 8), (4, cfi.CFA_UNKNOWN, 0)]


def test_data_relative_pointers() -> None:
    frames = Frames(RVA)
    cie = frames.cie(0x3B)
    frames.fde(cie, START - 0x600, 32)
    table = compile_frames(bytes(frames.data), RVA, data_base=0x600)
    assert table.fdes["start"].tolist() == [START]


@pytest.mark.parametrize("version", [1, 3, 4])
def test_versions_and_augmentations(version: int) -> None:
    frames = Frames(RVA)
    for index, augmentation in enumerate(["", "zR", "zPR", "zPLR", "zRS"]):
        lsda = 0x1B if "L" in augmentation else 0xFF
        encoding = 0x1B if augmentation else 0x00
        cie = frames.cie(encoding, lsda, version=version, augmentation=augmentation)
        at = START + 64 * index
        if augmentation:
            frames.fde(cie, at, 32)
        else:
            frames.entry(struct.pack("<I", len(frames.data) + 4 - cie), struct.pack("<QQ", at, 32))
    table = compile_frames(bytes(frames.data), RVA)
    assert table.problems == ()
    assert table.fdes["start"].tolist() == [START + 64 * index for index in range(5)]
    assert table.rows["cfa_offset"].tolist() == [8] * 5


def test_entries_are_sorted_and_equal_starts_kept_once() -> None:
    frames = Frames(RVA)
    cie = frames.cie()
    for start, size in ((0x3000, 16), (0x1000, 16), (0x2000, 16), (0x1000, 32), (0, 16), (0x4000, 0)):
        frames.fde(cie, start, size)
    table = compile_frames(bytes(frames.data), RVA)
    assert table.fdes[["start", "size"]].tolist() == [(0x1000, 16), (0x2000, 16), (0x3000, 16)]
    asked = np.array([0xFFF, 0x1000, 0x100F, 0x1010, 0x200F, 0x3010])
    assert table.entries_at(asked).tolist() == [-1, 0, 0, -1, 1, -1]
    assert table.rows_at(asked).tolist() == [-1, 0, 0, -1, 1, -1]


def test_an_empty_table_answers() -> None:
    table = compile_frames(b"", RVA)
    assert table.rows_at(np.array([1, 2])).tolist() == [-1, -1]


def test_rows_hold_up_to_the_next() -> None:
    table = compile_one(b"\x44\x0e\x10\x44\x0e\x18", size=16)
    asked = START + np.array([-1, 0, 3, 4, 7, 8, 15, 16])
    found = table.rows_at(asked)
    assert [int(table.rows["cfa_offset"][i]) if i >= 0 else None for i in found] == [None, 8, 8, 16, 16, 24, 24, None]


def test_a_zero_length_is_passed_or_ends_the_section() -> None:
    frames = Frames(RVA)
    frames.fde(frames.cie(), START, 16)
    frames.data += bytes(4)
    frames.data += bytes(4)
    frames.fde(frames.cie(), START + 16, 16)
    data = bytes(frames.data)
    assert len(compile_frames(data, RVA).fdes) == 2
    assert len(compile_frames(data, RVA, stop_at_zero=True).fdes) == 1


@pytest.mark.parametrize(
    "bad", [b"\x3f", b"\x17", b"\x0b", b"\x0f\xff\x01", b"\x0f\x00\x0e\x08", b"\x04\x01", b"\x8c", b"\x0a" * 65]
)
def test_bad_instructions_cost_the_rest_of_their_entry(bad: bytes) -> None:
    frames = Frames(RVA)
    cie = frames.cie()
    # The bad ones end their entry, so that what they miss is not found in padding.
    padding = b"\0" * (-(4 + 4 + 4 + 4 + 1 + 7 + len(bad)) % 8)
    frames.fde(cie, START, 16, b"\x42\x0e\x10" + padding + b"\x42\x0e\x18\x41"[:3] + b"\x41" + bad)
    frames.fde(cie, START + 16, 16, b"\x42\x0e\x10")
    table = compile_frames(bytes(frames.data), RVA)
    assert len(table.problems) == 1 and "instructions cannot be read; 1 entries" in table.problems[0]
    assert table.fdes["flags"].tolist() == [cfi.FRAME_DAMAGED, 0]
    assert [row[:3] for row in rules(table)] == [(0, 1, 8), (2, 1, 16), (4, 1, 24), (5, cfi.CFA_UNKNOWN, 0)]
    assert [row[:3] for row in rules(table, 1)] == [(0, 1, 8), (2, 1, 16)]


def test_damaged_entries_cost_themselves_only() -> None:
    frames = Frames(RVA)
    good = frames.cie()
    frames.fde(good, START, 16)
    unknown = frames.cie(augmentation="zX")
    frames.fde(unknown, START + 16, 16)
    frames.entry(struct.pack("<I", 3), b"")
    frames._encoding = 0x9B
    indirect = frames.cie(encoding=0x9B)
    frames.fde(indirect, START + 32, 16)
    frames._encoding = 0x1B
    frames.fde(good, START + 48, 16)
    table = compile_frames(bytes(frames.data), RVA)
    assert table.fdes["start"].tolist() == [START, START + 48]
    assert table.problems == (
        "this file: .eh_frame is damaged at byte 48: a common information entry cannot be read; 4 entries are not used",
    )


@pytest.mark.parametrize("length", [1, 3, 0xFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
def test_a_length_that_leaves_the_section_ends_it(length: int) -> None:
    frames = Frames(RVA)
    frames.fde(frames.cie(), START, 16)
    end = len(frames.data)
    frames.data += struct.pack("<IIQ", length, 0, 1 << 63)
    table = compile_frames(bytes(frames.data), RVA)
    assert table.fdes["start"].tolist() == [START]
    assert f"at byte {end}: an entry's length runs past" in table.problems[0]


def sample() -> bytes:
    frames = Frames(RVA)
    cie = frames.cie(lsda=0x1B, letters="P")
    programs = (b"\x41\x0e\x10\x86\x02\x43\x0d\x06", b"\x44\x0e\x20\x0a\x41\x0e\x08\x41\x0b", b"\x0f\x03\x77\x08\x06")
    for index in range(12):
        frames.fde(cie, START + 64 * index, 60, programs[index % 3], lsda=0x3000 + 16 * index)
    frames.fde(frames.cie(version=3, letters="S"), START + 64 * 20, 60)
    return bytes(frames.data)


def check(table: FrameTable) -> None:
    """What must hold for any input."""
    starts = table.fdes["start"].astype(np.int64)
    assert np.all(np.diff(starts) > 0) and np.all(table.fdes["size"] > 0)
    assert table.fdes["row_count"].sum() == len(table.rows)
    assert np.all(table.fdes["row_count"] > 0)
    for index in range(len(table.fdes)):
        fde = table.fdes[index]
        rows = table.rows[fde["first_row"] : fde["first_row"] + fde["row_count"]]
        assert rows["rva"][0] == fde["start"] and np.all(np.diff(rows["rva"].astype(np.int64)) > 0)
        assert rows["rva"][-1] < int(fde["start"]) + int(fde["size"])
    assert set(table.rows["cfa_kind"].tolist()) <= set(range(6))
    table.rows_at(np.arange(START, START + 64 * 22))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(sample()) - 1), st.integers(0, 255)), max_size=12),
    st.integers(0, len(sample())),
    st.booleans(),
)
def test_mutations_are_read_or_refused(changes: Sequence[tuple[int, int]], keep: int, stop: bool) -> None:
    data = bytearray(sample())
    for place, value in changes:
        data[place] = value
    check(compile_frames(bytes(data), RVA, stop_at_zero=stop))
    check(compile_frames(bytes(data[:keep]), RVA, stop_at_zero=stop))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_instructions_are_read_or_refused(program: bytes) -> None:
    check(compile_one(program))
    check(compile_one(b"", instructions=program))


def test_hostile_sections_take_no_more_than_their_size_asks_for() -> None:
    frames = Frames(RVA)
    # One common entry with many instructions, used by many entries that alternate with another.
    costly = frames.cie(instructions=b"\x0c\x07\x08\x90\x01" + b"\x0e\x10\x0e\x08" * 50_000)
    plain = frames.cie()
    body = bytes(frames.data)
    entries = bytearray()
    for index in range(40_000):
        cie = costly if index % 2 else plain
        at = len(body) + len(entries)
        place = RVA + at + 8
        entries += struct.pack("<IIiIBxxx", 16, at + 4 - cie, START + 16 * index - place, 16, 0)
    begin = time.process_time()
    table = compile_frames(body + bytes(entries), RVA)
    assert len(table.fdes) == 40_000 and table.problems == ()
    assert time.process_time() - begin < 2


def lsda(call_sites: Sequence[tuple[int, int, int, int]], encoding: int = 0x01, pad_base: bytes = b"\xff") -> bytes:

    def pack(value: int) -> bytes:
        return uleb(value) if encoding == 0x01 else struct.pack("<I", value)

    table = b"".join(pack(s) + pack(n) + pack(pad) + uleb(action) for s, n, pad, action in call_sites)
    return pad_base + b"\xff" + bytes([encoding]) + uleb(len(table)) + table


def entries(*places: tuple[int, int]) -> NDArray[np.void]:
    fdes = np.zeros(len(places), cfi.FDE)
    for index, (start, table) in enumerate(places):
        fdes[index]["start"], fdes[index]["size"], fdes[index]["lsda"] = start, 16, table
    return fdes


def pads(data: bytes, fdes: NDArray[np.void]) -> tuple[list[int], list[int]]:
    damaged = np.zeros(len(fdes), np.uint8)
    found = cfi.pads_of_tables(data, 0x3000, fdes, damaged)
    return sorted(found.tolist()), damaged.tolist()


@pytest.mark.parametrize("encoding", [0x01, 0x03])
def test_landing_pads(encoding: int) -> None:
    first = lsda([(0, 4, 0, 0), (4, 4, 0x20, 1), (8, 300, 0x1FF, 0)], encoding)
    second = lsda([(0, 4, 0x30, 0)], encoding, b"\x00" + struct.pack("<Q", 0x5000))
    data = first + second
    fdes = entries((0x1000, 0x3000), (0x1100, 0x3000 + len(first)), (0x1200, 0), (0x1300, 0x9000))
    assert pads(data, fdes) == ([0x1020, 0x11FF, 0x5030], [0, 0, 0, 0])


def test_damaged_exception_tables_are_named() -> None:
    whole = lsda([(0, 4, 0x20, 0), (4, 4, 0x28, 0)])
    for size in range(1, len(whole)):
        assert pads(whole[:size], entries((0x1000, 0x3000)))[1] == [1], size
    assert pads(whole, entries((0x1000, 0x3000)))[1] == [0]
    assert pads(b"\xff\xff\x0f\x03\x00\x00\x00", entries((0x1000, 0x3000)))[1] == [1]


def test_overlapping_exception_tables_end_in_time() -> None:
    table = lsda([(0, 1, 1, 0)] * 100_000)
    places = [(0x1000 + 16 * index, 0x3000) for index in range(2000)]
    begin = time.process_time()
    _, damaged = pads(table, entries(*places))
    assert damaged[0] == 0 and damaged[-1] == 1
    assert time.process_time() - begin < 2


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 59))
def test_any_exception_table_is_read_or_refused(data: bytes, offset: int) -> None:
    pads(data, entries((0x1000, 0x3000 + offset), (0x1100, 0x3000)))


@pytest.mark.parametrize("name", ["bash", "git", "libc.so.6", "libstdc++.so.6"])
def test_rows_equal_those_of_readelf(name: str) -> None:
    path = shutil.which(name) or f"/lib/x86_64-linux-gnu/{name}"
    if not shutil.which("readelf"):
        pytest.skip("readelf is not installed")
    try:
        image = read_image(path)
    except Exception:
        pytest.skip(f"{path} is not installed")
    table = cfi.frame_table(image)
    assert table.problems == ()
    count, wrong = differences(path, table, image.base)
    assert count > 1000 and wrong == []
    # Their order is theirs: rows of a random place are those a linear search finds.
    rng = random.Random(1)
    rvas = [rng.randrange(int(table.fdes["start"][0]), int(table.fdes["start"][-1])) for _ in range(200)]
    for rva, row in zip(rvas, table.rows_at(np.array(rvas)).tolist(), strict=True):
        inside = np.flatnonzero((table.fdes["start"] <= rva) & (rva - table.fdes["start"] < table.fdes["size"]))
        assert (row >= 0) == bool(len(inside))
