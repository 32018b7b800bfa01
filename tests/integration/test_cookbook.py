"""Every query of docs/cookbook.md answers something true of a real trace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import callscope
from tests.builders.compilers import compile_program
from tests.builders.tracing import ROOT, run_traced

QUERIES = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/cookbook.md").read_text(), re.DOTALL)
SOURCE = """
#include <setjmp.h>
#include <unistd.h>
static jmp_buf back;
__attribute__((noinline)) int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
__attribute__((noinline)) void jump(void) { longjmp(back, 1); }
__attribute__((noinline)) void pause_at(int i) { if (i == 30) usleep(20000); else usleep(1); }
int main(void) {
    if (!setjmp(back)) jump();
    for (int i = 0; i < 60; i++) pause_at(i);
    return fib(12) != 144;
}
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[Any, ...]]]:
    directory = tmp_path_factory.mktemp("cookbook")
    (directory / "work.c").write_text(SOURCE)
    program = compile_program([directory / "work.c"], directory / "work", ["-O1", "-g", "-fno-optimize-sibling-calls"])
    outcome = run_traced([program], directory / "work.trace", directory / "cache")
    assert outcome.status == 0, outcome.errors
    trace: Path = directory / "work.trace"
    with callscope.open(trace) as tables:
        return [tables.sql(query).fetchall() for query in QUERIES]


def test_there_are_ten() -> None:
    assert len(QUERIES) == 10


def test_answers(answers: list[list[tuple[Any, ...]]]) -> None:
    slow, unusual, inside, often, unwound, _, deep, threads, at_once, lines = answers
    assert slow[0][0] == "pause_at"
    assert [row[0] for row in unusual if row[1] > 19e6] == ["pause_at"]
    assert [row[0] for row in inside] == ["jump", *["pause_at"] * 60, "fib"]
    assert ("main", "pause_at", 60.0) in often
    assert unwound == [("jump", "work", 1)]
    assert ("fib", 12) in deep
    assert len(threads) == 1
    assert [row[2] for row in at_once][-2:] == ["main", "pause_at"]
    assert sum(row[3] for row in lines) == 465 and all(row[0].endswith("work.c") for row in lines)


def test_tenths_are_complete(answers: list[list[tuple[Any, ...]]]) -> None:
    assert {tenth for _, tenth, _ in answers[5]} <= set(range(10))
    own = [calls for function, _, calls in answers[5] if function in ("main", "jump", "pause_at", "fib")]
    assert sum(own) == 1 + 1 + 60 + 465
