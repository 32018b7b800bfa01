"""Planning of real images, cold and from the cache; what of them is patched; and what the agent adds to a start."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import ROOT, Case, MissingError, Row, Table, measure, record, run
from benchmarks.programs import real_program

PROGRAMS = ("bash", "git", "gdb", "python3", "node")
LIBRARIES = ("libc.so.6", "libstdc++.so.6")
_SCRIPT = """
import json, sys
from callscope.patching.cache import load_or_plan
files = load_or_plan(sys.argv[1])
print(json.dumps({"seconds": files.seconds, "cached": files.cached, "functions": files.function_count}))
"""


def find_library(name: str) -> str:
    """The path of a shared library the loader knows. Raises MissingError."""
    listing, _ = run([shutil.which("ldconfig") or "/sbin/ldconfig", "-p"])
    for line in listing.splitlines():
        if line.strip().startswith(name + " ") and "x86-64" in line:
            return os.path.realpath(line.split("=> ")[1])
    raise MissingError("not installed")


def plan(path: str, cache: Path) -> dict[str, Any]:
    """Plan an image in a process of its own: seconds, cached, functions."""
    environment = os.environ | {"CALLSCOPE_CACHE": str(cache), "PYTHONPATH": str(ROOT / "src")}
    output, _ = run([sys.executable, "-c", _SCRIPT, path], env=environment)
    answer: dict[str, Any] = json.loads(output)
    return answer


def planning(directory: Path, rounds: int) -> Table:
    """Seconds to plan each image with nothing cached."""
    rows = []
    for name in (*PROGRAMS, *LIBRARIES):
        try:
            path = real_program(name) if name in PROGRAMS else find_library(name)
        except MissingError as missing:
            rows.append(Row(name, note=str(missing)))
            continue
        rows.append(_image(name, path, directory / "plans", rounds))
    return Table("Planning an image", "cold s", rows)


def _image(name: str, path: str, cache: Path, rounds: int) -> Row:
    row = Row(name)
    for _ in range(max(1, min(rounds, 3))):
        shutil.rmtree(cache, ignore_errors=True)
        answer = plan(path, cache)
        row.samples.append(answer["seconds"])
        row.figures["functions"] = answer["functions"]
    row.value = median(row.samples)
    row.figures["cached s"] = median(plan(path, cache)["seconds"] for _ in range(rounds))
    (report_path,) = (cache / "plans").glob("*.json")
    report = json.loads(report_path.read_text())
    for kind in ("entries", "exits", "tail_jumps"):
        found = report[kind]["patched"] + len(report[kind]["skipped"])
        row.figures[f"{kind} %"] = round(100 * report[kind]["patched"] / found, 2) if found else 100.0
    return row


def start(directory: Path, rounds: int) -> Table:
    """What tracing adds to the shortest run of a program, in milliseconds."""
    rows = []
    for name in ("bash", "git", "python3", "node"):
        try:
            command = [real_program(name), "--version"]
        except MissingError as missing:
            rows.append(Row(name, note=str(missing)))
            continue
        rows.append(_start(name, command, directory / "trace", rounds))
    return Table("Start: PROGRAM --version, traced minus untraced", "ms", rows)


def _start(name: str, command: list[str], trace: Path, rounds: int) -> Row:
    traced: Callable[[], float] = lambda: record(command, trace)[1] * 1000  # noqa: E731
    plain, ours = measure([Case("plain", lambda: run(command)[1] * 1000), Case("traced", traced)], 2 * rounds)
    if plain.value is None or ours.value is None:
        return Row(name, note=plain.note or ours.note)
    samples = [b - a for a, b in zip(plain.samples, ours.samples, strict=True)]
    return Row(name, median(samples), samples, figures={"untraced ms": plain.value, "traced ms": ours.value})
