"""Windows programs that end suddenly: what came before is there, and what they were at."""

import json
from pathlib import Path

import pytest

from callscope import format as records
from callscope.trace.journal import Crash, ModuleLoad
from callscope.trace.open import open_trace
from tests.builders.tracing import callscope
from tests.builders.windows import Windows, calls_of, lacking

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


def test_handled_faults_are_no_crash(windows: Windows, tmp_path: Path) -> None:
    windows.traced(tmp_path / "t", windows.programs["mingw"], "faults")
    told = json.loads(callscope(["info", "--format", "json", tmp_path / "t"], windows.cache).output)
    assert told["fault"] is None and told["last_at_work"] is None
