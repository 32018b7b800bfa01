"""Call stacks of Windows programs: which library, function and line, across loads and unloads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from callscope.reports.stacks import Stacks, ends
from callscope.trace.open import open_trace
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import ROOT
from tests.builders.windows import Windows, lacking

pytestmark = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
HOST = ROOT / "examples/host-and-viewer"
BASE = "-Wl,--image-base,0x310000000"


def build_libraries(directory: Path) -> None:
    for name in ("foo", "bar"):
        flags = ["-O2", "-g", "-shared", BASE]
        compile_program([HOST / f"{name}.c"], directory / f"lib{name}.dll", flags, "mingw")


def test_libraries_at_the_same_address_are_told_apart(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_libraries(tmp_path)
    program = compile_program([HOST / "host.c"], tmp_path / "host.exe", ["-O2", "-g"], "mingw")
    monkeypatch.chdir(tmp_path)
    outcome = windows.traced(tmp_path / "host.trace", program)
    assert outcome.status == 0, outcome.errors
    first, second, third = (line.split()[-1] for line in outcome.output.splitlines())
    assert first == second != third
    found = {}
    for one, group in Stacks(open_trace(tmp_path / "host.trace")).each():
        assert ends(group) is None
        found[one.tag] = [(frame.module, Path(frame.file or "").name, frame.line) for frame in group.frames[:3]]
        assert [frame.function for frame in group.frames][-4:-2] == ["__tmainCRTStartup", "mainCRTStartup"]
    assert found[1] == found[3] == [("libfoo.dll", "foo.c", line) for line in (15, 20, 25)]
    assert found[2] == [("libbar.dll", "bar.c", line) for line in (15, 20, 25)]


def test_paths_of_other_alphabets(windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "Bibliothèque 図書館"
    directory.mkdir()
    build_libraries(directory)
    program = compile_program([HOST / "host.c"], directory / "host.exe", ["-O2", "-g"], "mingw")
    program = program.rename(directory / "Πρόγραμμα.exe")
    monkeypatch.chdir(directory)
    outcome = windows.traced(tmp_path / "host.trace", program)
    assert outcome.status == 0, outcome.errors
    found = {one.tag: group for one, group in Stacks(open_trace(tmp_path / "host.trace")).each()}
    for tag, library in ((1, "libfoo.dll"), (2, "libbar.dll"), (3, "libfoo.dll")):
        modules = [frame.module for frame in found[tag].frames]
        assert modules[:4] == [library] * 3 + ["Πρόγραμμα.exe"] and ends(found[tag]) is None
        assert found[tag].frames[0].line == 15


@pytest.mark.parametrize("rounds", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_threads_that_load_and_unload(
    windows: Windows, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_libraries(tmp_path)
    source = TARGETS / "windows_captures.c"
    program = compile_program([source], tmp_path / "captures.exe", ["-O2", "-g", f"-I{HOST}"], "mingw")
    monkeypatch.chdir(tmp_path)
    outcome = windows.traced(tmp_path / "captures.trace", program, str(rounds))
    assert outcome.status == 0, outcome.errors
    counts: Counter[str] = Counter()
    at: dict[int, set[str | None]] = {}
    for one, group in Stacks(open_trace(tmp_path / "captures.trace")).each():
        name = {1: None, 1000: "foo", 1001: "bar"}[one.tag]
        assert ends(group) is None
        places = [(frame.module, Path(frame.file or "").name, frame.line) for frame in group.frames]
        if name:
            assert places[:3] == [(f"lib{name}.dll", f"{name}.c", line) for line in (15, 20, 25)]
            assert places[3][:2] == ("captures.exe", "windows_captures.c")
            at.setdefault(one.addresses[0][0], set()).add(name)
        else:
            assert [place[:2] for place in places[:2]] == [("captures.exe", "windows_captures.c")] * 2
        counts["library" if name else "steady"] += 1
    assert counts["library"] == 8 * rounds and counts["steady"] > 0
    assert any(len(names_there) == 2 for names_there in at.values())  # both lay at one address
