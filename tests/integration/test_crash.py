"""Crash reports against what is known: the place and the registers of each fault, and the plain program's end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import callscope, run_plain, run_traced

SOURCE = TARGETS / "crash.c"
SIGNALS = {
    "segv": "SIGSEGV", "abrt": "SIGABRT", "ill": "SIGILL", "fpe": "SIGFPE", "bus": "SIGBUS", "trap": "SIGTRAP",
    "sys": "SIGSYS", "overflow": "SIGSEGV",
}  # fmt: skip
KNOWN = {"rax": 1, "rcx": 0x11, "rdx": 0, "rbx": 0x13, "rsi": 0x14, "rdi": 0x15, "r8": 0x18, "r9": 0x19, "r10": 0x1A,
         "r11": 0x1B, "r12": 0x1C, "r13": 0x1D, "r14": 0x1E, "r15": 0x1F}  # fmt: skip
FEW = [
    ("segv", "main", ""), ("segv", "library", "exit"), ("fpe", "thread", ""), ("ill", "handler", "again"),
    ("bus", "main", "once"), ("trap", "library", ""), ("sys", "thread", "exit"), ("abrt", "handler", ""),
    ("abrt", "main", "again"), ("overflow", "main", ""), ("overflow", "thread", ""), ("overflow", "thread", "exit"),
    ("segv", "main", "nested"),
]  # fmt: skip
ALL = [
    (kind, where, how)
    for kind in SIGNALS
    for where in ("main", "thread", "handler", "library")
    for how in ("", "exit", "again", "once", "nested")
    if (kind, where, how) not in FEW
]

Programs = Callable[[str], Path]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """where -> the program that crashes there."""
    directory = tmp_path_factory.mktemp("crash")
    flags = ["-O1", "-g", "-pthread"]
    library = directory / "libfault.so"
    compile_program([SOURCE], library, [*flags, "-DONLY_FAULT", "-shared", "-fPIC"])
    compile_program([SOURCE], directory / "crash", flags)
    linked = [*flags, "-DNO_FAULT", f"-L{directory}", "-Wl,--no-as-needed", "-lfault", f"-Wl,-rpath,{directory}"]
    compile_program([SOURCE], directory / "crash-library", linked)
    return lambda where: directory / ("crash-library" if where == "library" else "crash")


def crash_of(trace: Path, cache: Path) -> dict[str, Any]:
    shown = callscope(["crash", trace, "--format", "json"], cache)
    assert shown.status == 0, shown
    crash = json.loads(shown.output)["crash"]
    assert isinstance(crash, dict)
    return crash


def line_of(kind: str) -> int:
    lines = SOURCE.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"// FAULT {kind}"))


def check(program: Programs, kind: str, where: str, how: str, tmp_path: Path, cache: Path) -> None:
    command: list[str | Path] = [program(where), kind, where, *([how] if how else [])]
    recording = {"modules": ("main", "*libfault.so")} if where == "library" else {}
    plain = run_plain(command)
    traced = run_traced(command, tmp_path / "t", cache, recording=recording)
    status = plain.status if plain.status >= 0 else 128 - plain.status
    assert (traced.output, traced.status) == (plain.output, status)
    crash = crash_of(tmp_path / "t", cache)
    assert crash["signal_name"].startswith(SIGNALS[kind] + " ")
    own = next(frame for frame in crash["backtrace"] if frame["file"] and frame["file"].endswith("crash.c"))
    assert own["function_name"] == ("deep" if kind == "overflow" else "fault")
    assert own["library_name"] == ("libfault.so" if where == "library" else "crash")
    if kind == "overflow":
        assert crash["meaning"] == "stack overflow"
    else:
        assert own["line"] == line_of(kind)
        names = [frame["function_name"] for frame in crash["backtrace"]]
        assert ("on_thread" if where == "thread" else "main") in names
        assert ("on_signal" in names) == (where == "handler")
    if kind in ("segv", "ill", "fpe", "trap", "bus"):
        assert own is crash["backtrace"][0]
        shown = {name: crash["register_context"][name] for name in KNOWN}
        expected = KNOWN | ({"rbx": int(crash["fault_address"], 16)} if kind == "bus" else {})
        assert shown == expected
    if where == "thread":
        assert crash["thread_name"] == "worker" and crash["thread_id"] != crash["process_id"]
    else:
        assert crash["thread_id"] == crash["process_id"]
    (open_there, *_) = crash["open_calls"]
    assert open_there["thread_id"] == crash["thread_id"]
    names = [call["function"] for call in open_there["calls"]]
    assert "fault" in names and ("on_signal" in names) == (where == "handler")
    assert crash["handled_by_program"] == bool(how)


@pytest.mark.parametrize(("kind", "where", "how"), FEW)
def test_a_crash_is_reported_and_ends_as_untraced(
    kind: str, where: str, how: str, program: Programs, tmp_path: Path, plan_cache: Path
) -> None:
    check(program, kind, where, how, tmp_path, plan_cache)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "where", "how"), ALL)
def test_every_crash_is_reported_and_ends_as_untraced(
    kind: str, where: str, how: str, program: Programs, tmp_path: Path, plan_cache: Path
) -> None:
    check(program, kind, where, how, tmp_path, plan_cache)
