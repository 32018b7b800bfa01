"""Rounds, medians and tables. All ways of doing one thing are measured in turn, several times, in the same run.

A machine's speed drifts by more than what is to be seen; interleaving spreads the drift over all, so that ratios hold.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGETS = Path(__file__).resolve().parent / "targets"
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Case:
    """One way of doing a thing: `run` does it once and gives the figure, or raises MissingError."""

    name: str
    run: Callable[[], float]


class MissingError(Exception):
    """What the case needs is not on this machine; the text is shown in place of a figure."""


@dataclass
class Row:
    """One line of a table: the median of the rounds, all rounds, and further figures by name."""

    name: str
    value: float | None = None
    samples: list[float] = field(default_factory=list)
    note: str = ""
    figures: dict[str, float | str] = field(default_factory=dict)


@dataclass
class Table:
    """A topic's rows. `base`: the row the ratios are against."""

    title: str
    unit: str
    rows: list[Row]
    base: str = ""

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    def ratio(self, row: Row) -> float | None:
        """A row's value in terms of the base row's; None without one."""
        base = self.row(self.base).value if self.base else None
        return row.value / base if base and row.value is not None else None

    def to_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        rows = [asdict(row) | {"ratio": self.ratio(row)} for row in self.rows]
        return {"title": self.title, "unit": self.unit, "base": self.base, "rows": rows}

    def lines(self) -> list[str]:
        """The table as text."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        head = ["", self.unit, *([f"x {self.base}"] if self.base else []), *names, ""]
        body = []
        for row in self.rows:
            ratio = self.ratio(row)
            cells = [row.name, _number(row.value) if row.value is not None else "-"]
            cells += [f"{ratio:.2f}" if ratio is not None else ""] if self.base else []
            cells += [_number(row.figures.get(name, "")) for name in names]
            body.append([*cells, row.note])
        widths = [max(len(cells[i]) for cells in [head, *body]) for i in range(len(head))]
        lines = [self.title]
        for cells in [head, *body]:
            first, *middle, last = (
                cell.ljust(width) if i in (0, len(head) - 1) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            lines.append("  ".join(["  " + first, *middle, last]).rstrip())
        return lines


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def measure(cases: Sequence[Case], rounds: int, warm_up: bool = True) -> list[Row]:
    """A row for each case, from as many rounds, after one round that is not counted."""
    rows = {case.name: Row(case.name) for case in cases}
    for number in range(rounds + warm_up):
        for case in cases:
            row = rows[case.name]
            if row.note:
                continue
            try:
                value = case.run()
            except MissingError as missing:
                row.note = str(missing)
                continue
            if number >= warm_up:
                row.samples.append(value)
            _progress(f"round {number + 1 - warm_up} of {rounds}: {case.name}")
    for row in rows.values():
        row.value = median(row.samples) if row.samples else None
    _progress("")
    return list(rows.values())


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()


def need(*programs: str) -> None:
    """Raise MissingError unless all these programs are installed."""
    if not all(shutil.which(program) for program in programs):
        raise MissingError(NOT_INSTALLED)


def run(command: Iterable[object], **options: Any) -> tuple[str, float]:
    """Run a command to its end: its standard output and the seconds it took. Raises MissingError when it fails."""
    words = [str(word) for word in command]
    begin = time.perf_counter()
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=True, **options)
    except FileNotFoundError:
        raise MissingError(NOT_INSTALLED) from None
    except subprocess.CalledProcessError as error:
        raise MissingError(f"failed: {(error.stderr or str(error)).strip().splitlines()[-1][:80]}") from None
    return done.stdout, time.perf_counter() - begin


def build(source: str, output: Path, *flags: str) -> Path:
    """Compile a target with the system's compiler, or with the one Callscope is built with."""
    language = "c++" if source.endswith(".cpp") else "cc"
    compiler = [language] if shutil.which(language) else [sys.executable, "-m", "ziglang", language]
    run([*compiler, "-O2", *flags, "-o", output, TARGETS / source])
    return output


def record(command: Iterable[object], trace: Path, **options: Any) -> tuple[str, float]:
    """Record a program in a process of its own: its standard output and the seconds the program took.

    `options`: of callscope's RecordOptions.
    """
    words = [str(word) for word in command]
    script = "import sys, json; from benchmarks.harness import record_here; record_here(json.loads(sys.argv[1]))"
    settings = {"command": words, "output": str(trace), **options}
    shutil.rmtree(trace, ignore_errors=True)
    environment = os.environ | {
        "PYTHONPATH": ":".join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    text, _ = run([sys.executable, "-c", script, json.dumps(settings)], env=environment)
    output, _, seconds = text.rpartition("\n\x1e")
    return output, float(seconds)


def record_here(settings: dict[str, Any]) -> None:
    """Record in this process; the program's seconds follow its output, after a record separator."""
    from callscope.recording.options import RecordOptions
    from callscope.recording.record import record as record_program

    settings["command"], settings["output"] = tuple(settings["command"]), Path(settings["output"])
    result = record_program(RecordOptions(**settings))
    sys.stdout.write(f"\n\x1e{result.seconds}")
    sys.stdout.flush()


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
