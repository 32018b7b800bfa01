"""Windows programs under Wine, untraced and traced: what they print and how they end must be the same."""

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from callscope import format as records
from callscope.native import LAUNCHER_NAME, library_path
from callscope.patching.cache import load_or_plan
from callscope.recording.mailbox import Mailbox
from callscope.recording.plans import Answer, Module
from callscope.recording.wine import find_wine
from callscope.trace.journal import ModuleLoad, ModuleUnload, ProcessStart
from callscope.trace.open import open_trace
from tests.builders.agent_session import Session
from tests.builders.compilers import WINDOWS_COMPILERS
from tests.builders.tracing import Outcome, callscope, read_calls, run_plain
from tests.builders.truth_run import FRAME_POINTERS, Cell, run_cell
from tests.builders.windows import Windows, calls_of, compile_windows, lacking, same

pytestmark = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")
FIB_15_CALLS = 1973
MODES = ("exceptions", "faults", "walks", "fibers", "threads 6", "slots", "child", "terminate", "uncaught")


@pytest.mark.parametrize("mode", MODES)
def test_behaves_as_untraced(mode: str, windows: Windows, tmp_path: Path) -> None:
    command: list[str | Path] = [windows.programs["mingw"], *mode.split()]
    plain = windows.plain(*command)
    same(plain, windows.traced(tmp_path / "t", *command))
    assert read_calls(tmp_path / "t", ["call_id"])


@pytest.mark.parametrize("options", [{"clock": "none"}, {"keep_last": 4 << 20}, {"max_depth": 3}, {"modules": ["all"]}],
                         ids=["no clock", "keep last", "depth", "all"])  # fmt: skip
@pytest.mark.parametrize("mode", ["exceptions", "threads 3"])
def test_behaves_as_untraced_with_options(
    mode: str, options: dict[str, object], windows: Windows, tmp_path: Path
) -> None:
    command: list[str | Path] = [windows.programs["mingw"], *mode.split()]
    same(windows.plain(*command), windows.traced(tmp_path / "t", *command, **options))
    assert read_calls(tmp_path / "t", ["call_id"])


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_behaves_as_untraced_when_built_by_clang(mode: str, windows: Windows, tmp_path: Path) -> None:
    program = windows.programs.get("zig") or compile_windows(
        "windows_program.cpp", windows.plugin.with_name("clang.exe"), compiler="zig-windows"
    )
    windows.programs["zig"] = program
    command: list[str | Path] = [program, *mode.split()]
    same(windows.plain(*command), windows.traced(tmp_path / "t", *command))


def test_every_call_is_recorded(windows: Windows, tmp_path: Path) -> None:
    outcome = windows.traced(tmp_path / "t", windows.programs["mingw"], "fib", "15")
    assert (outcome.output, outcome.status) == ("fib 610\n", 7)
    assert calls_of(tmp_path / "t", windows.programs["mingw"], "fib") == FIB_15_CALLS


def test_arguments_arrive_as_untraced(windows: Windows, tmp_path: Path) -> None:
    directory = windows.plugin.parent
    program = compile_windows("windows_arguments.c", directory / "with a space.exe")
    command: list[str | Path] = [program, "a b", 'q"x\\', "", "é", "--", "%PATH%"]
    same(windows.plain(*command), windows.traced(tmp_path / "t", *command))


def test_libraries_that_come_and_go_are_planned_late(windows: Windows, tmp_path: Path) -> None:
    command: list[str | Path] = [windows.programs["mingw"], "libraries", str(windows.plugin)]
    plain = windows.plain(*command)
    same(plain, windows.traced(tmp_path / "t", *command, modules=["main", "plugin.dll"]))
    assert calls_of(tmp_path / "t", windows.plugin, "plugin_work") == 20
    journal = open_trace(tmp_path / "t").journal
    loads = [r for r in journal if isinstance(r, ModuleLoad) and r.path == str(windows.plugin)]
    unloads = {r.tsc for r in journal if isinstance(r, ModuleUnload) and r.base == loads[0].base}
    assert len(loads) == 20
    assert all(any(a.tsc < end < b.tsc for end in unloads) for a, b in itertools.pairwise(loads))


def test_children_are_followed_or_not(windows: Windows, tmp_path: Path) -> None:
    command: list[str | Path] = [windows.programs["mingw"], "child"]
    processes = {}
    for follow in (True, False):
        trace = tmp_path / str(follow)
        windows.traced(trace, *command, follow=follow)
        processes[follow] = [r for r in open_trace(trace).journal if isinstance(r, ProcessStart)]
    assert [len(found) for found in processes.values()] == [2, 1]
    parent, child = processes[True]
    assert child.ppid == parent.pid
    assert child.parent_process == parent.process


def test_sudden_ends_lose_nothing(windows: Windows, tmp_path: Path) -> None:
    outcome = windows.traced(tmp_path / "t", windows.programs["mingw"], "terminate")
    assert outcome.status == 33
    assert calls_of(tmp_path / "t", windows.programs["mingw"], "fib") == FIB_15_CALLS


def test_threads_have_their_own_chunks(windows: Windows, tmp_path: Path) -> None:
    windows.traced(tmp_path / "t", windows.programs["mingw"], "threads", "5")
    columns = read_calls(tmp_path / "t", ["function_id", "depth"])
    workers = [rows for rows in columns.values() if 20 < len(rows["depth"]) < 5000]
    assert len(workers) >= 40
    assert all(np.any(rows["depth"] > 3) for rows in workers)


def test_modules_in_reports(windows: Windows, tmp_path: Path) -> None:
    windows.traced(tmp_path / "t", windows.programs["mingw"], "fib", "15")
    modules = callscope(["modules", tmp_path / "t"], windows.cache)
    assert str(windows.programs["mingw"]) in modules.output
    assert "/kernel32.dll" in modules.output


SAMPLE = [
    Cell(1, "mingw", "-O2", FRAME_POINTERS[0]),
    Cell(2, "mingw", "-O0", FRAME_POINTERS[1]),
    Cell(3, "mingw", "-O3", FRAME_POINTERS[0], stripped=True),
    Cell(4, "mingw", "-Os", FRAME_POINTERS[1]),
]


def judge(cell: Cell, directory: Path, windows: Windows, record_property: Callable[[str, object], None]) -> None:
    verdict = run_cell(cell, directory, windows.cache, environment=windows.environment)
    record_property("truth", [verdict.calls, verdict.wrong_parents, verdict.wrong_endings, verdict.skipped])
    assert verdict.good, f"{cell}: {verdict}\n    kept in {directory}"
    assert verdict.calls > 10_000
    assert verdict.skipped < (verdict.calls + verdict.skipped) / 6


@pytest.mark.parametrize("cell", SAMPLE, ids=str)
def test_every_parent_and_ending_is_true(
    cell: Cell, windows: Windows, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    judge(cell, tmp_path, windows, record_property)


@pytest.mark.long
@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
@pytest.mark.parametrize("compiler", WINDOWS_COMPILERS)
@pytest.mark.parametrize("seed", range(100, 120))
def test_matrix(
    seed: int,
    compiler: str,
    level: str,
    windows: Windows,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Clang's programs keep their frame pointers: without them zig leaves out the unwind information of functions."""
    is_clang = compiler == "zig-windows"
    cell = Cell(seed, compiler, level, FRAME_POINTERS[is_clang or seed % 2], not is_clang and seed % 3 == 0)
    judge(cell, tmp_path, windows, record_property)


def test_attach_to_a_running_program_and_detach(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the launcher itself: the agent starts among running threads, and its trampolines are switched off again."""
    program = windows.plugin.with_name("attached.exe")
    shutil.copy(windows.programs["mingw"], program)
    monkeypatch.setenv("CALLSCOPE_CACHE", str(windows.cache))
    files = load_or_plan(program)
    session = Session(tmp_path / "session", chunk_bytes=records.CHUNK_BYTES)
    environment = os.environ | windows.environment

    def launcher(*words: str | Path) -> Outcome:
        return run_plain([find_wine(), library_path(LAUNCHER_NAME), *words, "--", program.name], env=environment)

    def answer(module: Module) -> Answer | None:
        return Answer(files.plan, 1, files.function_count, None) if module.is_main else None

    command = [find_wine(), str(program), "sleep", "30"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as running, Mailbox(answer) as box:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\r\n"
        words = ("attach", session.directory, box.directory, "0", "0")
        assert launcher(*words).status == 0
        assert "traced already" in launcher(*words).errors
        while session.header()["next_chunk"] < 2:
            pass
        assert launcher("detach").status == 0
        after = sum(map(len, session.events().values()))
        time.sleep(0.2)
        assert sum(map(len, session.events().values())) == after > 100
        running.kill()
    assert "no such process" in launcher("detach").errors
