"""What recording adds to a call of a Python function and to one of a C function, beside VizTracer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.harness import Case, MissingError, Table, build, measure, record, run
from callscope.bytecode.interpreters import find_version
from callscope.errors import RecordError

VERSIONS = ((3, 9), (3, 11), (3, 12), (3, 13))
SKIPPED, COUNTED = 20, 200
"""thousands of calls before those measured, and of these: VizTracer keeps a million"""
RING_SKIPPED, RING_ENTRIES, RING_BYTES = 150, 100_000, 4 << 20
"""for flight recorders, which have gone round once by then: so many calls of VizTracer's, bytes of ours (32 a call)"""
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

def cost(which, skipped, counted):
    times = []
    for _ in range(skipped + counted):
        begin = time.perf_counter_ns()
        which(1000)
        times.append(time.perf_counter_ns() - begin)
    return sorted(times[skipped:])[counted // 2] / 1000

what, skipped, counted, *floor = sys.argv[1:]
if floor:
    import ctypes
    ctypes.PyDLL(floor[0]).install()
base = cost(loop, int(skipped), int(counted))
print("ns_per_call", cost(python if what == "python" else native, int(skipped), int(counted)) - base)
"""


def _cost(output: str) -> float:
    words = [line.split() for line in output.splitlines()]
    return next(float(line[1]) for line in words if len(line) == 2 and line[0] == "ns_per_call")


class Work:
    """The program in each version's environment, with VizTracer, made when first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.script = directory, directory / "work.py"
        self.script.write_text(SCRIPT)

    def _command(self, version: tuple[int, int], what: str, skipped: int = SKIPPED) -> list[object]:
        home = self.directory / "{}.{}".format(*version)
        if not home.exists():
            try:
                run([find_version(version).path, "-m", "venv", home])
            except RecordError:
                raise MissingError("no such Python") from None
            run([home / "bin/python", "-m", "pip", "install", "-q", "viztracer"])
        return [home / "bin/python", self.script, what, skipped, COUNTED]

    def untraced(self, version: tuple[int, int], what: str) -> float:
        """The call itself."""
        return _cost(run(self._command(version, what))[0])

    def floor(self, version: tuple[int, int], what: str) -> float:
        """The interpreter's events, for each of which a function in C reads the clock."""
        command = self._command(version, what)
        library = self.directory / "floor{}.{}.so".format(*version)
        if not library.exists():
            headers = run([command[0], "-c", "import sysconfig; print(sysconfig.get_paths()['include'])"])[0].strip()
            build("python_floor.c", library, "-shared", "-fPIC", f"-I{headers}")
        return _cost(run([*command, library])[0])

    def ours(self, version: tuple[int, int], what: str) -> float:
        """Everything kept."""
        return _cost(record(self._command(version, what), self.directory / "trace")[0])

    def ours_last(self, version: tuple[int, int], what: str) -> float:
        """The last calls kept."""
        command = self._command(version, what, RING_SKIPPED)
        return _cost(record(command, self.directory / "trace", keep_last=RING_BYTES)[0])

    def peer(self, version: tuple[int, int], what: str, skipped: int = SKIPPED, entries: int = 1_000_000) -> float:
        """VizTracer with everything kept."""
        python, *program = self._command(version, what, skipped)
        options = ["--quiet", "--tracer_entries", entries, "-o", self.directory / "peer.json"]
        return _cost(run([Path(str(python)).with_name("viztracer"), *options, *program])[0])

    def peer_last(self, version: tuple[int, int], what: str) -> float:
        """VizTracer with the last calls kept."""
        return self.peer(version, what, RING_SKIPPED, RING_ENTRIES)


BESIDE = {"callscope": "VizTracer", "callscope, the last": "VizTracer, the last"}


def python(directory: Path, rounds: int) -> Table:
    """Nanoseconds a call: as it is; with a clock read at each event and nothing else; recorded by callscope and by
    VizTracer, all calls, and in flight recorders. The median of 200 times 1,000 calls."""
    work = Work(directory)
    ways: dict[str, Callable[[tuple[int, int], str], float]] = {
        "untraced": work.untraced,
        "clock only": work.floor,
        "callscope": work.ours,
        "VizTracer": work.peer,
        "callscope, the last": work.ours_last,
        "VizTracer, the last": work.peer_last,
    }
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
        call, name = row.name.split(": ")
        if name in BESIDE:
            _compare(table, row.name, f"{call}: {BESIDE[name]}", "of VizTracer's")
            _compare(table, row.name, f"{call}: clock only", "of the clock's")
    return table


def _compare(table: Table, name: str, other: str, title: str) -> None:
    own, base = (table.row(one).figures.get("added") for one in (name, other))
    if isinstance(own, float) and isinstance(base, float) and base > 0:
        table.row(name).figures[title] = own / base
