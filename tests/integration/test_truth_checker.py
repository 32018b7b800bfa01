"""The judge judged: random programs do the same under every compiler, and the checker finds errors of a trace."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.builders import truth
from tests.builders.compilers import compile_program
from tests.builders.random_program import Program, random_program
from tests.builders.truth import ENDINGS, Patched, Section, TracedThread, Verdict, compare

SEED = 4  # has threads, a timer, signals, coroutines


@pytest.fixture(scope="module")
def program() -> Program:
    return random_program(SEED)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, program: Program) -> Path:
    directory = tmp_path_factory.mktemp("random")
    (directory / "program.cpp").write_text(program.source)
    return directory


def run(directory: Path, compiler: str, flags: list[str]) -> tuple[str, list[Section], Path]:
    binary = compile_program([directory / "program.cpp"], directory / f"{compiler}{''.join(flags)}", flags, compiler)
    log = directory / f"{binary.name}.truth"
    done = subprocess.run([binary, log], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout, truth.read_truth(log), binary


@pytest.fixture(scope="module")
def plain(directory: Path) -> tuple[str, list[Section], Path]:
    return run(directory, "gcc", ["-O0"])


def contents(sections: list[Section]) -> list[tuple[list[int], ...]]:
    """The main logs without the ids of processes and threads, in the order the threads began."""
    main = sorted((s for s in sections if s.stream == truth.MAIN_STREAM), key=lambda section: section.tid)
    return [(s.functions.tolist(), s.parents.tolist(), s.ends.tolist()) for s in main]


def as_threads(sections: list[Section], addresses: dict[int, int]) -> list[TracedThread]:
    """The trace a perfect tracer would give, tail calls never optimised."""
    of_number = {number: address for address, number in addresses.items()}
    threads = []
    for section in sections:
        if section.stream == truth.MAIN_STREAM:
            functions = np.array([of_number[int(number)] for number in section.functions])
            fresh = np.zeros(len(section.functions), bool)
            ended = [int(bits).bit_length() - 1 for bits in truth.allowed_endings(section, fresh)]
            threads.append(TracedThread(section.pid, section.tid, functions, section.parents.copy(), np.array(ended)))
    return threads


def judge(sections: list[Section], threads: list[TracedThread], program: Program, binary: Path) -> Verdict:
    addresses = truth.logged_addresses(binary, program)
    everything = frozenset(range(len(program.names)))
    main = [section for section in sections if section.stream == truth.MAIN_STREAM]
    return compare(main, threads, program, addresses, Patched(everything, everything, everything))


@pytest.mark.parametrize(("compiler", "level"), [("gcc", "-O2"), ("gcc", "-Os"), ("zig", "-O0"), ("zig", "-O3")])
def test_programs_do_not_depend_on_the_compiler(
    directory: Path, plain: tuple[str, list[Section], Path], compiler: str, level: str
) -> None:
    output, sections, _ = run(directory, compiler, [level])
    assert output == plain[0]
    assert contents(sections) == contents(plain[1])


def test_seeds_give_different_programs_and_the_same_seed_the_same() -> None:
    assert random_program(7).source == random_program(7).source
    assert random_program(7).source != random_program(8).source


def test_every_kind_of_ending_occurs(plain: tuple[str, list[Section], Path]) -> None:
    ends = np.concatenate([section.ends for section in plain[1]])
    assert set(np.unique(ends)) >= {truth.UNWOUND, truth.RETURNED, truth.TAILED, truth.FINISHED}
    assert {section.stream for section in plain[1]} == {truth.MAIN_STREAM, truth.SIGNAL_STREAM}
    assert 10_000 < len(ends) < 60_000


def test_perfect_trace_is_good(plain: tuple[str, list[Section], Path], program: Program) -> None:
    _, sections, binary = plain
    threads = as_threads(sections, truth.logged_addresses(binary, program))
    verdict = judge(sections, threads, program, binary)
    assert verdict.good, verdict
    assert verdict.calls == sum(len(s.functions) for s in sections if s.stream == truth.MAIN_STREAM)


def test_unlogged_callers_between_do_no_harm(plain: tuple[str, list[Section], Path], program: Program) -> None:
    _, sections, binary = plain
    threads = as_threads(sections, truth.logged_addresses(binary, program))
    between = []
    for thread in threads:
        count = len(thread.parents)  # before every call an unlogged one that makes it
        parents = np.empty(2 * count, np.int64)
        parents[0::2] = np.where(thread.parents >= 0, 2 * thread.parents + 1, -1)
        parents[1::2] = np.arange(count) * 2
        addresses = np.full(2 * count, 1, np.int64)
        addresses[1::2] = thread.addresses
        between.append(replace(thread, parents=parents, addresses=addresses, ended=np.repeat(thread.ended, 2)))
    verdict = judge(sections, between, program, binary)
    assert verdict.good, verdict


@pytest.mark.parametrize("at", [1, 777, -1])
def test_one_wrong_parent_is_found(plain: tuple[str, list[Section], Path], program: Program, at: int) -> None:
    _, sections, binary = plain
    threads = as_threads(sections, truth.logged_addresses(binary, program))
    main = threads[-1]
    calls = np.flatnonzero(main.parents > 0)
    main.parents[calls[at]] = main.parents[main.parents[calls[at]]]
    assert judge(sections, threads, program, binary).wrong_parents == 1


def test_one_wrong_ending_is_found(plain: tuple[str, list[Section], Path], program: Program) -> None:
    _, sections, binary = plain
    threads = as_threads(sections, truth.logged_addresses(binary, program))
    ended = threads[0].ended
    ended[np.flatnonzero(ended == ENDINGS.index("return"))[5]] = ENDINGS.index("unwound")
    ended[np.flatnonzero(ended == ENDINGS.index("unwound"))[-1]] = ENDINGS.index("return")
    assert judge(sections, threads, program, binary).wrong_endings == 2


@pytest.mark.parametrize("change", ["lost", "extra", "swapped", "no thread", "foreign thread"])
def test_wrong_counts_are_found(plain: tuple[str, list[Section], Path], program: Program, change: str) -> None:
    _, sections, binary = plain
    threads = as_threads(sections, truth.logged_addresses(binary, program))
    thread = threads[0]
    if change in ("lost", "extra"):
        count = len(thread.parents)
        order = np.arange(count - 1) if change == "lost" else np.append(np.arange(count), count - 1)
        threads[0] = replace(
            thread, addresses=thread.addresses[order], parents=thread.parents[order], ended=thread.ended[order]
        )
    elif change == "swapped":
        other = np.flatnonzero(thread.addresses != thread.addresses[9])[0]
        thread.addresses[[9, other]] = thread.addresses[[other, 9]]
    elif change == "no thread":
        del threads[0]
    else:
        threads.append(replace(thread, tid=thread.tid + 100000))
    assert judge(sections, threads, program, binary).problems
