"""Random programs log the true parent of every call; the rebuilt calls must agree: a sample here, all by `-m long`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.compilers import COMPILERS
from tests.builders.truth_run import FRAME_POINTERS, LEVELS, Cell, run_cell

LONG_SEEDS = range(100, 122)

SAMPLE = [
    Cell(1, "gcc", "-O2", FRAME_POINTERS[0]),
    Cell(2, "gcc", "-O0", FRAME_POINTERS[1]),
    Cell(3, "gcc", "-O3", FRAME_POINTERS[0], stripped=True),
    Cell(4, "gcc", "-Os", FRAME_POINTERS[0]),
    Cell(5, "gcc", "-O1", FRAME_POINTERS[1], stripped=True),
    Cell(120, "gcc", "-O2", FRAME_POINTERS[0], stripped=True),
    Cell(4, "zig", "-O2", FRAME_POINTERS[0], stripped=True),
    Cell(6, "zig", "-O0", FRAME_POINTERS[0]),
    Cell(7, "zig", "-O3", FRAME_POINTERS[1]),
    Cell(8, "zig", "-Os", FRAME_POINTERS[0], stripped=True),
    Cell(13, "gcc", "-O2", FRAME_POINTERS[0], clock="coarse"),
    Cell(14, "zig", "-O1", FRAME_POINTERS[0], calls=True, clock="coarse"),
    Cell(9, "gcc", "-O2", FRAME_POINTERS[0], calls=True),
    Cell(10, "zig", "-O0", FRAME_POINTERS[0], calls=True),
    Cell(11, "gcc", "-O3", FRAME_POINTERS[1], stripped=True, calls=True),
    Cell(12, "zig", "-Os", FRAME_POINTERS[0], calls=True),
]


def judge(cell: Cell, directory: Path, cache: Path, record_property: Callable[[str, object], None]) -> None:
    verdict = run_cell(cell, directory, cache)
    record_property("truth", [verdict.calls, verdict.wrong_parents, verdict.wrong_endings, verdict.skipped])
    assert verdict.good, f"{cell}: {verdict}\n    kept in {directory}"
    assert verdict.calls > 10_000
    assert verdict.skipped < (verdict.calls + verdict.skipped) / 6


@pytest.mark.parametrize("cell", SAMPLE, ids=str)
def test_every_parent_and_ending_is_true(
    cell: Cell, tmp_path: Path, plan_cache: Path, record_property: Callable[[str, object], None]
) -> None:
    judge(cell, tmp_path, plan_cache, record_property)


@pytest.mark.long
@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("frame_pointer", FRAME_POINTERS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("seed", LONG_SEEDS)
def test_matrix(
    seed: int,
    compiler: str,
    level: str,
    frame_pointer: str,
    calls: bool,
    tmp_path: Path,
    plan_cache: Path,
    record_property: Callable[[str, object], None],
) -> None:
    cell = Cell(seed, compiler, level, frame_pointer, stripped=seed % 3 == 0, calls=calls)
    judge(cell, tmp_path, plan_cache, record_property)
