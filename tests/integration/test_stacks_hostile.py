"""Call stacks where things go wrong: overflows, smashed frames, files that are gone or damaged; other namespaces."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callscope.reports.stacks import Stacks, ends
from callscope.trace.open import Trace, open_trace
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import run_traced

Record = Callable[..., Trace]
Found = dict[int, tuple[list[tuple[str | None, str | None]], str | None]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile")
    return compile_program([TARGETS / "captures_hostile.c"], directory / "hostile", ["-O2", "-g"])


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return build(tmp_path / "libone.so", "one")


def build(path: Path, name: str) -> Path:
    flags = ["-O2", "-g", "-shared", "-fPIC", f"-DNAME=inside_{name}", "-Wl,--build-id"]
    return compile_program([TARGETS / "captures_library.c"], path, flags)


@pytest.fixture
def record(tmp_path: Path, plan_cache: Path) -> Record:
    def run(*command: str | Path, **recording: Any) -> Trace:
        recording = {"modules": ("none",), "python": "off"} | recording
        outcome = run_traced(command, tmp_path / "stacks.trace", plan_cache, 120, recording=recording)
        assert outcome.status == 0, outcome.errors
        assert outcome.trace is not None
        return open_trace(outcome.trace)

    return run


def stacks_of(trace: Trace) -> Found:
    """tag -> (function, module) from the innermost, why it ends early."""
    return {
        one.tag: ([(frame.function, frame.module) for frame in group.frames], ends(group))
        for one, group in Stacks(trace).each()
    }


def names(stack: list[tuple[str | None, str | None]]) -> list[str | None]:
    return [name for name, _ in stack]


def test_an_overflow(program: Path, record: Record) -> None:
    found = stacks_of(record(program, "overflow"))
    stack, why = found[11]
    inner = names(stack)
    assert inner[0] == "on_overflow" and why is not None and "deeper" in why and len(stack) == 512
    assert inner[inner.index("overflow") :] == ["overflow"] * (512 - inner.index("overflow"))
    # What was remembered of the overflow is of no use to the next.
    stack, why = found[1]
    assert "main" in names(stack[:2]) and why is None


def test_smashed_return_addresses(program: Path, record: Record) -> None:
    found = stacks_of(record(program, "smash"))
    for tag in range(6):
        stack, why = found[tag]
        assert names(stack)[0] == "smashed" and len(stack) <= 3
        assert "main" not in names(stack) and why is not None and "breaks off" in why
        stack, why = found[100 + tag]
        assert names(stack)[:2] == ["back", "main"] and why is None


def test_another_namespace(program: Path, library: Path, record: Record) -> None:
    found = stacks_of(record(program, "namespace", library))
    for tag in (1, 2):
        stack, why = found[tag]
        assert stack[:3] == [("back", "hostile"), ("library_calls", "libone.so"), ("main", "hostile")] and why is None


def test_a_file_that_is_deleted(program: Path, library: Path, record: Record, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.copy(library, kept)
    trace = record(program, "replace", library)
    ((name, module), why) = stacks_of(trace)[1][0][1], stacks_of(trace)[1][1]
    assert why is None and module == "libone.so" and name is not None and name.startswith("libone.so+0x")
    assert any("libone.so is not here" in warning for warning in trace.warnings)
    ((_, group),) = Stacks(trace, [kept]).each()
    assert group.frames[1].function == "library_calls"


def test_a_file_that_is_replaced(program: Path, library: Path, record: Record, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.copy(library, kept)
    other = build(tmp_path / "other.so", "another_one_with_a_longer_name")
    trace = record(program, "replace", library, other)
    name, module = stacks_of(trace)[1][0][1]
    assert module == "libone.so" and name is not None and name.startswith("libone.so+0x")
    assert any("libone.so is not the file that was loaded" in warning for warning in trace.warnings)
    ((_, group),) = Stacks(trace, [kept]).each()
    assert group.frames[1].function == "library_calls"


def test_paths_of_other_alphabets(program: Path, record: Record, tmp_path: Path) -> None:
    directory = tmp_path / "Bibliothèque 図書館"
    directory.mkdir()
    copy = shutil.copy(program, directory / "Πρόγραμμα")
    library = build(directory / "libбиблиотека.so", "one")
    stack, why = stacks_of(record(copy, "load", library))[1]
    modules = [("back", "Πρόγραμμα"), ("library_calls", "libбиблиотека.so"), ("main", "Πρόγραμμα")]
    assert stack[:3] == modules and why is None


def test_damaged_unwind_tables(program: Path, library: Path, record: Record, plan_cache: Path, tmp_path: Path) -> None:
    """Refused, or they lead astray; the program goes on in any case, and every stack begins where it was captured."""
    record(program, "load", library)
    tables = sorted(table for table in plan_cache.rglob("*.unwind") if table.stat().st_size < 30_000)  # made in no time
    assert tables
    chance = random.Random(3)
    whole = {table: table.read_bytes() for table in tables}
    try:
        for turn in range(5):
            for table, data in whole.items():
                damaged = bytearray(data)
                for _ in range(1 + 100 * turn):
                    damaged[chance.randrange(len(damaged))] = chance.randrange(256)
                table.write_bytes(damaged if turn % 3 else damaged[: chance.randrange(len(damaged))])
            shutil.rmtree(tmp_path / "stacks.trace")
            found = stacks_of(record(program, "load", library))
            assert names(found[1][0])[0] == "back"
    finally:
        for table, data in whole.items():
            table.write_bytes(data)
