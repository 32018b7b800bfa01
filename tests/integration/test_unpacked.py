"""Programs packed by UPX, and code that changed since it was planned."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.tracing import callscope, count_calls, run_traced
from tests.builders.windows import Windows, calls_of, compile_windows, lacking, same, symbol_rva

needs_upx = pytest.mark.skipif(not have("upx"), reason="UPX is not installed (Debian: upx-ucl, from backports)")
needs_wine = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")
FIB_15_CALLS = 1973


def pack(program: Path, output: Path) -> Path:
    """The program, packed."""
    subprocess.run(["upx", "-q", "-o", str(output), str(program)], capture_output=True, check=True)
    return output


@needs_upx
@pytest.mark.parametrize("flags", [["-pie"], ["-no-pie"]], ids=["pie", "fixed"])
def test_packed_linux_program(flags: Sequence[str], plan_cache: Path, tmp_path: Path) -> None:
    program = compile_program([TARGETS / "death.c"], tmp_path / "death", ["-O1", "-rdynamic", *flags])
    packed = pack(program, tmp_path / "packed")
    outcomes, calls = [], []
    for path in (program, packed):
        trace = tmp_path / f"{path.name}.trace"
        outcomes.append(run_traced([path, "fault"], trace, plan_cache))
        rows = json.loads(callscope(["report", "--format", "json", trace], plan_cache).output)
        calls.append({row["function"]: row["calls"] for row in rows})
    assert (outcomes[1].output, outcomes[1].status) == (outcomes[0].output, outcomes[0].status)
    assert calls[0]["main"] == calls[1]["main"] == 1  # exported; what is not has no name in memory
    assert sorted(calls[1].values()) == sorted(calls[0].values())


@needs_upx
@needs_wine
@pytest.mark.parametrize("mode", ["fib 15", "exceptions", "threads 3", "child"])
def test_packed_windows_program(mode: str, windows: Windows, tmp_path: Path) -> None:
    program = windows.programs["mingw"]
    packed = pack(program, tmp_path / "packed.exe")
    same(windows.plain(packed, *mode.split()), windows.traced(tmp_path / "t", packed, *mode.split()))
    if mode == "fib 15":
        assert calls_of(tmp_path / "t", packed, "fib", symbol_rva(program, "fib")) == FIB_15_CALLS
    else:
        assert calls_of(tmp_path / "t", packed, "main", symbol_rva(program, "main")) == 1 + (mode == "child")


@needs_wine
def test_code_changed_since_planning_is_reported_and_left_alone(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in windows.environment.items():
        monkeypatch.setenv(name, value)
    program = compile_windows("windows_changed.c", tmp_path / "changed.exe")
    plain = windows.plain(program)
    assert plain.output.split()[0] == "42"
    traced = callscope(["record", "-o", tmp_path / "t", program], windows.cache)
    same(plain, traced)
    assert f"{program}: 1 patch left out, the code in memory was not the file's" in traced.errors
    told = json.loads(callscope(["info", "--format", "json", tmp_path / "t"], windows.cache).output)
    assert [module["patches_refused"] for module in told["modules"]] == [1]
    text = callscope(["info", tmp_path / "t"], windows.cache).output
    assert "Refused: patches left out, since the code in memory was not the one that was planned" in text
    assert count_calls(tmp_path / "t", "kept") == 1
    assert count_calls(tmp_path / "t", "changed") == 0
