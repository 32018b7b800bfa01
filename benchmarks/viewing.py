"""A large trace of a real program, looked at: timeline at every zoom, reports, exports. Each at most 20 s and 2 GB."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import ROOT, TARGETS, MissingError, Row, Table, record

PYTHON = Path("/usr/bin/python3")
ROUNDS_OF_WORK = int(os.environ.get("CALLSCOPE_BENCHMARK_WORK", "245"))
"""of the program traced: some 420,000 calls each"""
WINDOWS = 12
"""looked at for each zoom"""
PIXELS = 1600
FINEST_NS = 2000
_RUN = """
import resource, sys
from callscope.cli.main import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
sys.exit(status)
"""


def viewing(directory: Path, rounds: int) -> Table:
    """Seconds, megabytes and milliseconds for a trace of some 100 million calls."""
    if not PYTHON.exists():
        raise MissingError(f"{PYTHON} is not installed")
    trace = directory / "python.trace"
    record([PYTHON, TARGETS / "work.py", str(ROUNDS_OF_WORK)], trace)
    return looked_at(trace, directory, rounds)


def looked_at(trace: Path, directory: Path, rounds: int) -> Table:
    """The figures of a trace that is there."""
    table = _timed("calls table", ["info", trace])
    with _viewer(trace) as ask:
        index = Row("timeline's index, s", ask.waited)
        calls = ask("summary")["info"]["calls"]
    rows = [Row("calls", calls), table, index]
    commands: dict[str, list[Any]] = {
        "report": ["report", trace],
        "graph": ["graph", trace],
        "folded": ["export", trace, "--to", "folded"],
        "speedscope": ["export", trace, "--to", "speedscope"],
        "firefox": ["export", trace, "--to", "firefox"],
    }
    rows += [_best(name, command, directory, rounds) for name, command in commands.items()]
    rows += list(_zooms(trace))
    return Table(f"Looking at {calls / 1e6:.0f} M calls", "s, or ms for timelines", rows)


def _best(name: str, command: list[Any], directory: Path, rounds: int) -> Row:
    output = directory / "output"
    found = [_timed(name, [*command, "-o", output, "--force"]) for _ in range(rounds)]
    output.unlink()
    return min(found, key=lambda row: row.value or 0)


def _timed(name: str, arguments: list[Any]) -> Row:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Row(f"{name}, s", seconds, figures={"MB": float(done.stderr.split()[-1])})


class _Asker:
    """Asks a viewer. waited: seconds until it answered."""

    def __init__(self, address: str, waited: float, pid: int) -> None:
        self._base, _, token = address.partition("?token=")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pid = pid
        self.waited = waited

    def processor_ms(self) -> float:
        """What the viewer's process has used of processors."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")

    def __call__(self, name: str, **query: object) -> Any:
        text = "&".join(f"{key}={value}" for key, value in query.items())
        request = urllib.request.Request(f"{self._base}api/{name}?{text}", headers=self._headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextmanager
def _viewer(trace: Path) -> Iterator[_Asker]:
    """A viewer's process of its own."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "callscope", "view", "--no-browser", str(trace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    ) as process:
        assert process.stdout is not None
        try:
            yield _Asker(process.stdout.readline().strip(), time.perf_counter() - begin, process.pid)
        finally:
            process.terminate()


def _forget(directory: Path) -> None:
    """Have the system drop what it keeps of files."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _zooms(trace: Path) -> Iterator[Row]:
    """Requests of one screen, from the whole run to single calls, each zoom by a process that never read anything."""
    choose = random.Random(1)
    span = None
    while span is None or span > FINEST_NS:
        _forget(trace / "calls")
        with _viewer(trace) as ask:
            summary = ask("summary")
            thread = max(summary["threads"], key=lambda row: row["calls"])
            begin, end = thread["first_ns"], thread["end_ns"]
            span = end - begin if span is None else span // 4
            places = [begin + choose.randrange(max(end - begin - span, 0) + 1) for _ in range(WINDOWS)]
            found = []
            used = ask.processor_ms()
            for place in places:
                window = {"from": place, "to": place + span, "pixels": PIXELS}
                started = time.perf_counter()
                answer = ask("timeline", thread=thread["thread"], lanes=64, **window)
                found.append((time.perf_counter() - started) * 1e3)
            used = (ask.processor_ms() - used) / len(places)
        shown = float(len(answer["calls"]["call"]))
        figures: dict[str, float | str] = {"median": median(found), "first": found[0], "processor": used}
        figures |= {"calls shown": shown}
        yield Row(f"timeline of {span / 1e6:,.3f} ms, longest, ms", max(found), found, figures=figures)
