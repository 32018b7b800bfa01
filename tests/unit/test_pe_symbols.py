"""Names and lines of PE files: COFF symbols and DWARF as mingw-w64 writes them, PDBs as zig does, Microsoft's names."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from callscope.binary.demangle import demangle
from callscope.binary.functions import find_functions
from callscope.binary.open import open_image
from callscope.binary.pe import read_pe
from callscope.binary.symbols import Symbols, open_symbols
from tests.builders.compilers import MINGW, compiler_command, have

SOURCE = """
__attribute__((noinline)) static int hidden(int value) {
    return value * 3 + 1;
}
__declspec(dllexport) __attribute__((noinline)) int shown(int value) {
    return hidden(value) + hidden(value + 1);
}
int main(int count, char **arguments) {
    return shown(count);
}
"""
needs_mingw = pytest.mark.skipif(not have(*MINGW.values()), reason="needs mingw-w64")


def build(directory: Path, compiler: str, text: str = SOURCE) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "program.c").write_text(text)
    flags = ["-O1", "-g", "-fno-ipa-cp"] if compiler == "mingw" else ["-O1"]
    path = directory / "program.exe"
    command = [*compiler_command(compiler, "c"), *flags, "-o", str(path), str(directory / "program.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def line_of(name: str) -> int:
    return next(number for number, line in enumerate(SOURCE.splitlines(), 1) if f"{name}(int" in line)


def starts(path: Path, symbols: Symbols) -> dict[str, int]:
    rvas = find_functions(open_image(path)).rva
    # A PDB has parameters of C functions too.
    return {name.partition("(")[0]: int(rva) for name, rva in zip(symbols.names(rvas), rvas, strict=True) if name}


def check_lines(symbols: Symbols, found: dict[str, int], directory: Path) -> None:
    for name in ("hidden", "shown"):
        place = symbols.location(found[name])
        assert place is not None
        assert Path(place[0]).name == "program.c" and place[1] in (line_of(name), line_of(name) + 1)


@needs_mingw
def test_names_and_lines_that_mingw_writes(tmp_path: Path) -> None:
    path = build(tmp_path / "mingw", "mingw")
    symbols = open_symbols(path)
    found = starts(path, symbols)
    assert {"main", "hidden", "shown"} <= set(found)
    image = read_pe(path)
    assert found["shown"] == int(image.exports.rva[image.exports.names.index("shown")])
    check_lines(symbols, found, tmp_path)
    assert symbols.problems == []


@needs_mingw
def test_exported_functions_have_their_names_up_to_their_ends(tmp_path: Path) -> None:
    path = build(tmp_path, "mingw")
    symbols = open_symbols(path)
    start = starts(path, symbols)["shown"]
    assert symbols.names([start, start + 1, start + 9]) == ["shown"] * 3


def test_names_and_lines_of_a_pdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(tmp_path / "zig", "zig-windows")
    pdb = path.with_suffix(".pdb")
    symbols = open_symbols(path, build_id=read_pe(path).build_id)
    found = starts(path, symbols)
    assert {"main", "hidden", "shown"} <= set(found)
    check_lines(symbols, found, tmp_path)
    assert symbols.problems == []
    # In a symbol store, under the name and the key that the image gives.
    identity = read_pe(path).build_id
    key = uuid.UUID(bytes_le=identity[:16]).hex.upper() + f"{int.from_bytes(identity[16:20], 'little'):X}"
    store = tmp_path / "store" / "program.pdb" / key
    store.mkdir(parents=True)
    pdb.rename(store / "program.pdb")
    assert set(starts(path, open_symbols(path))) == {"shown"}
    monkeypatch.setenv("_NT_SYMBOL_PATH", f"{tmp_path}/nowhere;srv*{tmp_path}/store*https://symbols.example")
    assert starts(path, open_symbols(path)) == found
    monkeypatch.delenv("_NT_SYMBOL_PATH")
    assert starts(path, open_symbols(path, [tmp_path / "store"])) == found


def test_a_pdb_that_belongs_to_another_build_or_is_damaged(tmp_path: Path) -> None:
    path = build(tmp_path / "one", "zig-windows")
    other = build(tmp_path / "other", "zig-windows", SOURCE.replace("* 3", "* 5"))
    shutil.copy(other.with_suffix(".pdb"), path.with_suffix(".pdb"))
    symbols = open_symbols(path)
    assert set(starts(path, symbols)) == {"shown"}
    assert len(symbols.problems) == 1 and "belongs to another build" in symbols.problems[0]
    path.with_suffix(".pdb").write_bytes(b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0" + bytes(100))
    symbols = open_symbols(path)
    assert set(starts(path, symbols)) == {"shown"}
    assert len(symbols.problems) == 1 and "no lines" in symbols.problems[0] and "\n" not in symbols.problems[0]
    symbols = open_symbols(path, build_id=bytes(20))
    assert symbols.name(0x1000) is None and "is not the file that was traced" in symbols.problems[0]


def test_microsoft_names() -> None:
    names = {
        "?f@A@@QEAAHH@Z": "A::f(int)",
        "??0Foo@@QEAA@XZ": "Foo::Foo()",
        "?what@exception@std@@UEBAPEBDXZ": "std::exception::what() const",
        "??_7type_info@@6B@": "const type_info::`vftable'",
        "??$f@V?$vector@H@std@@@@YAHV?$vector@H@std@@@Z": "f<std::vector<int>>(std::vector<int>)",
        "?g@@YAP6AXH@ZXZ": "void (__cdecl * __cdecl g(void))(int)",
        "?broken@@": "?broken@@",
        "?": "?",
    }
    assert demangle(list(names)) == list(names.values())


def test_microsoft_names_that_unfold(tmp_path: Path) -> None:
    # Each template argument is the one before, twice: 2 to the power of 40 of them.
    name = "?f@@YAX" + "".join(f"V?$a@V{number % 10}@V{number % 10}@@@" for number in range(40)) + "@Z"
    assert demangle([name, "?f@A@@QEAAHH@Z"])[1] == "A::f(int)"
