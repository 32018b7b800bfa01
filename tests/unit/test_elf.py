import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callscope.binary.cfi import frame_table, landing_pads
from callscope.binary.elf import Image, read_build_id, read_image
from callscope.binary.functions import find_functions
from callscope.errors import ImageError
from tests.builders.elf_file import BUILD_ID, DATA, END, GLOBAL, OBJECT, PAGE, TEXT, ElfFile, Symbol

GLOB_DAT, JUMP_SLOT, RELATIVE, IRELATIVE, ABSOLUTE = 6, 7, 8, 37, 1


def write(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    return path


def image_of(tmp_path: Path, file: ElfFile) -> Image:
    return read_image(write(tmp_path / "image", file.build()))


def test_a_position_independent_program(tmp_path: Path) -> None:
    image = image_of(tmp_path, ElfFile(needed=("libm.so.6", "libc.so.6"), text=b"\x90" * 40, data=b"abcdefgh"))
    assert (image.kind, image.base, image.span, image.entry) == ("pie", 0, END, TEXT)
    assert image.interpreter == "/lib64/ld-linux-x86-64.so.2"
    assert image.needed == ("libm.so.6", "libc.so.6")
    assert image.build_id == BUILD_ID == read_build_id(tmp_path / "image")
    assert [(s.rva, s.size, s.executable, s.writable) for s in image.segments] == [
        (0, PAGE, False, False),
        (TEXT, PAGE, True, False),
        (DATA, PAGE, False, True),
    ]
    assert [(s.name, s.rva, s.size) for s in image.code_sections] == [(".text", TEXT, 40)]
    text = image.section(".text")
    assert text is not None and bytes(image.section_data(text)) == b"\x90" * 40
    assert image.read(DATA, 8) == b"abcdefgh"
    assert image.read(DATA - 2, 4) == b"\0\0", "a read ends with its segment"
    assert image.read(END, 4) == b"" == image.read(-5, 4) == image.read(0, 0)
    assert (image.offset_of(TEXT + 3), image.offset_of(END)) == (TEXT + 3, None)


def test_addresses_count_from_the_base_of_a_program_at_a_fixed_address(tmp_path: Path) -> None:
    file = ElfFile(file_type=2, base=0x400000, relocations=[(DATA, RELATIVE, 0, 0x400000 + TEXT + 8)])
    image = image_of(tmp_path, file)
    assert (image.kind, image.base, image.entry) == ("exec", 0x400000, TEXT)
    assert image.code_sections[0].rva == TEXT
    assert image.relocated_code_pointers().tolist() == [TEXT + 8]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (ElfFile(file_type=2, base=0x400000), "exec"),
        (ElfFile(file_type=2, base=0x400000, interpreter=None, dynamic=False), "static"),
        (ElfFile(interpreter=None), "static"),
        (ElfFile(interpreter=None, flags_1=0, soname="libx.so"), "shared"),
        (ElfFile(flags_1=0, soname="libc.so.6"), "shared"),
        (ElfFile(flags_1=0), "pie"),
    ],
)
def test_kinds(tmp_path: Path, file: ElfFile, kind: str) -> None:
    image = image_of(tmp_path, file)
    assert image.kind == kind
    assert image.is_static == (kind == "static")
    if kind == "static":
        with pytest.raises(ImageError, match=r"statically linked: link it dynamically"):
            image.require_dynamic()
    else:
        image.require_dynamic()


def test_code_pointers_of_every_relocation(tmp_path: Path) -> None:
    data = bytearray(PAGE // 2)
    words = {8: 0x10, 16: 0x12, 16 + 8 * 62: 0x14, 16 + 8 * 63: 0x16, 56 + 8 * 63: 0x18}
    for offset, target in words.items():
        struct.pack_into("<Q", data, offset, TEXT + target)
    file = ElfFile(
        data=bytes(data),
        dynamic_symbols=[
            Symbol("here", TEXT + 0x20, 4),
            Symbol("thing", DATA, 8, OBJECT),
        ],
        relocations=[
            (DATA + 800, RELATIVE, 0, TEXT + 1),
            (DATA + 808, IRELATIVE, 0, TEXT + 2),
            (DATA + 816, ABSOLUTE, 1, 5),
            (DATA + 824, GLOB_DAT, 1, 77),
            (DATA + 832, ABSOLUTE, 2, 8),
            (DATA + 840, RELATIVE, 0, DATA),
            (DATA + 848, RELATIVE, 0, -1),
            (DATA + 856, ABSOLUTE, 99999, TEXT),
            (DATA + 864, 18, 1, TEXT + 9),
        ],
        # The word at DATA + 8; then maps of the 63 words behind it and the 63 behind those.
        relr=[DATA + 8, 1 << 1 | 1 << 63 | 1, 1 << 1 | 1 << 6 | 1],
    )
    image = image_of(tmp_path, file)
    offsets = [0x1, 0x2, 0x25, 0x20, *words.values()]
    assert image.relocated_code_pointers().tolist() == sorted(TEXT + offset for offset in offsets)


def test_linkage_table_stubs_are_found_without_section_headers(tmp_path: Path) -> None:
    slots = [DATA + 0x100, DATA + 0x108]
    stubs = b"\xff\x35" + bytes(14)
    for index, slot in enumerate(slots):
        at = TEXT + 16 * (index + 1)
        stubs += (b"\xff\x25" + struct.pack("<i", slot - at - 6)).ljust(16, b"\x90")
    # The same jump through another word is a function's own.
    other = b"\xff\x25" + struct.pack("<i", DATA - (TEXT + 80) - 6)
    text = stubs + bytes(32) + other + bytes(10)
    relocations = [(slot, JUMP_SLOT, 0, 0) for slot in slots]
    bare = ElfFile(text=text, jump_relocations=relocations, section_headers=False)
    named = ElfFile(text=text, jump_relocations=relocations, plt=(TEXT, TEXT + 48))
    assert image_of(tmp_path, bare).plt_ranges == ((TEXT, TEXT + 48),) == image_of(tmp_path, named).plt_ranges
    assert [s.rva for s in image_of(tmp_path, named).code_sections] == [TEXT + 48]
    assert [(s.rva, s.size) for s in image_of(tmp_path, bare).code_sections] == [(TEXT, PAGE)]


def test_without_section_headers_the_frames_are_found_through_their_header(tmp_path: Path) -> None:
    frames = b"\0" * 32
    full = ElfFile(frames=frames)
    image = image_of(tmp_path, full)
    with_sections = image.frames
    assert with_sections is not None and (with_sections.rva, with_sections.size) == (full.frames_rva(), 32)
    bare = image_of(tmp_path, ElfFile(frames=frames, section_headers=False)).frames
    assert bare is not None and bare.rva == with_sections.rva
    assert bare.rva + bare.size == TEXT


def test_sections_that_contradict_the_segments_are_ignored(tmp_path: Path) -> None:
    data = bytearray(ElfFile().build())
    table, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    for index in range(count):
        at = table + 64 * index
        if struct.unpack_from("<Q", data, at + 8)[0] & 4:
            struct.pack_into("<Q", data, at + 24, 64)
    image = read_image(write(tmp_path / "image", data))
    assert [(s.rva, s.size) for s in image.code_sections] == [(TEXT, PAGE)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "is a script, not a program: trace its interpreter"),
        (b"MZ" + bytes(100), "is a Windows program"),
        (b"!<arch>\nxx", "is a static library"),
        (b"\xcf\xfa\xed\xfe" + bytes(100), "is a macOS program"),
        (b"hello, world", "is not an ELF file"),
        (b"\x7fEL", "is truncated"),
        (b"\x7fELF\x01\x01\x01" + bytes(45), "is a 32-bit ELF file"),
        (b"\x7fELF\x02\x02\x01" + bytes(57), "is a big-endian ELF file"),
        (ElfFile(machine=183).build(), "is built for AArch64"),
        (ElfFile(machine=999).build(), "is built for machine 999"),
        (ElfFile(file_type=1).build(), "is an object file: link it"),
        (ElfFile(file_type=4).build(), "is a core dump"),
        (ElfFile(file_type=77).build(), "of unknown type 77"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, data: bytes, words: str) -> None:
    path = write(tmp_path / "file", data)
    for read in (read_image, read_build_id):
        with pytest.raises(ImageError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("", "is a directory"), ("pipe", "is not a regular file"), ("none", "No such file")):
        with pytest.raises(ImageError, match=words):
            read_image(tmp_path / name)
    locked = write(tmp_path / "locked", b"x")
    locked.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(ImageError, match="Permission denied"):
            read_image(locked)


def rich_file() -> bytes:
    return ElfFile(
        data=bytes(64),
        symbols=[Symbol("one", TEXT, 8), Symbol("two", TEXT + 16, 8)],
        dynamic_symbols=[Symbol("one", TEXT, 8, binding=GLOBAL)],
        relocations=[(DATA, RELATIVE, 0, TEXT)],
        jump_relocations=[(DATA + 8, JUMP_SLOT, 1, 0)],
        relr=[DATA + 16, 3],
        frames=bytes(16),
        needed=("libc.so.6",),
    ).build()


def use_everything(path: Path) -> None:
    """Read all there is; only ImageError may come out."""
    try:
        read_build_id(path)
        image = read_image(path)
        table = frame_table(image)
        landing_pads(image, table)
        functions = find_functions(image, np.array([TEXT, TEXT + 20, 1 << 31]), table)
        image.relocated_code_pointers()
        assert all(len(image.section_data(section)) == section.file_size for section in image.sections)
        assert all(start < end for start, end in image.plt_ranges)
        ends = functions.rva.astype(np.int64) + functions.size
        assert np.all(functions.size > 0) and np.all(ends[:-1] <= functions.rva[1:])
        assert np.all(ends <= image.span)
    except ImageError as error:
        assert "\n" not in str(error)


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    whole = rich_file()
    path = tmp_path / "image"
    boundaries = [0, 1, 4, 16, 20, 63, 64, 65, 64 + 56, 64 + 56 * 7, TEXT - 1, TEXT, DATA, END - 1, END, len(whole) - 1]
    for size in sorted({*boundaries, *range(0, 700, 7), *range(END, len(whole), 8)}):
        write(path, whole[:size])
        if size < END:
            with pytest.raises(ImageError, match=r"truncated|empty"):
                read_image(path)
        else:
            # All segments are there: programs run so. Only the section headers are lost.
            assert read_image(path).needed == ("libc.so.6",)
        use_everything(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_headers_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(rich_file())
    table = struct.unpack_from("<Q", whole, 40)[0]
    places = st.one_of(
        st.integers(4, 64 + 56 * 7),
        st.integers(table, len(whole) - 8),
        st.integers(64 + 560, TEXT - 8),
        st.integers(END - 200, END - 8),
    )
    values = st.one_of(st.integers(0, 255), st.sampled_from([1 << 31, 1 << 32, 1 << 47, (1 << 63) - 1, (1 << 64) - 1]))
    for place, value in data.draw(st.lists(st.tuples(places, values), min_size=1, max_size=4)):
        width = 1 if value < 256 else 8
        whole[place : place + width] = value.to_bytes(width, "little")
    path = tmp_path / "image"
    path.unlink(missing_ok=True)
    use_everything(write(path, whole))


def test_counts_beyond_the_file_header_fields(tmp_path: Path) -> None:
    data = bytearray(rich_file())
    table, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    programs, names = struct.unpack_from("<H", data, 56)[0], struct.unpack_from("<H", data, 62)[0]
    # Section 0 holds what does not fit: sections in sh_size, the names' index in sh_link, segments in sh_info.
    struct.pack_into("<Q", data, table + 32, count)
    struct.pack_into("<II", data, table + 40, names, programs)
    struct.pack_into("<H", data, 56, 0xFFFF)
    struct.pack_into("<HH", data, 60, 0, 0xFFFF)
    image = read_image(write(tmp_path / "image", data))
    assert image.section(".text") is not None and len(image.segments) == 3


@pytest.mark.parametrize("name", ["bash", "git", "/lib/x86_64-linux-gnu/libc.so.6"])
def test_code_pointers_equal_those_of_readelf(name: str) -> None:
    path = shutil.which(name) or name
    if not shutil.which("readelf") or not Path(path).exists():
        pytest.skip(f"readelf or {path} is not installed")
    image = read_image(path)
    wanted = set()
    for line in subprocess.run(["readelf", "-rW", path], capture_output=True, text=True).stdout.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[2].endswith(("RELATIVE", "RELATIV")):
            wanted.add(int(fields[3], 16))
        elif len(fields) > 6 and fields[2][9:] in ("64", "GLOB_DAT", "JUMP_SLO", "JUMP_SLOT"):
            wanted.add(int(fields[3], 16) + (int(fields[6], 16) if fields[2] == "R_X86_64_64" else 0))
        elif len(fields) == 1 and len(fields[0]) == 16:
            # One place that a packed relocation names: what is stored there is the target.
            wanted.add(int.from_bytes(image.read(int(fields[0], 16) - image.base, 8), "little"))
    code = [(section.rva, section.rva + section.size) for section in image.code_sections]
    rvas = {value - image.base for value in wanted}
    rvas = {rva for rva in rvas if any(start <= rva < end for start, end in code)}
    assert len(rvas) > 100
    assert set(image.relocated_code_pointers().tolist()) == rvas
