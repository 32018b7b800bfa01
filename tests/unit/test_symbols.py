import lzma
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from callscope.binary.demangle import demangle
from callscope.binary.symbols import InlinedCall, Symbols, open_symbols
from tests.builders.elf_file import BUILD_ID, LOCAL, NOTYPE, PAGE, TEXT, WEAK, ElfFile, Symbol

NODE = shutil.which("node")


def symbols_of(path: Path, *symbols: Symbol, **file: object) -> Symbols:
    path.write_bytes(ElfFile(symbols=symbols, **file).build())  # type: ignore[arg-type]
    found = open_symbols(path)
    assert found.problems == []
    return found


def names_at(symbols: Symbols, *offsets: int) -> list[str | None]:
    names = symbols.names(np.array([TEXT + offset for offset in offsets], np.uint32))
    assert names == [symbols.name(TEXT + offset) for offset in offsets]
    return names


def test_names_of_addresses(tmp_path: Path) -> None:
    symbols = symbols_of(
        tmp_path / "image", Symbol("one", TEXT, 16), Symbol("two", TEXT + 32, 16, LOCAL), Symbol("x", TEXT + 64, 8, 1)
    )
    assert names_at(symbols, -1, 0, 15, 16, 32, 47, 48, 64) == [None, "one", "one", None, None, None, None, None]
    assert symbols.name(TEXT + (1 << 40)) is None and symbols.name(-5) is None
    assert symbols.names([]) == []


def test_addresses_count_from_the_base(tmp_path: Path) -> None:
    symbols = symbols_of(tmp_path / "image", Symbol("one", TEXT, 16), base=0x400000, file_type=2)
    assert names_at(symbols, 0, 16) == ["one", None]


def test_the_best_of_several_names(tmp_path: Path) -> None:
    at = {"a": 0, "b": 32, "c": 64, "d": 96}
    symbols = symbols_of(
        tmp_path / "image",
        Symbol("local", TEXT + at["a"], 16, binding=LOCAL),
        Symbol("exported_but_longer", TEXT + at["a"], 16),
        Symbol("__libc_write", TEXT + at["b"], 16),
        Symbol("write", TEXT + at["b"], 16, binding=WEAK),
        Symbol("memcpy@@GLIBC_2.14", TEXT + at["c"], 16),
        Symbol("bb", TEXT + at["d"], 16),
        Symbol("ba", TEXT + at["d"], 16),
    )
    assert names_at(symbols, *at.values()) == ["exported_but_longer", "write", "memcpy", "ba"]


def test_small_symbols_inside_large_ones_and_symbols_without_size(tmp_path: Path) -> None:
    symbols = symbols_of(
        tmp_path / "image",
        Symbol("outer", TEXT, 64),
        Symbol("inner", TEXT + 16, 8),
        Symbol("label", TEXT + 40, 0, NOTYPE),
        Symbol("asm", TEXT + 0x80, 0),
        Symbol("next", TEXT + 0xC0, 8),
        Symbol("last", TEXT + 0x100, 0),
        text=bytes(PAGE),
    )
    assert names_at(symbols, 0, 16, 23, 24, 63, 64) == ["outer", "inner", "inner", "outer", "outer", None]
    assert names_at(symbols, 0x80, 0xBF, 0xC8, 0x100, 0x10FF, 0x1100) == ["asm", "asm", None, "last", "last", None]


def test_an_exported_symbol_without_size_names_its_own_address_only(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(ElfFile(dynamic_symbols=[Symbol("_init", TEXT, 0), Symbol("f", TEXT + 32, 8)]).build())
    assert names_at(open_symbols(path), 0, 1, 32) == ["_init", None, "f"]


RUST_TYPE = "_$LT$T$u20$as$u20$foo..Bar$LT$$RF$U$C$V$GT$$GT$"
MANGLED = {
    "main": "main",
    "_ZN2ns4Tree4walkEiPKc": "ns::Tree::walk(int, char const*)",
    "_ZN1A1BEv.constprop.0": "A::B() [clone .constprop.0]",
    "_ZL3foov.isra.0.cold": "foo() [clone .isra.0.cold]",
    "foo.constprop.0": "foo.constprop.0",
    "_ZZ4mainENKUlvE_clEv": "main::'lambda'()::operator()() const",
    "_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE": "core::fmt::Formatter::write_str",
    "_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE.llvm.99": "core::fmt::Formatter::write_str",
    f"_ZN{len(RUST_TYPE)}{RUST_TYPE}3bar17h930b740aa94f1d3aE": "<T as foo::Bar<&U,V>>::bar",
    "_RNvMsr_NtCs3ssYzQotkvD_3std4pathNtB5_7PathBuf3newCs15kBYyAo9fc_7mycrate": "<std::path::PathBuf>::new",
    "_Z": "_Z",
    "_ZNSt": "_ZNSt",
    "_Rnothing": "_Rnothing",
    "_ZN99999999999999999999aE": "_ZN99999999999999999999aE",
    "i": "i",
    "": "",
}


def test_demangling() -> None:
    assert dict(zip(MANGLED, demangle(list(MANGLED)), strict=True)) == MANGLED


def back_reference(number: int) -> str:
    """The Itanium name of the substitution with this number, S0_ being 0."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return f"S{digits[number // 36] if number > 35 else ''}{digits[number % 36]}_"


def test_names_that_unfold_without_end_are_left_alone() -> None:
    doubling = "".join(f"S_I{back_reference(i)}{back_reference(i)}E" for i in range(40))
    bomb = "_Z1f1AIiiE" + doubling
    deep = "_Z1f" + "P" * 15_000 + "i"
    many = "_Z1g" + "N2ns1AE" + "S0_" * 30
    assert demangle(["_Z1f1AIiiE" + doubling[: len("S_IS0_S0_E") * 2]])[0].count("A<int, int>") == 7
    begin = time.monotonic()
    assert demangle([many, bomb, "_Z1hv", deep, many]) == [
        "g(" + ", ".join(["ns::A"] * 31) + ")",
        bomb,
        "h()",
        deep,
        "g(" + ", ".join(["ns::A"] * 31) + ")",
    ]
    assert time.monotonic() - begin < 20


def test_only_names_asked_for_are_demangled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def spy(names: list[str]) -> list[str]:
        asked.extend(names)
        return demangle(names)

    monkeypatch.setattr("callscope.binary.symbols.demangle", spy)
    symbols = symbols_of(tmp_path / "image", Symbol("_Z1av", TEXT, 16), Symbol("_Z1bv", TEXT + 16, 16))
    assert symbols.names(np.array([TEXT, TEXT + 8, TEXT])) == ["a()"] * 3
    assert symbols.name(TEXT) == "a()"
    assert asked == ["_Z1av"]


def stripped(**file: object) -> bytes:
    return ElfFile(**file).build()  # type: ignore[arg-type]


def debug_file(*symbols: Symbol, build_id: bytes = BUILD_ID) -> bytes:
    return ElfFile(symbols=symbols, build_id=build_id).build()


def by_build_id(directory: Path, data: bytes, build_id: bytes = BUILD_ID) -> Path:
    path = directory / ".build-id" / build_id.hex()[:2] / f"{build_id.hex()[2:]}.debug"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def test_a_debug_file_by_build_id(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(stripped())
    by_build_id(tmp_path / "debug", debug_file(Symbol("secret", TEXT, 16)))
    assert open_symbols(image).name(TEXT) is None
    symbols = open_symbols(image, [tmp_path / "debug"])
    assert symbols.name(TEXT) == "secret" and symbols.problems == []


def test_a_debug_file_of_another_build_costs_names_only(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(stripped())
    by_build_id(tmp_path / "debug", debug_file(Symbol("secret", TEXT, 16), build_id=b"x" * 20))
    symbols = open_symbols(image, [tmp_path / "debug"])
    assert symbols.name(TEXT) is None
    assert len(symbols.problems) == 1 and "belongs to another build" in symbols.problems[0]
    path = next((tmp_path / "debug").rglob("*.debug"))
    path.write_bytes(b"garbage")
    assert "not an ELF file" in open_symbols(image, [tmp_path / "debug"]).problems[0]


def link_to(name: bytes, data: bytes) -> bytes:
    return name + b"\0" + bytes(-(len(name) + 1) % 4) + struct.pack("<I", zlib.crc32(data))


@pytest.mark.parametrize("place", [".", ".debug", "global"])
def test_a_debug_file_by_name_and_checksum(tmp_path: Path, place: str) -> None:
    directory = tmp_path / "bin"
    debug = debug_file(Symbol("secret", TEXT, 16), build_id=b"")
    home = tmp_path / "debug" / str(directory)[1:] if place == "global" else directory / place
    for path in (directory, home):
        path.mkdir(parents=True, exist_ok=True)
    image = directory / "image"
    image.write_bytes(stripped(build_id=b"", extra_sections={".gnu_debuglink": link_to(b"image.dbg", debug)}))
    (home / "image.dbg").write_bytes(debug)
    symbols = open_symbols(image, [tmp_path / "debug"])
    assert symbols.name(TEXT) == "secret" and symbols.problems == []
    (home / "image.dbg").write_bytes(debug + b"\0")
    symbols = open_symbols(image, [tmp_path / "debug"])
    assert symbols.name(TEXT) is None and "checksum is not the one" in symbols.problems[0]


@pytest.mark.parametrize("name", [b"../secret.dbg", b"..", b"", b"/etc/passwd"])
def test_a_debug_link_cannot_lead_elsewhere(tmp_path: Path, name: bytes) -> None:
    debug = debug_file(Symbol("secret", TEXT, 16))
    (tmp_path / "secret.dbg").write_bytes(debug)
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "image").write_bytes(stripped(extra_sections={".gnu_debuglink": link_to(name, debug)}))
    symbols = open_symbols(directory / "image")
    assert symbols.name(TEXT) is None and symbols.problems == []


def test_compressed_symbols_inside_the_file(tmp_path: Path) -> None:
    packed = lzma.compress(debug_file(Symbol("hidden", TEXT, 16)), lzma.FORMAT_XZ)
    image = tmp_path / "image"
    image.write_bytes(stripped(extra_sections={".gnu_debugdata": packed}))
    symbols = open_symbols(image)
    assert symbols.name(TEXT) == "hidden" and symbols.problems == []


@pytest.mark.parametrize(
    "packed",
    [
        b"no xz at all",
        lzma.compress(debug_file(), lzma.FORMAT_XZ)[:-40],
        lzma.compress(b"not an ELF file", lzma.FORMAT_XZ),
        lzma.compress(bytes(200 << 20), lzma.FORMAT_XZ, preset=0),
    ],
    ids=["garbage", "cut", "other", "bomb"],
)
def test_bad_compressed_symbols_cost_names_only(tmp_path: Path, packed: bytes) -> None:
    image = tmp_path / "image"
    image.write_bytes(stripped(extra_sections={".gnu_debugdata": packed}))
    symbols = open_symbols(image)
    assert symbols.name(TEXT) is None
    assert len(symbols.problems) == 1 and "cannot read .gnu_debugdata" in symbols.problems[0]


def test_a_file_that_is_gone_or_another_now(tmp_path: Path) -> None:
    by_build_id(tmp_path / "debug", debug_file(Symbol("secret", TEXT, 16)))
    image = tmp_path / "image"
    gone = open_symbols(image, [tmp_path / "debug"], build_id=BUILD_ID)
    assert gone.name(TEXT) == "secret" and "No such file" in gone.problems[0]
    image.write_bytes(ElfFile(symbols=[Symbol("new", TEXT, 16)], build_id=b"y" * 20).build())
    other = open_symbols(image, [tmp_path / "debug"], build_id=BUILD_ID)
    assert other.name(TEXT) == "secret" and "is not the file that was traced" in other.problems[0]
    assert open_symbols(image).name(TEXT) == "new"
    assert open_symbols(image, build_id=BUILD_ID).name(TEXT) is None


SOURCE = """
static inline __attribute__((always_inline)) int inner(int x) {
    return x * x +
           *(volatile int *)&x;
}
__attribute__((noinline)) int outer(int x) {
    return inner(x) + 1;
}
int main(int argc, char **argv) { return outer(argc); }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None or shutil.which("objcopy") is None:
        pytest.skip("gcc or objcopy is not installed")
    directory = tmp_path_factory.mktemp("compiled")
    (directory / "source.c").write_text(SOURCE)
    subprocess.run(["gcc", "-g", "-O1", "-o", "program", "source.c"], cwd=directory, check=True)
    subprocess.run(["objcopy", "--only-keep-debug", "program", "program.dbg"], cwd=directory, check=True)
    subprocess.run(["objcopy", "--compress-debug-sections", "program", "packed"], cwd=directory, check=True)
    command = ["objcopy", "--strip-all", "--add-gnu-debuglink=program.dbg", "program", "stripped"]
    subprocess.run(command, cwd=directory, check=True)
    return directory


def address_of(path: Path, name: str) -> int:
    listed = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    return next(int(line.split()[0], 16) for line in listed.splitlines() if line.split()[-1] == name)


@pytest.mark.parametrize("name", ["program", "packed", "stripped"])
def test_lines_and_inlined_calls(compiled: Path, name: str) -> None:
    outer = address_of(compiled / "program", "outer")
    symbols = open_symbols(compiled / name)
    assert symbols.name(outer) == "outer"
    location = symbols.location(outer)
    assert location is not None and location[0].endswith("source.c") and location[1] in (6, 7)
    inlined = [(symbols.inlines(outer + offset), symbols.location(outer + offset)) for offset in range(16)]
    calls, places = zip(*[(calls, place) for calls, place in inlined if calls], strict=True)
    assert {call.name for found in calls for call in found} == {"inner"}
    assert {call.line for found in calls for call in found} <= {3, 4}
    assert all(isinstance(call, InlinedCall) and call.file.endswith("source.c") for found in calls for call in found)
    assert {place[1] for place in places if place} == {7}, "the containing function's own line"
    assert symbols.problems == []


def test_no_lines_without_dwarf(compiled: Path, tmp_path: Path) -> None:
    shutil.copy(compiled / "stripped", tmp_path / "alone")
    symbols = open_symbols(tmp_path / "alone")
    assert symbols.location(TEXT) is None and symbols.inlines(TEXT) == [] and symbols.problems == []


def test_damaged_dwarf_costs_lines_only(compiled: Path, tmp_path: Path) -> None:
    data = bytearray((compiled / "program").read_bytes())
    outer = address_of(compiled / "program", "outer")
    sections = subprocess.run(["readelf", "-SW", compiled / "program"], capture_output=True, text=True).stdout
    for line in sections.splitlines():
        if " .debug_" in line:
            fields = line.split("]")[1].split()
            start, size = int(fields[3], 16), int(fields[4], 16)
            data[start : start + size] = b"\xff" * size
    path = tmp_path / "image"
    path.write_bytes(data)
    symbols = open_symbols(path)
    assert symbols.name(outer) == "outer"
    assert symbols.location(outer) is None and symbols.inlines(outer) == []


def test_debug_information_that_unpacks_to_too_much_is_not_read(compiled: Path, tmp_path: Path) -> None:
    data = bytearray((compiled / "packed").read_bytes())
    table, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    for index in range(count):
        flags, _, offset = struct.unpack_from("<QQQ", data, table + 64 * index + 8)
        if flags & 0x800:
            struct.pack_into("<Q", data, offset + 8, 1 << 40)
    (tmp_path / "image").write_bytes(data)
    symbols = open_symbols(tmp_path / "image")
    assert symbols.location(address_of(compiled / "program", "outer")) is None
    assert "unpacks to" in symbols.problems[0]


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_a_few_thousand_of_nodes_names_take_a_moment() -> None:
    assert NODE is not None
    begin = time.process_time()
    symbols = open_symbols(NODE)
    names = symbols.names(np.arange(0x800000, 0x1800000, 0x1000))
    assert time.process_time() - begin < 2
    assert sum(name is not None for name in names) > 3000 or symbols.name(0x800000) is None
