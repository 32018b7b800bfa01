"""What goes wrong while a program is recorded does not harm it, and the trace says what happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import callscope
from tests.builders.churn import bursts
from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.disks import small_disk
from tests.builders.tracing import tool_environment

MAIN = [sys.executable, "-m", "callscope"]
BURSTS = 15 * 10 * 500
"""of `churn paced 15`, which takes a second and a half at least"""


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("churn") / "churn"
    return compile_program([TARGETS / "churn.c"], output, ["-O1", "-pthread"], "gcc" if have("gcc") else "zig")


class Recording:
    """A recording of `churn paced 15` that has begun, in a directory of its own and with one for temporary files."""

    def __init__(
        self, churn: Path, directory: Path, cache: Path, *options: str, trace: Path | None = None, tenths: int = 15
    ) -> None:
        self.directory, self.trace = directory, trace or directory / "t.trace"
        self.temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # a short path, as a socket's must be
        self.environment = tool_environment(cache) | {"TMPDIR": str(self.temporary)}
        command = [*MAIN, "record", *options, "-o", str(self.trace), str(churn), "paced", str(tenths)]
        self.process = subprocess.Popen(
            command, cwd=directory, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: (self.trace / "events").exists() and (self.trace / "events").stat().st_blocks > 4096)
        self.program = int(json.loads((self.trace / "session.json").read_text())["main_pid"])

    def end(self) -> tuple[str, str, int]:
        output, errors = self.process.communicate(timeout=60)
        shutil.rmtree(self.temporary)
        return output, errors, self.process.returncode

    def callscope(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [*MAIN, *map(str, words)]
        return subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=60
        )


def wait_for(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_recorder_is_killed(churn: Path, tmp_path: Path, plan_cache: Path) -> None:
    recording = Recording(churn, tmp_path, plan_cache)
    recording.process.send_signal(signal.SIGKILL)
    output, _ = recording.process.communicate(timeout=60)  # to the end of the program, which has the pipe
    assert output == "done\n" and recording.process.returncode == -signal.SIGKILL
    assert bursts(recording.trace) == (BURSTS, BURSTS)
    info = recording.callscope("info", recording.trace)
    assert "recorder was killed" in info.stdout, info.stdout
    left = list(recording.temporary.iterdir())
    assert [path.name.startswith("callscope-run-") for path in left] == [True]
    assert recording.callscope("record", "-q", "true").returncode == 0
    assert list(recording.temporary.iterdir()) == [], "the next one tidies up"
    assert recording.callscope("record", "-q", "-o", recording.trace, "true").returncode == 0
    shutil.rmtree(recording.temporary)


def test_the_directory_is_removed(churn: Path, tmp_path: Path, plan_cache: Path) -> None:
    recording = Recording(churn, tmp_path, plan_cache)
    shutil.rmtree(recording.trace)
    output, errors, status = recording.end()
    assert (output, status) == ("done\n", 5), errors
    assert "was removed while it was recorded: what there was is in" in errors and "Traceback" not in errors
    assert bursts(recording.trace) == (BURSTS, BURSTS)
    assert "exit status 5" in recording.callscope("info", recording.trace).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.trace"]


def test_another_trace_is_where_the_removed_one_was(churn: Path, tmp_path: Path, plan_cache: Path) -> None:
    recording = Recording(churn, tmp_path, plan_cache)
    recording.trace.rename(tmp_path / "moved")
    recording.trace.mkdir()
    (recording.trace / "precious").touch()
    output, _, status = recording.end()
    assert (output, status) == ("done\n", 5)
    assert bursts(tmp_path / "t-restored1.trace") == (BURSTS, BURSTS)
    assert [path.name for path in recording.trace.iterdir()] == ["precious"]


def test_a_flight_recorders_directory_is_removed(churn: Path, tmp_path: Path, plan_cache: Path) -> None:
    recording = Recording(churn, tmp_path, plan_cache, "--keep-last", "8M", tenths=9000)
    shutil.rmtree(recording.trace)
    assert recording.callscope("dump", recording.program).stderr.count("was removed while it was recorded") == 1
    (tmp_path / "stop").touch()
    output, errors, status = recording.end()
    assert (output, status) == ("done\n", 5), errors
    ended, full = bursts(recording.trace)
    assert ended > 1000 and full >= ended - 1


def test_the_disk_is_full(churn: Path, tmp_path: Path, plan_cache: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        filler = disk / "filler"
        recording = Recording(churn, tmp_path, plan_cache, trace=disk / "t.trace")
        filler.write_bytes(bytes(2 << 20))
        with pytest.raises(OSError, match="No space"), filler.open("ab") as file:
            while True:
                file.write(bytes(65536))
                file.flush()
        output, errors, status = recording.end()
        assert (output, status) == ("done\n", 5), errors
        assert "the disk was full; the program went on" in errors and "Traceback" not in errors
        assert json.loads((recording.trace / "session.json").read_text())["exit_status"] == 5
        copy = tmp_path / "copy"
        shutil.copytree(recording.trace, copy)
    ended, full = bursts(copy)
    assert 1000 < ended < BURSTS and full >= ended - 1
    assert "since the disk was full" in recording.callscope("info", copy).stdout


@pytest.mark.parametrize("size", [0, 4096, 3 << 20])
def test_somebody_cuts_the_events_file(size: int, churn: Path, tmp_path: Path, plan_cache: Path) -> None:
    recording = Recording(churn, tmp_path, plan_cache)
    os.truncate(recording.trace / "events", size)
    output, errors, status = recording.end()
    assert (output, status) == ("done\n", 5) and "Traceback" not in errors, errors
    assert ("the events file was cut off" in errors) == (size == 0)
    if size > 1 << 20:
        ended, full = bursts(recording.trace)
        assert ended > 5000 and full >= ended - 1


def test_a_limit_on_the_size_of_files(churn: Path, tmp_path: Path, plan_cache: Path) -> None:
    """ulimit -f, with SIGXFSZ as it is by default: the trace is as large as it may be."""
    command = ["bash", "-c", f"ulimit -f 8192; exec {' '.join(MAIN)} record -o t.trace {churn} paced 15"]
    done = subprocess.run(
        command, cwd=tmp_path, env=tool_environment(plan_cache), capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("done\n", 5), done.stderr
    with callscope.open(tmp_path / "t.trace") as tables:
        assert tables.sql("SELECT count(*) FROM calls").fetchall()[0][0] > 100_000
    assert "recording stopped" in done.stderr


def test_the_directory_is_removed_while_a_part_of_a_program_is_recorded(tmp_path: Path, plan_cache: Path) -> None:
    code = (
        "import callscope, shutil\ndef leaf(): pass\nwith callscope.trace('x.trace'):\n"
        "    for i in range(100): leaf()\n"
        "    shutil.rmtree('x.trace')\nprint('done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=tool_environment(plan_cache), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
    with callscope.open(tmp_path / "x.trace") as tables:
        assert tables.sql("SELECT count(*) FROM calls WHERE function = 'leaf'").fetchall() == [(100,)]
