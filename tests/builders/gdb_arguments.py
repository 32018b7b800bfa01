"""Compares what a trace shows of arguments and results with what gdb shows of the same calls of the plain program."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callscope.binary.open import open_image
from tests.builders.tracing import callscope, run_traced

CALLS_EACH = 3
"""of a function, the first ones"""
_TEXT_BYTES = 128

_SCRIPT = r"""
import gdb, json, os

TEXT, ELEMENTS = 128, 16
calls = int(os.environ["GDB_CALLS"])
out = open(os.environ["GDB_OUT"], "w")


def text(pointer):
    if int(pointer) == 0:
        return None
    try:
        return pointer.string("utf-8", "backslashreplace", length=-1)[:TEXT]
    except gdb.error:
        return ["unreadable"]


def simple(value):
    kind = value.type.strip_typedefs()
    code = kind.code
    if code in (gdb.TYPE_CODE_REF, gdb.TYPE_CODE_RVALUE_REF):
        return ["reference", simple(value.referenced_value())]
    if code == gdb.TYPE_CODE_BOOL:
        return bool(int(value))
    if code in (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR):
        return int(value)
    if code == gdb.TYPE_CODE_ENUM:
        return ["enum", int(value), {f.name: int(f.enumval) for f in kind.fields()}]
    if code == gdb.TYPE_CODE_FLT:
        return ["float", str(value)]
    if code == gdb.TYPE_CODE_PTR:
        target = kind.target().strip_typedefs()
        if target.code in (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR) and target.sizeof == 1:
            return ["text", text(value)]
        return ["pointer", int(value) != 0]
    if code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
        if "basic_string<char" in str(kind):
            return ["text", text(value["_M_dataplus"]["_M_p"])]
        return ["struct", {f.name: simple(value[f]) for f in kind.fields() if f.name and not f.is_base_class
                           and not f.bitsize and hasattr(f, "bitpos")}]
    if code == gdb.TYPE_CODE_ARRAY:
        low, high = kind.range()
        return ["array", [simple(value[i]) for i in range(low, min(high, low + ELEMENTS - 1) + 1)]]
    return ["other"]


def shown(value, sp=0):
    if value is None or value.is_optimized_out:
        return ["unknown"]
    if value.address is not None and 0 < sp - int(value.address) < 0x100000:
        return ["unknown"]  # where the function will have stored it, later
    try:
        return simple(value)
    except (gdb.error, RuntimeError, ValueError) as error:
        return ["unknown", str(error)]


class End(gdb.FinishBreakpoint):
    def __init__(self, frame, record):
        super().__init__(frame, internal=True)
        self.silent = True
        self.record = record

    def stop(self):
        self.record["result"] = shown(self.return_value)
        return False


class Entry(gdb.Breakpoint):
    def __init__(self, address):
        super().__init__(f"*{address:#x}", internal=True)
        self.silent = True
        self.address, self.seen = address, 0


records = []
stops = []
gdb.events.stop.connect(stops.append)
for setting in ("pagination off", "confirm off", "print elements 200", "startup-with-shell off"):
    gdb.execute("set " + setting)
for address in json.load(open(os.environ["GDB_FUNCTIONS"])):
    Entry(address)
gdb.execute("run", to_string=True)
while stops and gdb.selected_inferior().pid:
    event = stops.pop()
    stops.clear()
    for point in getattr(event, "breakpoints", ()):
        if not isinstance(point, Entry):
            continue
        frame = gdb.newest_frame()
        block = frame.block()
        while block.function is None:
            block = block.superblock
        sp = int(frame.read_register("rsp"))
        arguments = [[s.name, shown(s.value(frame), sp)] for s in block if s.is_argument]
        record = {"address": point.address, "name": block.function.name, "arguments": arguments, "result": None}
        records.append(record)
        point.seen += 1
        if point.seen == calls:
            point.enabled = False
        try:
            End(frame, record)
        except ValueError:
            pass  # no caller
    gdb.execute("continue", to_string=True)
for record in records:
    out.write(json.dumps(record) + "\n")
out.close()
"""


@dataclass
class Comparison:
    """functions, calls, values: compared. wrong: values that differ; `details` has some. unknown: gdb does not
    know them; missing: the trace does not have them.
    """

    functions: set[str] = field(default_factory=set)
    calls: int = 0
    values: int = 0
    wrong: int = 0
    unknown: int = 0
    missing: int = 0
    details: list[str] = field(default_factory=list)


def compare(command: Sequence[str | Path], directory: Path, cache: Path, **recording: Any) -> Comparison:
    """Record a program that does the same each time and is not position independent; then ask gdb about the first calls
    of each function that was given or gave back something.
    """
    trace = directory / "arguments.trace"
    outcome = run_traced(command, trace, cache, 600, recording={"args": True, **recording})
    assert outcome.status == 0, outcome.errors
    ours: dict[int, list[dict[str, Any]]] = defaultdict(list)
    base = open_image(Path(command[0])).base
    for line in callscope(["calls", trace, "--format", "json"], cache).output.splitlines():
        call = json.loads(line)
        known = ours[base + call["address"]]
        if len(known) < CALLS_EACH and (call.get("arguments") or call.get("result")):
            known.append(call)
    ours = {address: calls for address, calls in ours.items() if calls}
    done = Comparison()
    seen: dict[int, int] = defaultdict(int)
    for record in _by_gdb(command, sorted(ours), directory):
        calls, index = ours[record["address"]], seen[record["address"]]
        seen[record["address"]] += 1
        if index < len(calls):
            _compare(done, calls[index], record)
    return done


def _by_gdb(command: Sequence[str | Path], addresses: list[int], directory: Path) -> list[dict[str, Any]]:
    script, wanted, seen = directory / "ask.py", directory / "functions.json", directory / "seen.json"
    script.write_text(_SCRIPT)
    wanted.write_text(json.dumps(addresses))
    environment = {"GDB_OUT": str(seen), "GDB_FUNCTIONS": str(wanted), "GDB_CALLS": str(CALLS_EACH)}
    words = ["gdb", "-nx", "-batch", "-x", str(script), "--args", *map(str, command)]
    run = subprocess.run(
        words, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=900
    )
    assert seen.exists(), run.stderr.decode()[-2000:]
    return [json.loads(line) for line in seen.read_text().splitlines()]


def _compare(done: Comparison, call: dict[str, Any], record: dict[str, Any]) -> None:
    done.calls += 1
    done.functions.add(call["function"])
    theirs = dict(record["arguments"])
    pairs = [(a["name"], a["value"], a["text"], theirs.get(a["name"], ["unknown"])) for a in call["arguments"] or []]
    result = call.get("result")
    if result and record["result"] is not None:
        pairs.append(("result", result["value"], result["text"], record["result"]))
    for name, value, text, other in pairs:
        if (isinstance(other, list) and other[0] in ("unknown", "other")) or _is_uninitialised(value, other):
            done.unknown += 1
        elif value is None and text.startswith("<"):
            done.missing += 1
        else:
            done.values += 1
            if not _equal(value, other):
                done.wrong += 1
                if len(done.details) < 20:
                    done.details.append(f"{call['function']} {name}: trace {value!r}, gdb {other!r}")


def _is_uninitialised(ours: Any, theirs: Any) -> bool:
    """Whether it is the text of a buffer that is yet to be filled: not of the characters that these programs use."""
    if not isinstance(theirs, list) or theirs[0] != "text":
        return False
    texts = [text.translate({9: " ", 10: " "}) for text in (ours, theirs[1]) if isinstance(text, str)]
    return not all(text.isascii() and text.isprintable() and "\\x" not in text for text in texts)


def _equal(ours: Any, theirs: Any) -> bool:
    if not isinstance(theirs, list):
        return bool(ours == theirs)
    kind, rest = theirs[0], theirs[1:]
    if kind == "enum":
        names = ours.split("|") if isinstance(ours, str) else []
        known = [rest[1].get(name.strip()) for name in names]
        number = None if None in known else sum(known) if names else ours
        return bool(number == rest[0])
    if kind == "float":
        wanted = math.nan if "nan" in rest[0] else float(rest[0])
        if math.isnan(wanted):
            return ours is None or str(ours).endswith("nan")
        return ours is not None and math.isclose(float(ours), wanted, rel_tol=1e-6)
    if kind == "text":
        return bool(_same_text(ours, rest[0]))
    if kind == "pointer":
        return bool(ours) is rest[0]
    if kind == "reference":
        return bool(ours) if isinstance(rest[0], list) and rest[0][0] != "text" else _equal(ours, rest[0])
    if kind == "struct":
        return isinstance(ours, dict) and all(
            _member(ours[name], value) for name, value in rest[0].items() if name in ours
        )
    if kind == "array":
        return isinstance(ours, list) and all(_member(a, b) for a, b in zip(ours, rest[0], strict=False))
    return bool(kind == "other")


def _member(ours: Any, theirs: Any) -> bool:
    """Members that are pointers are shown as numbers, whatever they lead to."""
    if isinstance(theirs, list) and theirs[0] == "text" and (ours is None or isinstance(ours, int)):
        return bool(ours) is bool(theirs[1] is not None)
    return _equal(ours, theirs)


def _same_text(ours: Any, theirs: str | list[str] | None) -> bool:
    if isinstance(theirs, list):
        return isinstance(ours, dict)  # the address alone
    if ours is None or theirs is None:
        return ours is theirs
    mine = str(ours).removesuffix("...")
    return mine == theirs or (len(theirs.encode()) >= _TEXT_BYTES - 4 and theirs.startswith(mine[: _TEXT_BYTES - 4]))
