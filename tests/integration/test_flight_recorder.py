"""A flight recorder: bounded whatever threads come and go, dumped while it runs, by a signal, and at a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import callscope
from callscope import format as records
from callscope.recording.directory import read_header
from callscope.trace.open import open_trace
from tests.builders.churn import bursts
from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.tracing import tool_environment

MAIN = [sys.executable, "-m", "callscope"]
MIB = 1 << 20
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("churn") / "churn"
    return compile_program([TARGETS / "churn.c"], output, ["-O1", "-pthread"], "gcc" if have("gcc") else "zig")


@pytest.fixture
def run(tmp_path: Path, plan_cache: Path) -> Run:
    """Runs callscope in the test's directory."""

    def call(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        settings = {"capture_output": True, "text": True, "timeout": 100} | options
        command = [*MAIN, *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=tool_environment(plan_cache), **settings)

    return call


def disk(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(("together", "size"), [(1, 16), (200, 64)])
def test_any_number_of_threads_takes_the_same_room(
    together: int, size: int, churn: Path, run: Run, tmp_path: Path
) -> None:
    done = run("record", "--keep-last", f"{size}M", "-o", "t", churn, "threads", 12000, together)
    assert (done.stdout, done.returncode) == ("done\n", 5), done.stderr
    assert disk(tmp_path / "t") < (size + 3) * MIB
    assert read_header(tmp_path / "t" / "events")["next_thread"] >= 12002
    trace = open_trace(tmp_path / "t")
    assert trace.events.lost == 0 and not trace.warnings
    assert "steady" in {thread.name for thread in trace.threads}, "a thread that lives keeps its records"
    known = {thread.number: thread for thread in trace.threads}
    for chunk in trace.events.chunks:
        thread = known[int(chunk["thread"])]
        assert thread.start_tsc is not None and thread.tid == chunk["tid"]
    ended, full = bursts(tmp_path / "t")
    assert ended > 50 and full >= ended - 2


def test_a_time_is_kept(churn: Path, run: Run, tmp_path: Path) -> None:
    assert run("record", "--keep-last", "500ms", "-o", "t", churn, "paced", "25").returncode == 5
    header = read_header(tmp_path / "t" / "events")
    assert header["keep_ticks"] and header["next_chunk"] > header["ring_used"], "chunks have been used again"
    with callscope.open(tmp_path / "t") as tables:
        first, last, bursts = tables.sql(
            "SELECT min(start_ns), max(start_ns), count(*) FROM calls WHERE function = 'burst' AND "
            "start_ns > (SELECT max(start_ns) FROM calls) - 500000000"
        ).fetchall()[0]
        ids = tables.sql("SELECT start_ns FROM calls WHERE function = 'burst' ORDER BY start_ns").fetchnumpy()
    assert last - first > 450e6 and bursts > 500 * 15
    assert np.diff(ids["start_ns"][-bursts:]).max() < 250e6, "nothing is missing of it"


def test_dumps_of_a_program_that_goes_on(churn: Path, run: Run, tmp_path: Path, plan_cache: Path) -> None:
    name = f"churn-{os.getpid()}"
    program = tmp_path / name
    program.hardlink_to(churn)
    command = [*MAIN, "record", "-q", "--keep-last", "4M", "-o", "t", str(program), "threads", "900000000", "3"]
    process = subprocess.Popen(command, cwd=tmp_path, env=tool_environment(plan_cache), stdout=subprocess.PIPE)
    try:
        wait_for(
            lambda: (tmp_path / "t" / "events").exists() and read_header(tmp_path / "t" / "events")["next_chunk"] > 30
        )
        for number in range(3):
            dumped = run("dump", name, *(["-o", "named"] if number == 2 else []))
            assert dumped.returncode == 0, dumped.stderr
        assert process.poll() is None
    finally:
        (tmp_path / "stop").touch()
        output, _ = process.communicate(timeout=100)
    assert (output, process.returncode) == (b"done\n", 5)
    for name in ("t-dump1", "t-dump2", "named"):
        trace = open_trace(tmp_path / name)
        assert trace.is_complete and [thread.name for thread in trace.threads].count("steady") == 1
        assert stat_modes(tmp_path / name) == {0o600, 0o700}
        ended, full = bursts(tmp_path / name)
        assert full > 10 and full >= ended - 2
        assert run("info", name).returncode == run("tree", name, "--depth", "2").returncode == 0


def wait_for(done: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stat_modes(directory: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in [directory, *directory.rglob("*")] if "calls" not in path.parts}


@pytest.mark.parametrize(
    ("mode", "said"), [("own", "got 2, was own"), ("ignored", "got 0, was ignored"), ("default", "got 0, was default")]
)
def test_dumped_on_a_signal(mode: str, said: str, churn: Path, run: Run, tmp_path: Path) -> None:
    done = run("record", "--keep-last", "4M", "--dump-on", "usr2", "-o", "t.trace", churn, mode)
    assert (done.stdout, done.returncode) == (f"{said}\ndone\n", 5)
    assert "callscope: dumped: t-dump1.trace\n" in done.stderr
    counts = [bursts(tmp_path / f"t-dump{number}.trace") for number in (1, 2)]
    assert [11 <= counts[0][0] <= 20, 31 <= counts[1][0] <= 40] == [True, True], counts
    assert all(ended == full for ended, full in counts)


def test_dumped_at_the_crash_of_a_child(churn: Path, run: Run, tmp_path: Path) -> None:
    done = run("record", "--keep-last", "4M", "-o", "t.trace", churn, "crash")
    assert (done.stdout, done.returncode) == (f"child ended by signal {int(signal.SIGSEGV)}\ndone\n", 5)
    assert run("crash", "t-crash1.trace").stdout.startswith("SIGSEGV"), done.stderr
    with callscope.open(tmp_path / "t-crash1.trace") as dumped, callscope.open(tmp_path / "t.trace") as rest:
        query = "SELECT count(*) FROM calls WHERE pid <> (SELECT pid FROM processes ORDER BY start_ns LIMIT 1)"
        assert dumped.processes.num_rows == 2
        assert dumped.sql(query).fetchall()[0][0] >= 11 > rest.sql(query).fetchall()[0][0] == 0


def test_calls_of_python_functions_are_dumped_too(run: Run, tmp_path: Path, plan_cache: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(
        "import os, time\ndef leaf(i): return i\ndef branch():\n    for i in range(10): leaf(i)\n"
        "for i in range(100000):\n    branch()\n    if os.path.exists('stop'): break\n"
        "    time.sleep(0.001)\nprint('done')\n"
    )
    command = [
        *MAIN,
        "record",
        "-q",
        "--python-only",
        "--keep-last",
        "4M",
        "-o",
        "p.trace",
        sys.executable,
        str(script),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=tool_environment(plan_cache), stdout=subprocess.PIPE)
    try:
        wait_for(
            lambda: (
                (tmp_path / "p.trace" / "session.json").exists()
                and b'"main_pid": null' not in (tmp_path / "p.trace" / "session.json").read_bytes()
            )
        )
        time.sleep(1.5)
        pid = int(open_trace(tmp_path / "p.trace").session["main_pid"])
        assert run("dump", pid).returncode == 0
    finally:
        (tmp_path / "stop").touch()
        output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"done\n", 0)
    with callscope.open(tmp_path / "p-dump1.trace") as tables:
        calls = dict(tables.sql("SELECT function, count(*) FROM calls GROUP BY function").fetchall())
    assert calls["branch"] > 10 and 10 * calls["branch"] - 10 <= calls["leaf"] <= 10 * calls["branch"]


def test_what_cannot_be_dumped_says_why(run: Run, tmp_path: Path) -> None:
    for word, reason in (
        ("4194304", "there is no process"),
        ("no-such-program", "no process is called"),
        (str(os.getpid()), "is not being recorded"),
    ):
        done = run("dump", word)
        assert done.returncode == 1 and reason in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        "--keep-last 4M --max-size 8M",
        "--keep-last 30s --max-size 1M",
        "--keep-last 30s --clock none",
        "--keep-last 0s",
        "--max-size 1K",
        "--dump-on USR2",
        "--keep-last 4M --dump-on KILL",
        "--keep-last 4M --dump-on USR2 --stacks-on USR2",
    ],
)
def test_options_that_make_no_sense(options: str, run: Run, tmp_path: Path) -> None:
    done = run("record", *options.split(), "true")
    assert done.returncode == 2 and done.stderr.startswith("callscope: error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_ring_of_time_grows_no_further_than_it_may(churn: Path, run: Run, tmp_path: Path) -> None:
    assert run("record", "--keep-last", "1h", "--max-size", "4M", "-o", "t", churn, "paced", "8").returncode == 5
    header = read_header(tmp_path / "t" / "events")
    assert header["ring_used"] == header["chunk_limit"] - 1 == 4 * MIB // header["chunk_bytes"]
    assert header["next_chunk"] > header["chunk_limit"] and not header["lost"]
    assert header["stopped"] == records.STOP_NONE
