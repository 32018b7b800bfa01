"""`callscope record` of Windows files that are no program it can trace: one clear line, status 1, nothing left."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from callscope.errors import CallscopeError
from callscope.recording.options import RecordOptions
from callscope.recording.preflight import check_program
from callscope.recording.record import no_progress, plan_ahead
from callscope.recording.rules import Rules
from tests.builders import pe_file
from tests.builders.pe_file import PeFile
from tests.builders.tracing import callscope
from tests.builders.windows import Windows, lacking, same

pytestmark = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")
HEADERS = 0x400
MUTATIONS = 300
BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "32-bit": (lambda _: PeFile(machine=0x14C, magic=0x10B).build(),
               "is built for 32-bit x86: only 64-bit x86-64 programs can be traced"),
    "arm": (lambda _: PeFile(machine=0xAA64).build(), "is built for ARM64"),
    "dotnet": (lambda _: PeFile(directories={pe_file.RUNTIME: (0x2000, 72)}).build(), "is a .NET program"),
    "dll": (lambda _: PeFile(characteristics=0x2022).build(), "is a DLL: name the program that loads it"),
    "headers cut": (lambda whole: whole[:0x90], "is truncated: it ends inside its headers"),
    "sections cut": (lambda whole: whole[: len(whole) // 3], "is truncated: it has"),
    "DOS": (lambda _: b"MZ" + bytes(100), "is a DOS program"),
    "empty": (lambda _: b"", "is empty"),
}  # fmt: skip


def mutated(whole: bytes, seed: int) -> bytes:
    """The file with up to 6 bytes of its headers changed."""
    source, data = random.Random(seed), bytearray(whole)
    for _ in range(source.randint(1, 6)):
        data[source.randrange(2, HEADERS)] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
    return bytes(data)


@pytest.mark.parametrize("kind", BAD)
def test_one_clear_line(kind: str, windows: Windows, tmp_path: Path) -> None:
    make, words = BAD[kind]
    path = tmp_path / "bad.exe"
    path.write_bytes(make(windows.programs["mingw"].read_bytes()))
    path.chmod(0o755)
    outcome = callscope(["record", "-o", tmp_path / "t", path], windows.cache)
    assert outcome.status == 1
    assert outcome.output == ""
    (line,) = outcome.errors.splitlines()
    assert line.startswith(f"callscope: error: {path}"), line
    assert words in line
    assert not (tmp_path / "t").exists()


def test_changed_headers_are_refused_in_a_line_or_planned(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that `record` does before the program is started."""
    monkeypatch.setenv("CALLSCOPE_CACHE", str(tmp_path / "cache"))
    whole, path, refused = windows.programs["mingw"].read_bytes(), tmp_path / "mutated.exe", 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(whole, seed))
        options = RecordOptions((str(path),))
        try:
            plan_ahead(Rules.of(options), options.scope, check_program(options.command), no_progress)
        except CallscopeError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert 0 < refused < MUTATIONS


def test_what_the_system_refuses_is_said_in_a_line(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that can be planned, of a subsystem that does not run programs: a driver's."""
    for name, value in windows.environment.items():
        monkeypatch.setenv(name, value)
    data = bytearray(windows.programs["mingw"].read_bytes())
    optional = int.from_bytes(data[0x3C:0x40], "little") + 24
    data[optional + 68] = 1  # IMAGE_SUBSYSTEM_NATIVE
    path = tmp_path / "driver.exe"
    path.write_bytes(data)
    path.chmod(0o755)
    outcome = callscope(["record", "-q", "-o", tmp_path / "t", path, "fib", "5"], windows.cache)
    assert "Traceback" not in outcome.errors and "bug in callscope" not in outcome.errors
    same(windows.plain(path, "fib", "5"), outcome)
