"""Wall time of real programs, untraced and traced whole, with their plans in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.harness import Case, MissingError, Row, Table, measure, need, record, run

BASH = "for ((i = 0; i < 60000; i++)); do (( x += i % 7 )); done; echo $x"
PYTHON = "def f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(22), len(str([i ** 2 for i in range(30000)])))"
NODE = "const f = n => n < 2 ? n : f(n - 1) + f(n - 2); console.log(f(25), JSON.stringify(process.versions).length > 9)"
COMMITS = 3000


def real_program(name: str) -> str:
    """The path of a program that is an ELF file, not a script in front of one. Raises MissingError."""
    for directory in os.environ.get("PATH", "").split(":"):
        path = Path(directory) / name
        if path.is_file() and os.access(path, os.X_OK) and path.read_bytes()[:4] == b"\x7fELF":
            return str(path)
    raise MissingError("not installed")


def repository(directory: Path) -> Path:
    """A git repository with a long history."""
    path = directory / "repository"
    if path.exists():
        return path
    need("git")
    subprocess.run(["git", "init", "-q", str(path)], check=True)
    stream = ["blob\nmark :1\ndata 6\nhello\n\n"]
    for number in range(COMMITS):
        message = f"change {number}"
        stream.append(f"commit refs/heads/main\ncommitter A <a@b> {1700000000 + number} +0000\n")
        stream.append(f"data {len(message)}\n{message}\nM 100644 :1 file{number % 100}\n\n")
    subprocess.run(["git", "-C", str(path), "fast-import", "--quiet"], input="".join(stream), text=True, check=True)
    return path


def commands(directory: Path) -> dict[str, Callable[[], list[str]]]:
    """Name -> how to make the command; raises MissingError when it cannot be run here."""
    return {
        "git log": lambda: [real_program("git"), "-C", str(repository(directory)), "log", "--format=%h %s", "main"],
        "bash loop": lambda: [real_program("bash"), "-c", BASH],
        "python3": lambda: [real_program("python3"), "-I", "-c", PYTHON],
        "node": lambda: [real_program("node"), "-e", NODE],
    }


def programs(directory: Path, rounds: int) -> Table:
    """Milliseconds untraced; traced as further figures."""
    rows = [_program(name, make, directory, rounds) for name, make in commands(directory).items()]
    return Table("Wall time of programs, traced whole (plans cached)", "untraced ms", rows)


def _program(name: str, make: Callable[[], list[str]], directory: Path, rounds: int) -> Row:
    try:
        command = make()
    except MissingError as missing:
        return Row(name, note=str(missing))
    trace = directory / "trace"
    modes: dict[str, dict[str, object]] = {
        "kept": {},
        "keep-last": {"keep_last": 64 << 20},
        "no clock": {"clock": "none"},
    }
    cases = [Case("plain", lambda: run(command)[1] * 1000)]
    sizes: list[int] = []

    def traced(options: dict[str, object]) -> Callable[[], float]:
        def once() -> float:
            seconds = record(command, trace, **options)[1]
            if not options:
                sizes.append(sum(path.stat().st_blocks * 512 for path in trace.rglob("*")))
            shutil.rmtree(trace)
            return seconds * 1000

        return once

    cases += [Case(mode, traced(options)) for mode, options in modes.items()]
    plain, *others = measure(cases, rounds)
    row = Row(name, plain.value, plain.samples)
    for other in others:
        row.note = row.note or other.note
        if other.value is not None and plain.value:
            row.figures[f"{other.name} ms"] = other.value
            row.figures[f"{other.name} x"] = other.value / plain.value
    if sizes:
        row.figures["trace MB"] = median(sizes) / 1e6
    return row
