"""What `callscope record` says at the end."""

from dataclasses import replace
from pathlib import Path

import pytest

from callscope.patching.cache import PlanFiles
from callscope.patching.report import Coverage, PlanReport, Skipped
from callscope.recording.count import EventCounts
from callscope.recording.journal import JournalSummary
from callscope.recording.options import RecordOptions
from callscope.recording.plans import PlannedImage
from callscope.recording.record import RecordResult
from callscope.recording.summary import size_text, summary_lines
from callscope.recording.survivors import Survivor

COUNTS = EventCounts(calls=1234567, sites=0, events=2469130, lost=0, threads=3, exact=True, wrapped=False)


def image(path: str, functions: int, number: int = 1) -> PlannedImage:
    coverage = Coverage(functions - 1, [Skipped("f", 0, "too short")])
    none = Coverage(0, [])
    report = PlanReport(path, "", functions, coverage, coverage, none, none, none, none, 1.0)
    files = PlanFiles(Path("p"), Path("f"), Path("r"), b"", functions, 1.0, False)
    return PlannedImage(path, path, files, number, report)


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordResult:
    monkeypatch.chdir(tmp_path)
    return RecordResult(
        options=RecordOptions(("git", "log")),
        trace=tmp_path / "git.trace",
        exit_status=0,
        seconds=1.234,
        counts=COUNTS,
        journal=JournalSummary(processes=2, execs=1),
        size=3 << 20,
        images=[image("/usr/bin/git", 2000)],
    )


def test_the_usual_case(result: RecordResult) -> None:
    assert summary_lines(result) == [
        "git.trace: 1,234,567 calls (2,469,130 events) of 2 threads in 2 processes, 1.23 s, 3.0 MiB",
        "traced git: 2,000 functions, 99.9 % of entries, 99.9 % of returns, 100.0 % of tail jumps",
        "next: callscope report git.trace    or: callscope tree git.trace",
    ]


def test_run_points_past_the_report(result: RecordResult) -> None:
    assert summary_lines(result, reported=True)[-1] == "next: callscope tree git.trace"


@pytest.mark.parametrize(
    ("status", "journal", "said"),
    [
        (139, JournalSummary(processes=1, crashes=1), "the program was ended by SIGSEGV: callscope crash "),
        (139, JournalSummary(processes=1, handled={11}), "the program was ended by SIGSEGV: callscope crash "),
        (137, JournalSummary(processes=1, handled={11}), "the program was ended by SIGKILL\n"),
        (7, JournalSummary(processes=2, crashes=1), "a process crashed: callscope crash "),
    ],
)
def test_a_crash_has_a_report(status: int, journal: JournalSummary, said: str, result: RecordResult) -> None:
    assert said in "\n".join(summary_lines(replace(result, exit_status=status, journal=journal)))


def test_everything_that_went_wrong_is_said(result: RecordResult) -> None:
    journal = JournalSummary(processes=1, notes=["the events file is full"], refused={"/lib/a.so": 2})
    wrong = replace(
        result,
        exit_status=139,
        counts=replace(COUNTS, lost=7, wrapped=True, exact=False),
        journal=journal,
        rejected=[("/lib/b.so", "no code")],
        unmatched=["--function x"],
        survivors=[Survivor(42, "daemon")],
        chosen={1: 10},
    )
    text = "\n".join(summary_lines(wrong))
    for part in (
        "about 1,234,567 calls",
        "ended by SIGSEGV",
        "10 of 2,000 functions chosen",
        "lost: 7 events",
        "the oldest events made room",
        "/lib/a.so: 2 patches left out",
        "the events file is full",
        "--function x matched nothing",
        "not traced: /lib/b.so: no code",
        "still running: daemon (process 42)",
    ):
        assert part in text


def test_a_program_that_no_agent_reached(result: RecordResult) -> None:
    silent = replace(result, journal=JournalSummary(), counts=replace(COUNTS, calls=0, events=0, threads=0))
    assert any(line.startswith("nothing was recorded") for line in summary_lines(silent))


def test_a_door_to_libraries_gets_a_hint(result: RecordResult) -> None:
    journal = JournalSummary(
        processes=1, untraced=["/lib/libpython3.11.so", "/lib64/ld-linux-x86-64.so.2", "/lib/libc.so.6"]
    )
    door = replace(result, journal=journal, images=[image("/usr/bin/python3", 8)])
    hint = "the program has only 8 functions of its own: trace its libraries (libpython3.11.so, libc.so.6) with -m"
    assert hint in summary_lines(door)
    assert hint not in summary_lines(replace(door, options=RecordOptions(("python3",), modules=("main",))))


def test_long_lists_are_cut(result: RecordResult) -> None:
    many = replace(result, images=[image(f"/bin/p{n}", 100, n) for n in range(20)])
    lines = summary_lines(many)
    assert sum(line.startswith("traced p") for line in lines) == 8 and "and 12 more" in lines


def test_a_trace_elsewhere_is_named_whole(result: RecordResult) -> None:
    lines = summary_lines(replace(result, trace=Path("/some where/t")))
    assert lines[0].startswith("/some where/t: ") and "report '/some where/t'" in lines[-1]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (300 << 20, "300 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text
