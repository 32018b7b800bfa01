"""Runs programs plain and traced, side by side, and reads the calls of a trace for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from callscope.calls.build import build_calls
from callscope.format import FUNCTION, FUNCTION_ENTRY, FUNCTION_EXITS, FUNCTION_TAILS, FUNCTIONS_HEADER
from callscope.trace.open import open_trace
from tests.builders.truth import Patched, TracedThread

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a program did: its output, its exit status (-N for a signal), and the trace if it was recorded."""

    output: str
    errors: str
    status: int
    trace: Path | None = None


def tool_environment(cache: Path) -> dict[str, str]:
    """The environment for Callscope's own processes: this tree's packages, and a plan cache of the test session."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": ":".join(paths), "CALLSCOPE_CACHE": str(cache)}


def run_plain(command: Sequence[str | Path], timeout: float = 60, **options: Any) -> Outcome:
    """Run a command untraced; `options` are subprocess.Popen's, and `input`."""
    return _run([str(word) for word in command], timeout, **options)


def run_traced(command: Sequence[str | Path], trace: Path, cache: Path, timeout: float = 60, *,
               recording: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None,
               **options: Any) -> Outcome:  # fmt: skip
    """Record a command: `recording` are fields of RecordOptions, `env` what the program sees beside our own variables.

    The exit status is what `callscope record` would give: the program's, or 128 + N.
    """
    settings = {"command": [str(word) for word in command], "output": str(trace), **(recording or {})}
    environment = {**tool_environment(cache), **(env or {})}
    runner = [sys.executable, "-m", "tests.builders.record_one", json.dumps(settings)]
    return replace(_run(runner, timeout, env=environment, **options), trace=trace)


def _run(command: list[str], timeout: float, input: str = "", **options: Any) -> Outcome:
    """Run a command in a session of its own, all of which is killed when time is up."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True, **options
    ) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            raise AssertionError(f"{command} did not end in {timeout} s; it said {output!r} {errors!r}") from None
    return Outcome(output, errors, process.returncode)


def read_calls(trace: Path, columns: Sequence[str]) -> dict[int, dict[str, np.ndarray[Any, Any]]]:
    """Thread number -> columns of the calls table, in order of call_id."""
    table = build_calls(open_trace(trace))
    parts: dict[int, list[Path]] = {}
    for path in sorted(Path(table.path).glob("calls-*.parquet"), key=_part_numbers):
        parts.setdefault(_part_numbers(path)[0], []).append(path)
    return {
        thread: {
            name: np.concatenate([pq.read_table(path, columns=[name])[name].to_numpy() for path in paths])
            for name in columns
        }
        for thread, paths in parts.items()
    }


def _part_numbers(path: Path) -> tuple[int, int]:
    _, thread, part = path.stem.split("-")
    return int(thread), int(part)


def traced_threads(trace: Path, module: str) -> list[TracedThread]:
    """The calls of every thread; addresses are those of the image called `module`, -1 in others."""
    columns = read_calls(trace, ("call_id", "up", "function_id", "ended_by"))
    calls = trace / "calls"
    functions = pq.read_table(calls / "functions.parquet")
    ours = functions.filter(pc.equal(functions["module"], pa.scalar(module)))
    address_of = np.full(int(pc.max(functions["function_id"]).as_py() or 0) + 1, -1, np.int64)
    address_of[ours["function_id"].to_numpy()] = ours["address"].to_numpy()
    threads = pq.read_table(calls / "threads.parquet").to_pylist()
    found = []
    for thread in threads:
        rows = columns.get(thread["thread"])
        if rows is None:
            continue
        up, ids = rows["up"], rows["call_id"]
        parents = np.where(up > 0, np.arange(len(up)) - up, -1)
        assert np.array_equal(ids, ids[:1] + np.arange(len(ids))), "call ids of a thread are not dense"
        addresses = address_of[rows["function_id"]]
        found.append(TracedThread(thread["pid"], thread["tid"], addresses, parents, rows["ended_by"].astype(np.int64)))
    return found


def patched_functions(trace: Path, path: Path, addresses: Mapping[int, int]) -> Patched:
    """What the plan of the image at `path` did with the functions at `addresses` (relative address -> number).

    A number with several functions (clones) counts as patched only where all of them are.
    """
    session = json.loads((trace / "session.json").read_text())
    (image,) = [image for image in session["images"] if Path(image["path"]) == path.resolve()]
    data = (trace / image["functions"]).read_bytes()
    header = np.frombuffer(data, FUNCTIONS_HEADER, 1)[0]
    functions = np.frombuffer(data, FUNCTION, int(header["function_count"]), int(header["function_offset"]))
    index = {int(rva): i for i, rva in enumerate(functions["rva"])}
    numbers = set(addresses.values())
    lacking: dict[int, set[int]] = {FUNCTION_ENTRY: set(), FUNCTION_EXITS: set(), FUNCTION_TAILS: set()}
    for address, number in addresses.items():
        own = index.get(address)
        parts = [] if own is None else np.flatnonzero(functions["owner"] == own).tolist()
        for flag, without in lacking.items():
            members = parts if flag != FUNCTION_ENTRY and own is not None else [own]
            if any(member is None or not functions["flags"][member] & flag for member in members):
                without.add(number)
    entries, exits, tails = (frozenset(numbers - lacking[flag]) for flag in lacking)
    return Patched(entries, exits, tails)


def callscope(arguments: Sequence[str | Path], cache: Path, timeout: float = 120, **options: Any) -> Outcome:
    """Run the command line `callscope ARGUMENTS`."""
    entry = "import sys; from callscope.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", entry, *arguments]
    return run_plain(command, timeout, env=tool_environment(cache) | {"NO_COLOR": "1"}, **options)


def count_calls(trace: Path, name: str) -> int:
    """The calls of the functions with this name."""
    build_calls(open_trace(trace))
    functions = pq.read_table(trace / "calls/functions.parquet")
    wanted = [
        row["function_id"]
        for row in functions.select(["function_id", "name"]).to_pylist()
        if row["name"] == name or row["name"].startswith(name + ".")  # gcc's clones: name.isra.0
    ]
    columns = read_calls(trace, ["function_id"])
    return sum(int(np.isin(rows["function_id"], wanted).sum()) for rows in columns.values())
