"""Attaching to programs that run, and detaching: how long it takes, how long they stand still, and what a call costs
before, meanwhile and afterwards.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from benchmarks.harness import MissingError, Row, Table, build
from benchmarks.programs import real_program
from callscope.recording.attach import Attachment, attach
from callscope.recording.attach_linux import withdraw
from callscope.recording.options import RecordOptions

THREADS = (1, 8, 200)
PROGRAMS = {"gdb": ("-q", "-nx"), "node": ("-i",), "python3": ("-i", "-q")}
"""that wait for their input, with tens of thousands of functions"""


def attaching(directory: Path, rounds: int) -> Table:
    """Milliseconds of standstill, and the rest as figures beside."""
    program = build("attached.c", directory / "attached", "-pthread")
    rows = [
        _row(f"{count} thread{'s' * (count > 1)}", [program, str(count)], True, directory, rounds) for count in THREADS
    ]
    for name, words in PROGRAMS.items():
        try:
            rows.append(_row(name, [real_program(name), *words], False, directory, rounds))
        except MissingError as missing:
            rows.append(Row(name, note=str(missing)))
    return Table("Attaching to a program that runs, and detaching", "still ms", rows)


def _row(name: str, command: Sequence[str | Path], measures: bool, directory: Path, rounds: int) -> Row:
    pipe, trace = subprocess.PIPE, directory / "trace"
    samples: dict[str, list[float]] = {}
    with subprocess.Popen(
        list(map(str, command)), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        time.sleep(1)  # it gets ready
        note = ""
        for number in range(rounds + 1):
            costs = [_cost(process)] if measures else []
            begin = time.monotonic()
            options = RecordOptions((str(process.pid),), output=trace, follow=False, python="off")
            result = attach(options, Attachment(leave=True))
            middle = time.monotonic()
            costs += [_cost(process)] if measures else []
            again = time.monotonic()
            stopped = withdraw(process.pid)
            end = time.monotonic()
            costs += [_cost(process)] if measures else []
            shutil.rmtree(trace)
            note = f"{sum(image.report.functions for image in result.images):,} functions"
            values = {
                "still ms": result.still_ms[0],
                "detach still ms": stopped * 1000,
                "attach ms": (middle - begin) * 1000,
                "detach ms": (end - again) * 1000,
            } | dict(zip(("ns before", "ns attached", "ns after"), costs, strict=False))
            for key, value in values.items() if number else ():  # the first round plans
                samples.setdefault(key, []).append(value)
        with suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        process.kill()
    figures: dict[str, float | str] = {key: median(found) for key, found in samples.items()}
    figures["most still ms"] = max(samples["still ms"] + samples["detach still ms"])
    return Row(name, float(figures.pop("still ms")), samples["still ms"], note, figures)


def _cost(process: subprocess.Popen[str]) -> float:
    """Nanoseconds that a call takes there."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())
