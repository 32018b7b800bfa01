"""The cost of recording one bytecode instruction, and the bytes stored for it, in several versions of CPython."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.harness import Case, MissingError, Table, measure, run
from callscope.bytecode.codes import read_codes
from callscope.bytecode.decode import Decoder
from callscope.bytecode.executed import Executed
from callscope.bytecode.interpreters import Interpreter, Version, find_version
from callscope.bytecode.run import EVENTS, INFERRED_VERSIONS, Choice, Program
from callscope.bytecode.run import run as run_recorded
from callscope.errors import RecordError

VERSIONS: tuple[Version, ...] = ((3, 9), (3, 11), (3, 12), (3, 13))
TIMES = 30_000
"""Rounds of each loop in the measured program: some hundred nanoseconds and a dozen instructions each."""

SOURCES = {
    "calls": """
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
def work(times):
    for _ in range(times // 1000):
        fib(14)
""",
    "loops": """
def work(times):
    total = 0
    for i in range(times):
        a, b = i & 7, i * 3
        if a > 3:
            total += b - a
        else:
            total ^= a
        total = (total + b) % 1000003
    return total
""",
}
MAIN = """
import sys, time
work(1000)
begin = time.process_time()
work(int(sys.argv[1]))
seconds = time.process_time() - begin
with open(sys.argv[2], "w") as file:
    file.write(repr(seconds))
"""


class Measured:
    """One program in one interpreter. instructions: that it executes; stored: bytes of the recording."""

    def __init__(self, directory: Path, name: str, version: Version, infer: bool) -> None:
        self._version = version
        self._choice = Choice(infer=infer)
        self._directory = directory / f"{name}-{version[1]}-{infer}"
        self._directory.mkdir()
        self._source = self._directory / f"{name}.py"
        self._source.write_text(SOURCES[name] + MAIN)
        self._output = self._directory / "seconds"
        self.instructions = 0
        self.stored = 0

    def plain(self) -> float:
        """Seconds without a recorder."""
        run([self._interpreter().path, self._source, TIMES, self._output])
        return float(self._output.read_text())

    def recorded(self) -> float:
        """Nanoseconds a recorded instruction takes longer, next to a run without a recorder."""
        interpreter = self._interpreter()
        before = self.plain()
        recording = self._directory / "recording"
        shutil.rmtree(recording, ignore_errors=True)
        recording.mkdir()
        program = Program(str(self._source), (str(TIMES), str(self._output)))
        run_recorded(program, interpreter, 0, self._choice, recording)
        after = float(self._output.read_text())
        if not self.instructions:
            decoder = Decoder(read_codes(recording, interpreter))
            self.instructions = sum(isinstance(one, Executed) for one in decoder.read(recording))
            self.stored = len((recording / EVENTS).read_bytes().rstrip(b"\0"))
        return (after - before) * 1e9 / self.instructions

    def _interpreter(self) -> Interpreter:
        try:
            return find_version(self._version)
        except RecordError:
            raise MissingError("not installed") from None


def bytecode(directory: Path, rounds: int) -> Table:
    """Nanoseconds an instruction, beside what it takes by itself."""
    cases: list[Case] = []
    found: dict[str, Measured] = {}
    for version in VERSIONS:
        for name in SOURCES:
            for infer in (False, True)[: 1 + (version in INFERRED_VERSIONS)]:
                label = f"{version[0]}.{version[1]}, {name}{', inferred' if infer else ''}"
                found[label] = Measured(directory, name, version, infer)
                cases.append(Case(label, found[label].recorded))
    rows = measure(cases, rounds)
    for row in rows:
        one = found[row.name]
        if one.instructions:
            row.figures = {"bytes": one.stored / one.instructions, "instructions": one.instructions}
    return Table("Cost of recording a bytecode instruction", "ns", rows)
