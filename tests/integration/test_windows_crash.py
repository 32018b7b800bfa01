"""Windows programs that end suddenly: what came before is there, and what they were at."""

import json
from pathlib import Path

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
    names = [frame["function_name"] for frame in crash["backtrace"]]
    assert "fail" in names and names.index("work") == names.index("fail") + 1
    source = (TARGETS / "windows_exceptions.c").read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if text.endswith(f"// FAULT {what}"))
    assert next(frame["line"] for frame in crash["backtrace"] if frame["function_name"] == "fail") == line
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
