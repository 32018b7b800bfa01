"""`callscope record` on real programs: what passes through, what is recorded, what is said."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from callscope.recording.count import EventCounts, count_events
from callscope.recording.journal import summarise_journal
from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.tracing import tool_environment

MAIN = [sys.executable, "-c", "import sys; from callscope.cli.main import main; sys.exit(main())"]
KEPT = 4096
"""bytes of a trace that holds nothing are fewer than this many blocks"""


@dataclass(frozen=True)
class Recorder:
    """Runs `callscope` in a directory of its own."""

    directory: Path
    environment: dict[str, str]

    def start(self, *arguments: str | Path, **options: object) -> "subprocess.Popen[str]":
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        command = [*MAIN, *map(str, arguments)]
        return subprocess.Popen(command, cwd=self.directory, env=self.environment, **settings)  # type: ignore[call-overload,no-any-return]

    def run(self, *arguments: str | Path, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        command = [*MAIN, *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=100, input=stdin
        )

    def counts(self, trace: str) -> EventCounts:
        return count_events(self.directory / trace / "events")

    def session(self, trace: str) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.directory / trace / "session.json").read_text())
        return found


@pytest.fixture
def recorder(tmp_path: Path, plan_cache: Path) -> Recorder:
    directory = tmp_path / "work"
    directory.mkdir()
    return Recorder(directory, tool_environment(plan_cache))


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("counted") / "counted"
    return compile_program([TARGETS / "counted.c"], output, ["-O1", "-g"], "gcc" if have("gcc") else "zig")


def test_input_output_and_status_pass_through(recorder: Recorder) -> None:
    done = recorder.run("record", "sh", "-c", "cat; echo err >&2; exit 7", stdin="hello\n")
    assert (done.stdout, done.returncode) == ("hello\n", 7)
    assert done.stderr.startswith("err\ncallscope: sh.trace: ")
    assert recorder.session("sh.trace")["exit_status"] == 7
    assert recorder.session("sh.trace")["status"] == "complete"


def test_quiet(recorder: Recorder) -> None:
    done = recorder.run("record", "-q", "-o", "there", "--", "echo", "-q", "--", "x")
    assert (done.stdout, done.stderr, done.returncode) == ("-q -- x\n", "", 0)
    assert (recorder.directory / "there" / "session.json").exists()


def test_the_summary_has_the_figures_and_the_next_command(recorder: Recorder, counted: Path) -> None:
    lines = recorder.run("record", counted).stderr.splitlines()
    pattern = r"callscope: counted\.trace: [\d,]+ calls \([\d,]+ events\) of 1 thread in 1 process, \d+\.\d\d s, .*iB"
    assert re.fullmatch(pattern, lines[0])
    assert re.fullmatch(r"callscope: traced counted: \d+ functions, .* of entries, .* of returns, .*", lines[1])
    assert lines[-1].startswith("callscope: next: callscope report counted.trace")


def test_run_records_and_reports(recorder: Recorder, counted: Path) -> None:
    done = recorder.run("run", "-f", "*er", "--sort", "calls", counted, "calls", "3")
    assert done.returncode == 3
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["Total", "Self", "Calls"]
    assert [(row.split()[-1], row.split()[4]) for row in rows] == [("inner", "100"), ("outer", "10")]
    assert done.stderr.splitlines()[-1] == "callscope: next: callscope tree counted.trace"
    assert len(recorder.run("run", "-q", "-n", "1", "-f", "*er", counted).stdout.splitlines()) == 3


def test_what_the_kernel_started_has_no_call_site(recorder: Recorder, counted: Path) -> None:
    recorder.run("record", "-q", "-o", "sites.trace", counted, "calls", "0")
    calls = [json.loads(line) for line in recorder.run("calls", "sites.trace", "--format", "json").stdout.splitlines()]
    sites = {call["function"]: call["call_site"] for call in calls}
    assert sites["_start"] is None
    assert sites["main"].startswith("libc.so.6+0x")


def test_an_earlier_trace_is_kept(recorder: Recorder, counted: Path) -> None:
    for status in ("1", "2"):
        assert recorder.run("record", "-q", counted, "calls", status).returncode == int(status)
    assert recorder.session("counted.trace")["exit_status"] == 2
    assert recorder.session("counted.trace.old")["exit_status"] == 1


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (["-f", "inner"], 100),
        (["-f", "outer"], 10),
        (["-f", "*er"], 110),
        (["-f", "counted!inner", "-f", "counted!outer"], 110),
        (["-f", "*er", "-x", "inner"], 10),
        (["-x", "inner", "-f", "*er"], 10),
        (["-x", "counted!*"], 0),
        (["-f", "*er", "--max-depth", "1"], 10),
        (["-f", "*er", "--clock", "none"], 110),
        (["-f", "*er", "--keep-last", "4M"], 110),
    ],
)
def test_filters(recorder: Recorder, counted: Path, options: list[str], calls: int) -> None:
    done = recorder.run("record", *options, counted)
    assert done.returncode == 0, done.stderr
    assert recorder.counts("counted.trace").calls == calls
    assert recorder.counts("counted.trace").lost == 0


def test_addresses_and_files_exclude_too(recorder: Recorder, counted: Path) -> None:
    symbols = (
        subprocess.run(["readelf", "-sW", counted], capture_output=True, text=True).stdout if have("readelf") else ""
    )
    if not symbols:
        pytest.skip("readelf is not installed")
    address = next(line.split()[1] for line in symbols.splitlines() if line.endswith(" inner"))
    assert recorder.run("record", "-q", "-f", "*er", "-x", f"0x{address}", counted).returncode == 0
    assert recorder.counts("counted.trace").calls == 10
    (recorder.directory / "excludes").write_text(f"# slow\ncounted+0x{int(address, 16):x}\n")
    assert recorder.run("record", "-q", "-f", "*er", "--exclude-from", "excludes", counted).returncode == 0
    assert recorder.counts("counted.trace").calls in (10, 110)  # the name without symbols counts from the image's base


def test_a_rule_that_matched_nothing_is_named(recorder: Recorder, counted: Path) -> None:
    done = recorder.run("record", "-f", "inner", "-x", "nothing_like_it", counted)
    assert "--exclude nothing_like_it matched nothing" in done.stderr


def test_chosen_functions_are_counted(recorder: Recorder, counted: Path) -> None:
    done = recorder.run("record", "-f", "inner", "-f", "outer", counted)
    assert re.search(r"traced counted: 2 of \d+ functions chosen", done.stderr)


def test_children_are_followed_or_not(recorder: Recorder, counted: Path) -> None:
    assert recorder.run("record", "-q", "-f", "inner", counted, "fork").returncode == 0
    assert recorder.counts("counted.trace").calls == 101
    assert summarise_journal(recorder.directory / "counted.trace" / "journal").processes == 2
    assert recorder.run("record", "-q", "-f", "inner", counted, "exec").returncode == 0
    assert recorder.counts("counted.trace").calls == 100
    assert summarise_journal(recorder.directory / "counted.trace" / "journal").execs == 1


def test_no_follow(recorder: Recorder, counted: Path) -> None:
    assert recorder.run("record", "-q", "--no-follow", "-f", "inner", counted, "fork").returncode == 0
    assert recorder.counts("counted.trace").calls == 100
    assert recorder.run("record", "-q", "--no-follow", "-f", "inner", counted, "exec").returncode == 0
    assert recorder.counts("counted.trace").calls == 0


def test_programs_started_later_are_traced_as_themselves(recorder: Recorder, counted: Path) -> None:
    done = recorder.run("record", "-f", "inner", "sh", "-c", f"'{counted}'; '{counted}' calls 3")
    assert done.returncode == 3
    images = recorder.session("sh.trace")["images"]
    assert isinstance(images, list) and str(counted) in [image["path"] for image in images]
    assert recorder.counts("sh.trace").calls == 200


def test_libraries_are_traced_on_demand(recorder: Recorder) -> None:
    done = recorder.run("record", "-m", "libc.so.6", "-f", "malloc", "-f", "free", "ls", "/")
    images = recorder.session("ls.trace")["images"]
    assert isinstance(images, list) and [Path(image["path"]).name for image in images] == ["libc.so.6"], done.stderr
    assert recorder.counts("ls.trace").calls > 0


def test_a_killed_program(recorder: Recorder, counted: Path) -> None:
    done = recorder.run("record", "-f", "inner", counted, "kill")
    assert done.returncode == 128 + signal.SIGKILL
    assert "ended by SIGKILL" in done.stderr
    assert recorder.counts("counted.trace").calls == 100


def test_children_that_run_on_are_named_and_recorded(recorder: Recorder, counted: Path) -> None:
    # Not through pipes: the child holds them open.
    with (recorder.directory / "errors").open("w") as errors:
        process = recorder.start("record", "-f", "inner", counted, "leave", stdout=errors, stderr=errors)
        assert process.wait(60) == 0
    assert "still running: counted (process " in (recorder.directory / "errors").read_text()
    deadline = time.monotonic() + 20
    while recorder.counts("counted.trace").calls < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert recorder.counts("counted.trace").calls == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_recorder_goes_to_the_program(recorder: Recorder, counted: Path, number: int) -> None:
    process = recorder.start("record", counted, "signals", start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    expected = "interrupts 1 ended 0\n" if number == signal.SIGINT else "interrupts 0 ended 1\n"
    assert (output, process.returncode) == (expected, 3)
    assert "callscope: counted.trace" in errors


def test_ctrl_c_reaches_the_program_once(recorder: Recorder, counted: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(recorder.directory)
        os.execve(sys.executable, [*MAIN, "record", str(counted), "signals"], recorder.environment)
    output = read_until(terminal, b"ready")
    os.write(terminal, b"\x03")
    output += read_until(terminal, b"or: callscope tree")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    os.close(terminal)
    assert b"interrupts 1 ended 0" in output
    assert recorder.session("counted.trace")["status"] == "complete"


def read_until(terminal: int, text: bytes) -> bytes:
    """What a terminal shows until `text` has come, or half a minute has passed."""
    output, deadline = b"", time.monotonic() + 30
    while text not in output and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                output += os.read(terminal, 65536)
            except OSError:
                break
    return output


def test_signals_ignored_before_stay_ignored(recorder: Recorder) -> None:
    process = recorder.start(
        "record",
        "-q",
        "sh",
        "-c",
        "kill -HUP $$; echo alive",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.communicate(timeout=60)[0] == "alive\n"


def test_a_broken_pipe_ends_the_program_as_usual(recorder: Recorder) -> None:
    process = recorder.start("record", "yes")
    assert process.stdout is not None and process.stdout.readline() == "y\n"
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE


def test_open_descriptors_are_inherited(recorder: Recorder) -> None:
    read_end, write_end = os.pipe()
    code = f"import os; os.write({write_end}, b'through')"
    process = recorder.start("record", "-q", sys.executable, "-c", code, pass_fds=(write_end,))
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        assert pipe.read() == "through"
    process.communicate(timeout=60)


def test_the_environment_has_only_what_the_agent_needs(recorder: Recorder, counted: Path) -> None:
    plain = subprocess.run([counted, "environment"], env=recorder.environment, capture_output=True, text=True)
    traced = recorder.run("record", counted, "environment")
    added = set(traced.stdout.splitlines()) - set(plain.stdout.splitlines())
    assert {line.split("=")[0] for line in added} <= {"LD_PRELOAD", "CALLSCOPE_SESSION", "CALLSCOPE_RECORDER"}
    assert not set(plain.stdout.splitlines()) - set(traced.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["no-such-program"], 1, "on the PATH"),
        (["./no-such-program"], 1, "there is no program"),
        (["/"], 1, "is a directory"),
        (["--keep-last", "lots", "ls"], 2, "is not a size"),
        (["--exclude-from", "missing", "ls"], 2, "cannot read the exclude file"),
        (["-f", "!", "ls"], 2, "no function rule"),
        (["-o", "precious", "ls"], 2, "is no trace"),
        (["-o", "precious/thesis/trace", "ls"], 1, "cannot make the trace"),
    ],
)
def test_mistakes_get_one_line(recorder: Recorder, arguments: list[str], status: int, message: str) -> None:
    (recorder.directory / "precious").mkdir()
    (recorder.directory / "precious" / "thesis").write_text("x")
    done = recorder.run("record", *arguments)
    assert done.returncode == status
    assert re.fullmatch(r"callscope: error: [^\n]*\n", done.stderr) and message in done.stderr
    assert done.stdout == ""
    assert [path.name for path in recorder.directory.iterdir()] == ["precious"]


def test_a_bare_command_line_is_wrong_usage(recorder: Recorder) -> None:
    assert recorder.run("record").returncode == 2
    assert recorder.run("record", "--no-such-option", "ls").returncode == 2


def test_an_interrupted_recorder_leaves_a_readable_trace(recorder: Recorder, counted: Path) -> None:
    process = recorder.start("record", counted, "signals")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    main_pid = recorder.session("counted.trace")["main_pid"]
    process.kill()
    process.wait()
    assert isinstance(main_pid, int)
    os.kill(main_pid, signal.SIGTERM)
    assert "ended 1" in process.stdout.read()
    session = recorder.session("counted.trace")
    assert session["status"] == "recording" and session["images"]
    assert recorder.counts("counted.trace").calls > 0


def test_two_recordings_do_not_share_a_trace(recorder: Recorder, counted: Path) -> None:
    first = recorder.start("record", "-o", "t", counted, "signals")
    assert first.stdout is not None and first.stdout.readline() == "ready\n"
    second = recorder.run("record", "-o", "t", counted)
    assert second.returncode == 2 and "being recorded" in second.stderr
    first.terminate()
    first.communicate(timeout=60)
    assert recorder.run("record", "-q", "-o", "t", counted).returncode == 0


def test_from_python(recorder: Recorder, counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import callscope
result = callscope.record([{str(counted)!r}, "calls", "4"], functions=["inner"], output="t")
print(result.exit_status, result.counts.calls, result.trace.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=recorder.directory, env=recorder.environment, capture_output=True, text=True
    )
    assert done.stdout == "4 100 t\n", done.stderr


def test_a_directory_with_spaces_and_colons(tmp_path: Path, plan_cache: Path, counted: Path) -> None:
    directory = tmp_path / "a b:c"
    directory.mkdir()
    odd = Recorder(directory, tool_environment(plan_cache))
    program = directory / "my program"
    program.write_bytes(counted.read_bytes())
    program.chmod(0o755)
    assert odd.run("record", "-q", "-f", "inner", "./my program").returncode == 0
    assert odd.counts("my program.trace").calls == 100


Make = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Make:
    def make(text: str) -> Path:
        path = tmp_path / "script"
        path.write_text(text)
        path.chmod(0o755)
        return path

    return make


def test_scripts_are_traced_through_their_interpreter(recorder: Recorder, script: Make) -> None:
    done = recorder.run("record", script("#!/bin/sh\necho $0 $1\n"), "x")
    assert done.stdout.endswith("script x\n") and done.returncode == 0
    assert recorder.counts("script.trace").calls > 100
