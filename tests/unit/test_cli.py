"""The command line: errors in one line, formats, files, terminals and pipes."""

import importlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from callscope.cli import options
from callscope.cli.commands import COMMANDS
from callscope.cli.main import callscope_command, main
from callscope.cli.output import escape_json
from callscope.cli.progress import line as progress_line
from callscope.cli.progress import progress_bar
from callscope.errors import TraceError, UsageError
from tests.builders.calls_table import Call, Thread, TraceBuilder, open_built, sample

ROOT = Path(__file__).resolve().parents[2]
READING = ("report", "tree", "calls", "info", "modules")
DRIVER = """
import sys
from pathlib import Path
from callscope.reports import database
from tests.builders.calls_table import open_built
database.open_database = lambda path, progress=None: open_built(None, path)
from callscope.cli.main import main
sys.exit(main())
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample().write(tmp_path_factory.mktemp("traces") / "git.trace")


@pytest.fixture(scope="module")
def long_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    roots = tuple(Call(f"function_{index % 50}", 100, (Call("inner", 10),)) for index in range(5000))
    return TraceBuilder([Thread(1, roots)]).write(tmp_path_factory.mktemp("traces") / "long.trace")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command line in this process: exit status, output, errors."""
    monkeypatch.setattr("callscope.reports.database.open_database", lambda path, progress=None: open_built(None, path))

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield call


def spawn(*arguments: object, **options: object) -> "subprocess.Popen[bytes]":
    """Run a command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **options.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.Popen([sys.executable, "-c", DRIVER, *map(str, arguments)], env=environment, **options)  # type: ignore[call-overload, no-any-return]


def in_terminal(*arguments: object, columns: int = 80, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command line in a terminal of its own; exit status and what the terminal got."""
    master, slave = pty.openpty()
    size = {"LINES": "24", "COLUMNS": str(columns), "TERM": "xterm", "PAGER": "", "NO_COLOR": "", **(env or {})}
    process = spawn(*arguments, stdin=slave, stdout=slave, stderr=slave, env=size, start_new_session=True)
    os.close(slave)
    received = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the last writer has closed it
            break
        if not data:
            break
        received += data
    os.close(master)
    return process.wait(), received.decode().replace("\r\n", "\n")


def test_the_version_is_said_quickly() -> None:
    best = 9.0
    for _ in range(5):
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "callscope", "--version"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
        )
        best = min(best, time.monotonic() - begin)
    assert re.fullmatch(r"callscope \d+\.\d+\.\d+\n", done.stdout) and done.returncode == 0
    assert best < 0.3  # a tenth of a second on an idle machine


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["nonsense"]])
def test_starting_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        f"from callscope.cli.main import main; main({arguments})\n"
        "print(sorted({'duckdb', 'pyarrow', 'numpy', 'lief', 'iced_x86', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_teaches(run: Run) -> None:
    status, text, _ = run("--help")
    assert status == 0 and run() == (0, text, "")
    assert "callscope record git log" in text
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary[:40])}", text, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, run: Run) -> None:
    assert run(name, "-h")[0] == 0
    command = callscope_command.get_command(click.Context(callscope_command), name)
    assert command is not None and command.help
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{name} {option.name} lacks a word"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repot"], "there is no command 'repot': did you mean 'report'?"),
        (["zzz"], "there is no command 'zzz': see callscope --help"),
        (["--nonsense"], "no such option"),
        (["report", "--sort", "beauty"], "see callscope report --help"),
        (["report", "--limit", "-1"], "'-1' is not a whole number from 0 on"),
        (["tree", "--depth", "0"], "'0' is not a whole number from 1 on"),
        (["tree", "--last", "many"], "'many' is not a whole number"),
        (["calls", "--min-duration", "soon"], "'soon' is not a time: write a number and ns, us, ms or s"),
        (["calls", "--thread", "x"], "'x' is not a valid integer"),
        (["calls", "--format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["info", "a", "b"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], message: str, run: Run, trace: Path) -> None:
    status, text, errors = run(*arguments)
    assert (status, text) == (2, "")
    assert errors.startswith("callscope: error: ") and errors.count("\n") == 1
    assert message in errors


@pytest.mark.parametrize("command", READING)
def test_without_a_trace_the_newest_here_is_read(
    command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(command)
    assert status == 2 and "there is no *.trace here: make one with callscope record PROGRAM" in errors
    new = TraceBuilder([Thread(1, (Call("newer", 5),))]).write(tmp_path / "a.trace")
    old = TraceBuilder([Thread(1, (Call("older", 5),))]).write(tmp_path / "b.trace")
    os.utime(new / "session.json", ns=(2_000, 2_000))
    os.utime(old / "session.json", ns=(1_000, 1_000))
    status, text, errors = run(command)
    assert (status, errors) == (0, "")
    if command in ("report", "tree", "calls"):
        assert "newer" in text and "older" not in text


@pytest.mark.parametrize("command", READING)
def test_json_is_one_document_or_lines(command: str, run: Run, trace: Path) -> None:
    status, text, errors = run(command, trace, "--format", "json")
    assert (status, errors) == (0, "")
    if command == "calls":
        assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
    else:
        assert isinstance(json.loads(text), dict if command == "info" else list)


def test_json_of_a_report_has_its_fields(run: Run, trace: Path) -> None:
    rows = json.loads(run("report", trace, "--format", "json", "--limit", "2")[1])
    assert len(rows) == 2
    assert rows[0]["function"] == "main" and rows[0]["total_ns"] == 1_559_780
    fields = "function module address file line calls total_ns self_ns average_ns min_ns max_ns p99_ns"
    assert list(rows[0]) == fields.split()


def test_options_reach_the_reports(run: Run, trace: Path) -> None:
    assert [row["function"] for row in json.loads(run("tree", trace, "-d", "1", "--format", "json")[1])] == [
        "main",
        *["work"] * 3,
    ]
    assert run("tree", trace, "--fold", "-f", "cmd_log", "-d", "2")[1].count("compare();") == 1
    assert (
        len(run("calls", trace, "--format", "json", "-f", "w*", "--min-duration", "20us", "-n", "3")[1].splitlines())
        == 3
    )
    assert run("calls", trace, "--thread", "1001", "--last", "1")[1].count("\n") == 2
    assert run("report", trace, "--process", "1000", "--sort", "name")[1].splitlines()[1].endswith("  cmd_log")
    assert run("modules", trace, "--process", "77")[0] in (0, 1)


def test_output_goes_to_a_private_new_file(run: Run, trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.txt"
    assert run("report", trace, "-o", file) == (0, "", "")
    first = file.read_text()
    assert first == run("report", trace)[1] == run("report", trace, "-o", "-")[1]
    assert file.stat().st_mode & 0o777 == 0o600
    status, _, errors = run("tree", trace, "-o", file)
    assert status == 2 and "exists: choose another name, or replace it with --force" in errors
    assert file.read_text() == first
    assert run("tree", trace, "-o", file, "--force")[0] == 0
    assert file.read_text() == run("tree", trace)[1]
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_file_is_whole_or_not_there(run: Run, trace: Path, tmp_path: Path) -> None:
    status, _, errors = run("calls", trace, "-f", "nonsense", "-o", tmp_path / "x")
    assert status == 1 and "no function called matches" in errors
    assert list(tmp_path.iterdir()) == []
    status, _, errors = run("calls", trace, "-o", tmp_path / "no/where")
    assert status == 1 and "cannot write to" in errors and errors.count("\n") == 1


def test_devices_are_written_and_stay(run: Run, trace: Path) -> None:
    assert run("report", trace, "-o", "/dev/null", "--force")[0] == 0
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_is_one_line(run: Run, long_trace: Path) -> None:
    status, _, errors = run("calls", long_trace, "-o", "/dev/full", "--force")
    assert (
        status == 1
        and errors == "callscope: error: cannot write to /dev/full: No space left on device; write elsewhere\n"
    )


def test_errors_of_reading_are_one_line(run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, progress: object = None) -> None:
        raise TraceError("the trace\nis \x1b[31m broken: mend it")

    monkeypatch.setattr("callscope.reports.database.open_database", broken)
    assert run("info", trace) == (1, "", "callscope: error: the trace is \\x1b[31m broken: mend it\n")


def test_bugs_are_one_line_unless_debugging(run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, progress: object = None) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("callscope.reports.database.open_database", broken)
    status, _, errors = run("info", trace)
    assert status == 1 and errors.count("\n") == 1 and "CALLSCOPE_DEBUG=1" in errors
    monkeypatch.setenv("CALLSCOPE_DEBUG", "1")
    assert "Traceback" in run("info", trace)[2]


def test_an_interrupt_is_status_130(run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, progress: object = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("callscope.reports.database.open_database", interrupted)
    status, text, errors = run("info", trace)
    assert (status, text) == (130, "") and not errors.strip()


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("command", ["calls", "tree"])
def test_a_reader_who_leaves_is_no_error(command: str, format: str, long_trace: Path) -> None:
    process = spawn(command, long_trace, "--format", format, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_a_pipe_gets_everything_plain(run: Run, long_trace: Path) -> None:
    text = run("calls", long_trace)[1]
    assert text.count("\n") == 10_001 and "\x1b" not in text


def test_a_terminal_gets_colour_and_its_width(trace: Path) -> None:
    status, text = in_terminal("tree", trace, columns=60)
    assert status == 0 and "\x1b[1mDuration" in text and "\x1b[2m/* main */" in text
    assert max(len(re.sub(r"\x1b\[\d*m", "", line)) for line in text.splitlines()) <= 60


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_declined(name: str, value: str, trace: Path) -> None:
    assert "\x1b" not in in_terminal("tree", trace, env={name: value})[1]


def test_more_than_a_screen_goes_to_the_pager(long_trace: Path, trace: Path, tmp_path: Path) -> None:
    pager = f"sed 's/^/paged: /' | tee {tmp_path / 'paged'} | tail -n 3"
    status, text = in_terminal("calls", long_trace, env={"PAGER": pager})
    assert status == 0 and text.count("\n") == 3
    paged = (tmp_path / "paged").read_text()
    assert paged.count("\n") == 10_001 and all(line.startswith("paged: ") for line in paged.splitlines())
    assert "paged" not in in_terminal("info", trace, env={"PAGER": pager})[1]
    assert in_terminal("report", long_trace, env={"PAGER": "no-such-pager"})[1].count("\n") == 52


def test_a_pager_that_is_left_early_is_no_error(long_trace: Path) -> None:
    status, text = in_terminal("calls", long_trace, env={"PAGER": "head -n 1"})
    assert status == 0 and text.count("\n") == 1


def test_progress_is_for_terminals_and_patience(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading") as tell:
        assert tell is None
    assert progress_line("reading x", 50, 200, 3.0) == "reading x  [######..................]  25%, 9 s left"
    assert progress_line("reading x", 5, 0, 3.0) == "reading x  3 s"
    assert len(progress_line("x" * 500, 199, 200, 1e5)) < 100


def test_durations() -> None:
    assert [options.parse_duration(text) for text in ("700ns", "10us", "1.5 ms", "2s", "3µs")] == [
        700, 10_000, 1_500_000, 2_000_000_000, 3_000,
    ]  # fmt: skip
    for text in ("", "10", "us", "-1us", "1e9s", "1h"):
        with pytest.raises(UsageError):
            options.parse_duration(text)


def test_json_on_a_terminal_steers_nothing() -> None:
    text = json.dumps({"name": "a\x9b\u202e\x7fé\U000e0001"}, ensure_ascii=False)
    escaped = escape_json(text)
    assert escaped.isprintable() and "é" in escaped
    assert json.loads(escaped) == json.loads(text)


def test_an_interrupted_listing_ends_at_once(long_trace: Path) -> None:
    process = spawn("calls", long_trace, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)  # it is writing to a pipe that nobody empties
    process.stdout.read(1 << 20)
    process.stdout.close()
    assert process.wait(timeout=20) == 130
    assert b"Traceback" not in process.stderr.read()


def test_the_python_interface(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import callscope

    api = importlib.import_module("callscope.api")
    monkeypatch.setattr(api, "open_database", lambda path: open_built(None, path))
    with callscope.open(trace) as tables:
        assert tables.calls.num_rows == 21
        assert tables.calls.column_names[:4] == ["call_id", "parent_id", "pid", "tid"]
        assert tables.calls.column_names[-2:] == ["ended_by", "via"]
        assert tables.functions.num_rows == 13
        assert tables.modules.num_rows == tables.processes.num_rows == 1
        assert tables.threads.column("tid").to_pylist() == [1000, 1001]
        assert tables.session["command"] == ["git", "log"]
        assert tables.sql("SELECT count(*) FROM calls WHERE function = 'walk'").fetchall() == [(3,)]
