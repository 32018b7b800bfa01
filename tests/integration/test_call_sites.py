"""`record --calls`: calls of what is not traced, where they are made. The counts are those of the program's source."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from callscope.calls.build import build_calls
from callscope.patching.cache import load_or_plan
from callscope.patching.scope import Scope
from callscope.reports.database import open_database
from callscope.trace.open import open_trace
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import callscope, run_plain, run_traced

CALLS = """
SELECT split_part(sites.name, '(', 1) AS caller, split_part(functions.name, '(', 1) AS target, c.ended_by,
    functions.traced, c.duration_ns
FROM call_rows c JOIN functions USING (function_id) LEFT JOIN sites ON sites.site = c.site
"""
RETURNED, UNWOUND = 0, 2
FROM_POINTERS = {
    ("caller_virtual", "Square::area"): 200,
    ("caller_virtual", "Circle::area"): 100,
    ("caller_pointer", "doubled"): 50,
    ("caller_pointer", "slow"): 1,
    ("caller_throwing", "refused"): 20,
}
FROM_IMPORTS = {("caller_import", "strtol"): 40, ("caller_sorting", "qsort"): 1, ("caller_throwing", "strlen"): 20}
BUILDS = [
    ("gcc", ["-O2", "-g"]),
    ("gcc", ["-O0", "-g", "-fno-plt"]),
    ("gcc", ["-O2", "-g", "-fcf-protection=none", "-Wl,-z,now"]),
    ("zig", ["-O1", "-g"]),
    ("mingw", ["-O2", "-g", "-static"]),
]


def made_calls(trace: Path) -> list[dict[str, object]]:
    build_calls(open_trace(trace))
    return open_database(trace).rows(CALLS)


def counted(rows: list[dict[str, object]]) -> Counter[tuple[object, object]]:
    found: Counter[tuple[object, object]] = Counter()
    for row in rows:
        if str(row["caller"]).startswith("caller_"):
            # The C library has several names for some of its functions, and versions for some processors.
            target = re.sub(r"^__?|_(avx2|evex|evex512|sse2|rtm|avx2_rtm)$|_internal$", "", str(row["target"]))
            target = {"strtoll": "strtol", "isoc23_strtol": "strtol"}.get(target, target)
            found[row["caller"], target] += 1
    return found


@pytest.mark.parametrize(("compiler", "flags"), BUILDS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_call_that_leaves(compiler: str, flags: list[str], tmp_path: Path, plan_cache: Path) -> None:
    name = "call_sites.exe" if compiler == "mingw" else "call_sites"
    program = compile_program([TARGETS / "call_sites.cpp"], tmp_path / name, flags, compiler)
    trace = tmp_path / "trace"
    outcome = run_traced([program], trace, plan_cache, recording={"calls": "on", "functions": ["caller_*"]})
    assert (outcome.output, outcome.status) == ("6047973\n", 7)
    rows = made_calls(trace)
    found = counted(rows)
    inlined = {pair for pair in FROM_IMPORTS if not found[pair] and compiler == "mingw"}  # linked in, under other names
    expected = FROM_POINTERS | {pair: count for pair, count in FROM_IMPORTS.items() if pair not in inlined}
    assert {pair: found[pair] for pair in expected} == expected
    endings = {row["target"]: row["ended_by"] for row in rows if row["caller"] in ("caller_throwing", "caller_pointer")}
    assert endings["refused"] == UNWOUND
    assert endings["slow"] == endings["doubled"] == RETURNED
    (slow,) = [row for row in rows if row["target"] == "slow"]
    assert 29_000_000 < int(str(slow["duration_ns"])) < 2_000_000_000
    assert not slow["traced"]


def test_once_records_each_site_once_and_nothing_else(tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "call_sites.cpp"], tmp_path / "call_sites", ["-O1", "-g"])
    plain = run_plain([program])
    outcome = run_traced([program], tmp_path / "trace", plan_cache, recording={"calls": "once"})
    assert (outcome.output, outcome.status) == (plain.output, plain.status)
    rows = made_calls(tmp_path / "trace")
    found = counted(rows)
    assert found["caller_virtual", "Circle::area"] == 1  # the first one its site called
    assert found["caller_virtual", "Square::area"] == 0
    assert found["caller_import", "strtol"] == 1
    places = Counter((row["caller"], row["target"]) for row in rows)
    assert max(places.values()) <= 3  # of one caller several sites may call the same
    shown = callscope(["map", program, "--trace", tmp_path / "trace"], plan_cache)
    assert shown.status == 0, shown.errors
    assert "Circle::area" in shown.output


def test_coverage_and_reasons(plan_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSCOPE_CACHE", str(plan_cache))
    for program in ("bash", "git"):
        path = subprocess.run(["which", program], capture_output=True, text=True, check=True).stdout.strip()
        report = load_or_plan(path, scope=Scope("leaving")).read_report()
        assert report.calls.found > 1000
        assert report.calls.percent > 99
        assert all(skipped.reason for skipped in (*report.calls.skipped, *report.returns.skipped))
        alone = load_or_plan(path).read_report()
        # Call sites take only what room is left.
        assert (alone.entries.patched, alone.exits.patched) == (report.entries.patched, report.exits.patched)
        assert alone.calls.found == 0
