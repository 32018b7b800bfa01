"""One cell of the matrix: a random program built one way, recorded, and its rebuilt calls held against its own log."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from callscope.recording.wine import find_wine
from tests.builders.compilers import TARGETS, WINDOWS_COMPILERS, compile_program
from tests.builders.random_program import random_program
from tests.builders.tracing import patched_functions, run_plain, run_traced, traced_threads
from tests.builders.truth import Verdict, compare, logged_addresses, read_truth

LEVELS = ("-O0", "-O1", "-O2", "-O3", "-Os")
FRAME_POINTERS = ("-fomit-frame-pointer", "-fno-omit-frame-pointer")
# Other flags that change the code a tracer meets; each seed gets one set. Not -ffunction-sections with zig: its linker
# then sends calls of a function that only jumps on straight to where it jumps, so that the logged call is none.
EXTRAS: dict[str, tuple[tuple[str, ...], ...]] = {
    "gcc": ((), ("-no-pie",), ("-fcf-protection=none",), ("-fno-plt",), ("-fstack-protector-all",), ("-flto",)),
    "mingw": ((), ("-fstack-protector-all",), ("-mno-red-zone",)),
    "zig-windows": ((), ("-fstack-protector-all",)),
    "zig": ((), ("-fPIE", "-pie"), ("-fcf-protection=full",), ("-fno-plt",), ("-fstack-protector-all",)),
}


@dataclass(frozen=True)
class Cell:
    """How a program is made: its seed, compiler and flags, whether it is traced stripped, with its call sites, and by
    which clock.
    """

    seed: int
    compiler: str
    level: str
    frame_pointer: str
    stripped: bool = False
    calls: bool = False
    clock: str = "tsc"

    @property
    def flags(self) -> list[str]:
        """The compiler's flags."""
        extras = EXTRAS[self.compiler]
        posix = [f"-I{TARGETS / 'windows_posix'}", "-include", "posix.h"] if self.is_windows else []
        if self.compiler == "mingw":
            posix += ["-Wl,--whole-archive", "-lpthread", "-Wl,--no-whole-archive"]  # it stands before what needs it
        return [*posix, self.level, self.frame_pointer, *extras[self.seed % len(extras)]]

    @property
    def is_windows(self) -> bool:
        """Whether it is a program for Windows."""
        return self.compiler in WINDOWS_COMPILERS

    def __str__(self) -> str:
        name = f"{self.seed}-{self.compiler}{self.level}{'-fp' if 'no-omit' in self.frame_pointer else ''}"
        return name + "-stripped" * self.stripped + "-calls" * self.calls + f"-{self.clock}" * (self.clock != "tsc")


def run_cell(
    cell: Cell, directory: Path, cache: Path, limit: int = 20000, environment: Mapping[str, str] | None = None
) -> Verdict:
    """Build, record and judge; `directory` keeps the program, its log and the trace for a look when it fails.

    `environment`: what the program sees beside ours.
    """
    program = random_program(cell.seed)
    source = directory / f"random{cell.seed}.cpp"
    source.write_text(program.source)
    name = "random.exe" if cell.is_windows else "random"
    binary = compile_program([source], directory / name, cell.flags, cell.compiler)
    traced = binary
    if cell.stripped:
        traced = directory / name.replace("random", "stripped")
        subprocess.run(["strip", "-o", str(traced), str(binary)], check=True)
    log, trace = directory / "truth", directory / "trace"
    runner = [find_wine()] if cell.is_windows else []
    everything = {**os.environ, **(environment or {})}
    plain = run_plain([*runner, traced, directory / "plain.truth", str(limit)], env=everything)
    recording = {"clock": cell.clock} | ({"calls": "on"} if cell.calls else {})
    outcome = run_traced([traced, log, str(limit)], trace, cache, recording=recording, env=environment)
    verdict = Verdict()
    if (outcome.output, outcome.errors, outcome.status) != (plain.output, plain.errors, plain.status):
        verdict.problems.append(f"plain: {plain}; traced: {outcome}")
    if not log.exists():
        verdict.problems.append("the program left no log")
        return verdict
    addresses = logged_addresses(binary, program)
    patched = patched_functions(trace, traced, addresses)
    for name in sorted({program.names[n] for n in set(addresses.values()) - patched.entries} - program.tiny):
        verdict.problems.append(f"{name} is not patched")
    found = compare(read_truth(log), traced_threads(trace, traced.name), program, addresses, patched)
    found.problems[:0] = verdict.problems
    return found
