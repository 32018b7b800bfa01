"""Names and lines by DbgHelp, as on Windows where symbolic has no build: they are those that symbolic gives."""

from pathlib import Path

import numpy as np
import pytest

from callscope.binary.dbghelp import VARIABLE, DbgHelp
from callscope.binary.functions import find_functions
from callscope.binary.open import open_image
from callscope.binary.symbols import open_symbols
from callscope.recording.wine import find_wine
from tests.builders.windows import Windows, compile_windows, lacking

pytestmark = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")

SPARSE = 10  # of the run-time library's functions, which are thousands, one in so many


@pytest.fixture
def use_dbghelp(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sets VARIABLE when it is called for."""
    for name, value in windows.environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("compiler", "flags"), [("zig-windows", ["-g"]), ("mingw", ["-gdwarf-4"])], ids=["PDB", "DWARF"]
)
def test_the_same_as_symbolic(compiler: str, flags: list[str], use_dbghelp: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = compile_windows("windows_program.cpp", tmp_path / "program.exe", *flags, compiler=compiler)
    known = open_symbols(program)
    found = find_functions(open_image(program)).rva
    inside = [rva for rva in found if (place := known.location(int(rva))) and place[0].endswith("windows_program.cpp")]
    rvas = np.unique(np.concatenate([inside, found[::SPARSE]]))
    names, places = [], []
    for loader in ("", find_wine()):
        use_dbghelp.setenv(VARIABLE, loader)
        symbols = open_symbols(program)
        names.append([name and name.partition("(")[0].lstrip("_") for name in symbols.names(rvas)])
        places.append([symbols.location(int(rva)) for rva in rvas])
        assert symbols.problems == []
    assert names[1] == names[0]
    assert {"thrower", "catcher", "fib", "main"} <= set(names[1])
    lines = {}
    for name, ours, theirs in zip(names[0], *places, strict=True):
        if ours and theirs and ours[0].endswith("windows_program.cpp"):
            assert theirs[0].replace("\\", "/").endswith("windows_program.cpp")
            lines[name] = abs(ours[1] - theirs[1])  # symbolic names the line of what was inlined there
    assert lines["fib"] == 0 and len(lines) > 10
    assert sum(difference == 0 for difference in lines.values()) > 0.7 * len(lines)


def test_what_cannot_be_read_has_no_names(use_dbghelp: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_dbghelp.setenv(VARIABLE, find_wine())
    (tmp_path / "broken.exe").write_bytes(b"MZ" + bytes(100))
    for path in (tmp_path / "broken.exe", tmp_path / "missing.exe"):
        assert DbgHelp(path, [tmp_path]).lookup(0x1000) == []
