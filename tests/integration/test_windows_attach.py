"""Attaching to Windows programs that run, again and again."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from callscope.recording.wine import find_wine
from tests.builders.tracing import callscope
from tests.builders.windows import Windows, calls_of, compile_windows, lacking

pytestmark = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")
ROUNDS = 9
"""More than the agent has places for the files of sessions."""


@pytest.fixture
def running(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program of a name of its own that calls fib(12), which is 465 calls, every millisecond."""
    program = windows.plugin.with_name("again.exe")
    shutil.copy(windows.programs["mingw"], program)
    for name, value in windows.environment.items():
        monkeypatch.setenv(name, value)
    command = [find_wine(), str(program), "sleep", "120"]
    with subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\r\n"
        yield program
        assert process.poll() is None
        process.kill()


def test_attach_again_after_detaching(running: Path, windows: Windows, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        trace = tmp_path / str(number)
        only = ["-f", "fib"] if number % 2 else []
        words: list[str | Path] = ["attach", running.name, "--duration", "200ms", "-o", trace, *only]
        outcome = callscope(words, windows.cache)
        assert outcome.status == 0, outcome.errors
        assert calls_of(trace, running, "fib") > 465
        assert ("1 of" in outcome.errors) == bool(only), outcome.errors
        assert "left out" not in outcome.errors  # its own code was there again


def test_a_traced_process_must_be_detached_first(running: Path, windows: Windows, tmp_path: Path) -> None:
    words: list[str | Path] = ["attach", running.name, "--leave", "-o"]
    assert callscope([*words, tmp_path / "a"], windows.cache).status == 0
    refused = callscope([*words, tmp_path / "b"], windows.cache)
    assert (refused.status, "traced already" in refused.errors) == (1, True), refused.errors
    assert callscope(["detach", running.name], windows.cache).status == 0
    assert callscope(["detach", running.name], windows.cache).status == 1
    assert callscope([*words, tmp_path / "b"], windows.cache).status == 0


LONGEST_PAUSE = 50_000
"""microseconds that attaching may stop a program of 1,000 functions"""
ATTACHMENTS = 5


@pytest.mark.long
def test_attaching_stops_a_program_for_50_ms_at_most(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program says how long it was held up. The best of several attachments: other programs hold it up, too."""
    program = compile_windows("windows_pauses.c", tmp_path / "pauses.exe")
    for name, value in windows.environment.items():
        monkeypatch.setenv(name, value)
    pauses = []
    for number in range(ATTACHMENTS):
        command = [find_wine(), str(program), "6"]
        with subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            words: list[str | Path] = [
                "attach",
                program.name,
                "--duration",
                "500ms",
                "-q",
                "-o",
                tmp_path / str(number),
            ]
            outcome = callscope(words, windows.cache)
            assert outcome.status == 0, outcome.errors
            pauses.append(max(int(line.split()[1]) for line in process.stdout))
        assert process.returncode == 0
    told = json.loads(callscope(["info", "--format", "json", tmp_path / "0"], windows.cache).output)
    assert told["modules"][0]["functions"] >= 1000
    assert min(pauses) <= LONGEST_PAUSE, pauses
