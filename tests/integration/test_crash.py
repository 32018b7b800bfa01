"""Crash reports against what is known: the place and the registers of each fault, and the plain program's end."""

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders.compilers import TARGETS, compile_program, have
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
    if plain.status == 0:  # neither comes back to the same instruction: the program goes on
        assert kind in ("trap", "sys") and how in ("again", "once")
        assert "has no crash" in callscope(["crash", tmp_path / "t"], cache).errors
        return
    crash = crash_of(tmp_path / "t", cache)
    if how == "nested" and kind not in (
        "segv",
        "overflow",
    ):  # the handler is called for its own fault, and faults again
        names = [frame["function_name"] for frame in crash["backtrace"]]
        assert crash["signal_name"].startswith("SIGSEGV ") and names[0] == "handle" and "fault" in names
        return
    if kind in ("trap", "sys") and how in ("again", "once"):
        where = "main" if where == "handler" else where  # which faults again behind the signal
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
        vector = crash["vector_registers"]
        assert (
            how
            or next(int(vector[f"{width}3"], 16) for width in ("zmm", "ymm", "xmm") if f"{width}3" in vector) == 0x11
        )
    if where == "thread":
        assert crash["thread_name"] == "worker" and crash["thread_id"] != crash["process_id"]
    else:
        assert crash["thread_id"] == crash["process_id"]
    (open_there, *_) = crash["open_calls"]
    assert open_there["thread_id"] == crash["thread_id"]
    names = [call["function"] for call in open_there["calls"]]
    assert "fault" in names and ("on_signal" in names) == (where == "handler")
    assert crash["handled_by_program"] == bool(how) or (kind in ("trap", "sys") and how in ("again", "once"))


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


@pytest.mark.parametrize("kind", ["segv", "fpe"])
@pytest.mark.parametrize("how", ["nested", "open"])
def test_a_fault_in_a_handler_is_reported_with_the_first(
    kind: str, how: str, program: Programs, tmp_path: Path, plan_cache: Path
) -> None:
    command: list[str | Path] = [program("main"), kind, "main", how]
    plain, traced = run_plain(command), run_traced(command, tmp_path / "t", plan_cache)
    assert (plain.status, traced.status, traced.output) == (-11, 139, plain.output)
    crash = crash_of(tmp_path / "t", plan_cache)
    place = crash["backtrace"][0]
    if (kind, how) == ("segv", "nested"):  # the signal is blocked: the system tells nobody of the second fault
        assert (place["function_name"], place["line"], crash["earlier_faults"]) == ("fault", line_of(kind), [])
    else:
        first = crash["earlier_faults"][-1]
        assert (place["function_name"], place["line"]) == ("handle", line_of("second"))
        assert first["signal_name"] == SIGNALS[kind]
        assert (first["frame"]["function_name"], first["frame"]["line"]) == ("fault", line_of(kind))
    assert crash["second_fault"]["function"] == "handle"
    shown = callscope(["crash", tmp_path / "t"], plan_cache).output
    assert "it faulted, too, in handle\n" in shown


def registers_by_gdb(command: list[str | Path]) -> dict[str, int]:
    """The registers where the plain program crashes, as gdb shows them."""
    gdb = ["gdb", "-nx", "-batch", "-ex", "run", "-ex", "info registers", "--args", *command]
    shown = run_plain(gdb).output
    return {name: int(value, 16) for name, value in re.findall(r"^(r\w+)\s+(0x[0-9a-f]+)", shown, re.MULTILINE)}


@pytest.mark.skipif(not have("gdb"), reason="gdb is not installed")
@pytest.mark.parametrize("where", ["first", "last", "indirect", "null", "recurse"])
def test_registers_in_a_trampoline_are_those_that_gdb_shows_without_one(
    where: str, tmp_path: Path, plan_cache: Path
) -> None:
    program = compile_program([TARGETS / "crash_moved.c"], tmp_path / "moved", ["-O1"])
    run_traced([program, where], tmp_path / "t", plan_cache)
    crash = crash_of(tmp_path / "t", plan_cache)
    shown, expected = crash["register_context"], registers_by_gdb([program, where])
    assert crash["in_trampoline"] == (where != "null")
    stack = expected["rsp"]
    names = [frame["function_name"] for frame in crash["backtrace"] if frame["function_name"]]
    if where == "recurse":  # the recording takes some stack: it ends at an instruction before
        assert crash["meaning"] == "stack overflow" and names[:3] == ["recurse"] * 3
        assert abs(shown["rdi"] - expected["rdi"]) < 5000  # whose environment takes some, too
        expected = {name: expected[name] for name in ("rax", "rcx", "rdx", "rbx", "rsi", "r9", "r12")}
    else:
        assert names[:2] == [where, "main"] if where != "null" else names[:2] == ["indirect", "main"]
    assert len(expected) > 6
    for name, value in expected.items():
        # Addresses differ from run to run by whole pages, those of the stack by less.
        if value < 4096 or not -(1 << 24) < value - stack < 1 << 24:
            assert shown[name] % 4096 == value % 4096 and (value > 1 << 32 or shown[name] == value), name


@pytest.mark.parametrize("how", ["repair", "jump"])
def test_faults_that_a_program_lives_on_are_no_crash(how: str, tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "faults.c"], tmp_path / "faults", ["-O1"])
    plain, traced = run_plain([program, "20000", how]), run_traced([program, "20000", how], tmp_path / "t", plan_cache)
    assert (traced.output, traced.status) == (plain.output, plain.status)
    assert "20000 faults" in plain.output
    assert (tmp_path / "t/journal").stat().st_size < 1 << 20
    assert "has no crash: it ended with status 0" in callscope(["crash", tmp_path / "t"], plan_cache).errors


def test_core_files_hold_the_registers_of_the_fault(program: Programs, tmp_path: Path, plan_cache: Path) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core" or not have("gdb"):
        pytest.skip("core files go elsewhere here, or gdb is not installed")
    limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    old = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (old[1], old[1]) if old[1] != resource.RLIM_INFINITY else limits)
    try:
        run_traced([program("main"), "segv", "main"], tmp_path / "t", plan_cache, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, old)
    (core,) = tmp_path.glob("core*")
    shown = run_plain(["gdb", "-nx", "-batch", "-ex", "info registers", program("main"), core]).output
    found = dict(re.findall(r"^(r\w+)\s+(0x[0-9a-f]+)", shown, re.MULTILINE))
    assert {name: int(found[name], 16) for name in KNOWN} == KNOWN


def test_threads_say_who_made_them(program: Programs, tmp_path: Path, plan_cache: Path) -> None:
    run_traced([program("main"), "segv", "thread"], tmp_path / "t", plan_cache)
    shown = callscope(["info", tmp_path / "t", "--threads", "--format", "json"], plan_cache)
    first, second = json.loads(shown.output)
    assert (first["created_by"], first["name"], second["name"]) == (None, "crash", "worker")
    made = second["created_by"]
    line = next(n for n, text in enumerate(SOURCE.read_text().splitlines(), 1) if "pthread_create(" in text)
    assert (made["tid"], made["function"], made["line"]) == (first["tid"], "main", line)
    assert first["start_ns"] < made["time_ns"] < second["start_ns"]
    rows = [
        json.loads(row)
        for row in callscope(["calls", tmp_path / "t", "--format", "json"], plan_cache).output.splitlines()
    ]
    assert next(row["function"] for row in rows if row["call_id"] == made["call_id"]) == "main"
    assert "main (" in callscope(["info", tmp_path / "t", "--threads"], plan_cache).output
