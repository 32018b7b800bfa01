"""Windows programs that end suddenly: what came before is there, and what they were at."""

import json
from pathlib import Path
from typing import Any

import pytest

from callscope import format as records
from callscope.trace.journal import Crash, ModuleLoad
from callscope.trace.open import open_trace
from tests.builders.compilers import TARGETS
from tests.builders.tracing import callscope
from tests.builders.windows import Windows, calls_of, compile_windows, lacking

pytestmark = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")
FIB_15_CALLS = 1973
ACCESS_VIOLATION = 0xC0000005


@pytest.fixture
def crashed(windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The trace of a program that read address 0 after fib(15), and what `record` said. Wine shows no dialogue then."""
    for name, value in windows.environment.items():
        monkeypatch.setenv(name, value)
    trace = tmp_path / "t"
    command: list[str | Path] = ["record", "--no-follow", "-o", trace, windows.programs["mingw"], "crash"]
    return trace, callscope(command, windows.cache).errors


def test_a_crash_loses_nothing_and_says_where_it_was(windows: Windows, crashed: tuple[Path, str]) -> None:
    trace, said = crashed
    program = windows.programs["mingw"]
    assert calls_of(trace, program, "fib") == FIB_15_CALLS
    assert "the program was ended by exception 0xc0000005: callscope crash" in said
    told = json.loads(callscope(["info", "--format", "json", trace], windows.cache).output)
    assert told["fault"]["code"] == ACCESS_VIOLATION
    assert told["last_at_work"]["functions"][-1]["function"] == "faulty()"
    assert told["last_at_work"]["tid"] == told["fault"]["tid"]
    text = callscope(["info", trace], windows.cache).output
    assert f"after exception 0xc0000005 in thread {told['fault']['tid']}" in text
    assert "> faulty" in text


def test_the_crash_record(windows: Windows, crashed: tuple[Path, str]) -> None:
    journal = open_trace(crashed[0]).journal
    (crash,) = [record for record in journal if isinstance(record, Crash)]
    main = next(
        record for record in journal if isinstance(record, ModuleLoad) and record.module_flags & records.MODULE_MAIN
    )
    fields = crash.fields
    assert (fields["system"], fields["code"], fields["fault_address"]) == (records.CRASH_WINDOWS, ACCESS_VIOLATION, 0)
    assert fields["information"][:2] == (2, 0)  # two parameters, a read
    assert any(0 <= fields["rip"] - start < span for start, span in (
        (main.base, main.span), (main.region, main.region_bytes)))  # fmt: skip
    assert fields["registers"][0] == 0  # rax: the address that was read
    stack = int.from_bytes(crash.stack[:8], "little") if fields["registers"][4] == fields["stack_address"] else 0
    assert main.base <= stack < main.base + main.span  # the return address of a function without a frame
    code = fields["rip"] - fields["code_address"]
    assert crash.code[code : code + 2] == b"\x8b\x10"  # mov edx, [rax]


@pytest.mark.parametrize(
    ("what", "how", "code", "name"),
    [
        ("raise", "old", 0xE0001234, "exception 0xe0001234"),
        ("break", "new", 0x80000003, "EXCEPTION_BREAKPOINT"),
        ("fault", "old", ACCESS_VIOLATION, "EXCEPTION_ACCESS_VIOLATION"),
        ("fault", "new", ACCESS_VIOLATION, "EXCEPTION_ACCESS_VIOLATION"),
        ("jump", "old", ACCESS_VIOLATION, "EXCEPTION_ACCESS_VIOLATION"),
        ("divide", "new", 0xC0000094, "EXCEPTION_INT_DIVIDE_BY_ZERO"),
        ("illegal", "old", 0xC000001D, "EXCEPTION_ILLEGAL_INSTRUCTION"),
        ("privileged", "new", 0xC0000096, "EXCEPTION_PRIV_INSTRUCTION"),
    ],
)
def test_what_a_program_raises_itself(
    what: str, how: str, code: int, name: str, windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in windows.environment.items():
        monkeypatch.setenv(key, value)
    program = compile_windows("windows_exceptions.c", tmp_path / "program.exe", "-g")
    trace = tmp_path / "t"
    said = callscope(["record", "--no-follow", "-o", trace, program, what, how], windows.cache)
    assert said.status == code & 0xFF
    assert f"the program was ended by exception {code:#x}: callscope crash" in said.errors
    crash = json.loads(callscope(["crash", trace, "--format", "json"], windows.cache).output)["crash"]
    assert (crash["signal"], crash["signal_name"], crash["thread_name"]) == (code, name, f"worker of {how}")
    names = [(frame["function_name"] or "").partition(".")[0] for frame in crash["backtrace"]]
    assert "fail" in names and names.index("work") == names.index("fail") + 1
    source = (TARGETS / "windows_exceptions.c").read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if text.endswith(f"// FAULT {what}"))
    assert crash["backtrace"][names.index("fail")]["line"] == line
    assert crash["open_calls"][0]["calls"][-1]["function"] == "fail"


@pytest.mark.parametrize("how", ["old", "new"])
def test_what_is_raised_and_handled_is_no_crash(how: str, windows: Windows, tmp_path: Path) -> None:
    program = compile_windows("windows_exceptions.c", tmp_path / "program.exe", "-g")
    outcome = windows.traced(tmp_path / "t", program, "nothing", how)
    assert (outcome.output, outcome.status) == ("handled\n", 0)
    assert "has no crash" in callscope(["crash", tmp_path / "t"], windows.cache).errors
    threads = json.loads(callscope(["info", "--threads", "--format", "json", tmp_path / "t"], windows.cache).output)
    assert f"worker of {how}" in [thread["name"] for thread in threads]


def test_handled_faults_are_no_crash(windows: Windows, tmp_path: Path) -> None:
    windows.traced(tmp_path / "t", windows.programs["mingw"], "faults")
    told = json.loads(callscope(["info", "--format", "json", tmp_path / "t"], windows.cache).output)
    assert told["fault"] is None and told["last_at_work"] is None


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_windows("windows_endings.cpp", tmp_path_factory.mktemp("endings") / "endings.exe", "-g", "-static")


def report_of(windows: Windows, trace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(callscope(["crash", trace, "--format", "json"], windows.cache).output)["crash"]
    return found


@pytest.mark.parametrize(
    "how", ["", "thread", *(pytest.param(how, marks=pytest.mark.long) for how in ("caught", "handler"))]
)
@pytest.mark.parametrize("what", ["abort", "assert", "terminate", "throw", "noexcept"])
def test_programs_that_abort(
    what: str, how: str, windows: Windows, endings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By abort, a failed assertion, std::terminate, and exceptions that nobody catches."""
    for key, value in windows.environment.items():
        monkeypatch.setenv(key, value)
    said = callscope(
        ["record", "--no-follow", "-o", tmp_path / "t", endings, what, *([how] if how else [])], windows.cache
    )
    assert said.status == (5 if how == "handler" else 3)
    assert "a process crashed: callscope crash" in said.errors
    crash = report_of(windows, tmp_path / "t")
    assert (crash["signal"], crash["signal_name"]) == (0x40000015, "abort")
    names = [frame["function_name"] for frame in crash["backtrace"]]
    inner = "promised" if what == "noexcept" else "fail"
    own = [name for name in names if name in (f"{inner}()", "work(int)", "main", "on_thread(void*)")]
    outer = "on_thread(void*)" if how == "thread" else "main"
    assert own == [f"{inner}()", *["work(int)"] * 4, outer]
    assert names[0] in ("abort", "_assert", "_wassert") and names[-2:] == ["BaseThreadInitThunk", "RtlUserThreadStart"]
    source = (TARGETS / "windows_endings.cpp").read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if text.endswith(f"// END {what}"))
    assert next(frame["line"] for frame in crash["backtrace"] if frame["function_name"] == f"{inner}()") == line
    thrown = {
        "throw": {"type": "std::runtime_error", "what": "no such table"},
        "noexcept": {"type": "std::logic_error", "what": "broken promise"},
    }
    assert crash["exception"] == thrown.get(what)
    assert crash["uncaught_exception"] == (what in ("terminate", "throw", "noexcept"))
    open_here = [call["function"] for call in crash["open_calls"][0]["calls"]]
    assert [name for name in open_here if name == "work(int)"] == ["work(int)"] * 4
    ended = "a handler of SIGABRT ended the program with status 5" if how == "handler" else None
    assert crash["ended_by"] == ended


@pytest.mark.long
@pytest.mark.parametrize("what", ["abort", "terminate", "throw", "noexcept"])
def test_programs_that_abort_built_by_clang(
    what: str, windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLVM's C++ runtime, the universal C runtime, and names from a PDB."""
    for key, value in windows.environment.items():
        monkeypatch.setenv(key, value)
    program = compile_windows("windows_endings.cpp", tmp_path / "endings.exe", "-g", compiler="zig-windows")
    assert callscope(["record", "--no-follow", "-o", tmp_path / "t", program, what], windows.cache).status == 3
    crash = report_of(windows, tmp_path / "t")
    names = [(frame["function_name"] or "").partition("(")[0] for frame in crash["backtrace"]]
    assert names[0] == "abort" and names.count("work") == 4
    thrown = {
        "throw": {"type": "std::runtime_error", "what": "no such table"},
        "noexcept": {"type": "std::logic_error", "what": "broken promise"},
    }
    assert crash["exception"] == thrown.get(what)
    assert crash["uncaught_exception"] == (what != "abort")


def test_an_exception_of_microsofts_that_nobody_catches(
    windows: Windows, endings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in windows.environment.items():
        monkeypatch.setenv(key, value)
    said = callscope(["record", "--no-follow", "-o", tmp_path / "t", endings, "microsoft"], windows.cache)
    assert said.status == 0xE06D7363 & 0xFF and "ended by exception 0xe06d7363" in said.errors
    crash = report_of(windows, tmp_path / "t")
    names = [frame["function_name"] for frame in crash["backtrace"]]
    assert crash["signal"] == 0xE06D7363 and names[:6] == ["RaiseException", "fail()", *["work(int)"] * 4]
    assert crash["register_context"]["rcx"] and crash["register_context"]["rflags"]


@pytest.mark.parametrize(("what", "status"), [("fast", 0xC0000409), ("parameter", 0xC0000417)])
@pytest.mark.parametrize("how", ["", "thread"])
def test_what_the_system_ends_without_a_word(
    what: str, status: int, how: str, windows: Windows, endings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in windows.environment.items():
        monkeypatch.setenv(key, value)
    said = callscope(
        ["record", "--no-follow", "-o", tmp_path / "t", endings, what, *([how] if how else [])], windows.cache
    )
    assert said.status == status & 0xFF and f"ended by exception {status:#x}: callscope crash" in said.errors
    crash = report_of(windows, tmp_path / "t")
    assert crash["signal"] == status and not crash["backtrace"] and not crash["register_context"]
    calls = {thread["thread_id"]: [call["function"] for call in thread["calls"]] for thread in crash["open_calls"]}
    assert calls[crash["thread_id"]][-5:] == [*["work(int)"] * 4, "fail()"]
    assert len(calls) == (2 if how else 1)
    told = json.loads(callscope(["info", "--format", "json", tmp_path / "t"], windows.cache).output)
    assert told["crashes"] == 1
    assert crash["last_calls"][-1]["function"] == "fail()" and "work(int)" in str(
        callscope(["crash", tmp_path / "t"], windows.cache).output
    )


@pytest.mark.parametrize("how", ["", "caught", "three", "handler"])
def test_programs_that_end_well_have_no_crash(how: str, windows: Windows, endings: Path, tmp_path: Path) -> None:
    outcome = windows.traced(tmp_path / "t", endings, "nothing", *([how] if how else []))
    assert (outcome.output, outcome.status) == ("fine\n", 3 if how == "three" else 0)
    assert "has no crash" in callscope(["crash", tmp_path / "t"], windows.cache).errors


def test_an_interrupt_is_no_crash(
    windows: Windows, endings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in windows.environment.items():
        monkeypatch.setenv(key, value)
    said = callscope(["record", "--no-follow", "-o", tmp_path / "t", endings, "interrupt"], windows.cache)
    assert said.status == 0x3A and "the program was ended by an interrupt" in said.errors
    assert "has no crash" in callscope(["crash", tmp_path / "t"], windows.cache).errors
