"""What recording adds to a call of a Python function and to one of a C function, beside VizTracer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.harness import Case, MissingError, Table, measure, record, run
from callscope.bytecode.interpreters import find_version
from callscope.errors import RecordError

VERSIONS = ((3, 9), (3, 11), (3, 12), (3, 13))
CALLS = 300_000
SCRIPT = """
import sys, time

def nothing(): pass

def loop(n):
    for _ in range(n): pass

def python(n):
    for _ in range(n): nothing()

def native(n):
    function = abs
    for _ in range(n): function(1)

def cost(which, n):
    times = []
    for _ in range(7):
        begin = time.perf_counter_ns()
        which(n)
        times.append(time.perf_counter_ns() - begin)
    return min(times) / n

n = int(sys.argv[2])
print("ns_per_call", cost(python if sys.argv[1] == "python" else native, n) - cost(loop, n))
"""


def _cost(output: str) -> float:
    words = [line.split() for line in output.splitlines()]
    return next(float(line[1]) for line in words if len(line) == 2 and line[0] == "ns_per_call")


def _interpreter(version: tuple[int, int], directory: Path) -> Path:
    """An environment of that version with VizTracer, made when first asked for. Raises MissingError."""
    home = directory / "{}.{}".format(*version)
    if not home.exists():
        try:
            run([find_version(version).path, "-m", "venv", home])
        except RecordError:
            raise MissingError("no such Python") from None
        run([home / "bin/python", "-m", "pip", "install", "-q", "viztracer"])
    return home / "bin/python"


def python(directory: Path, rounds: int) -> Table:
    """Nanoseconds a call: as it is, recorded by callscope, recorded by VizTracer; each with its own flight recorder."""
    script = directory / "work.py"
    script.write_text(SCRIPT)

    def plain(version: tuple[int, int], what: str) -> float:
        return _cost(run([_interpreter(version, directory), script, what, CALLS])[0])

    def ours(version: tuple[int, int], what: str) -> float:
        command = [_interpreter(version, directory), script, what, CALLS]
        return _cost(record(command, directory / "trace", keep_last=64 << 20)[0])

    def peer(version: tuple[int, int], what: str) -> float:
        interpreter = _interpreter(version, directory)
        options = ["--quiet", "--tracer_entries", 1_000_000, "-o", directory / "peer.json"]
        return _cost(run([interpreter.parent / "viztracer", *options, script, what, CALLS])[0])

    ways: dict[str, Callable[[tuple[int, int], str], float]] = {"untraced": plain, "callscope": ours, "VizTracer": peer}
    cases = [
        Case(f"{version[0]}.{version[1]} {what}: {name}", partial(way, version, what))
        for version in VERSIONS
        for what in ("python", "native")
        for name, way in ways.items()
    ]
    table = Table(
        "Cost of a call of a Python function (python) and of a C function (native)", "ns", measure(cases, rounds)
    )
    for row in table.rows:
        call, name = row.name.split(": ")
        base = table.row(f"{call}: untraced").value
        if name != "untraced" and base is not None and row.value is not None:
            row.figures["added"] = row.value - base
    for row in table.rows:
        other = table.row(row.name.split(": ")[0] + ": VizTracer").figures.get("added")
        own = row.figures.get("added")
        if isinstance(other, float) and isinstance(own, float) and "callscope" in row.name:
            row.figures["of VizTracer's"] = own / other
    return table
