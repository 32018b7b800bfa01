"""Compares captured stacks with gdb's back-traces of the same moments.

gdb runs the program, recorded, and stops where the agent is about to walk a stack; what it sees there must be in the
trace.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callscope.binary.symbols import Symbols, open_symbols
from callscope.reports.stacks import Stacks
from callscope.trace.open import open_trace
from tests.builders.tracing import run_traced

_SCRIPT = r"""
import gdb, json, os

out = open(os.environ["STACKS_OUT"], "w")
limit = int(os.environ["STACKS_LIMIT"])
gdb.execute("set pagination off")
gdb.execute("set confirm off")
gdb.execute("set breakpoint pending on")
gdb.execute("set startup-with-shell off")
gdb.execute("set backtrace past-main on")
gdb.execute("set backtrace past-entry on")
gdb.execute("set backtrace limit 2000")
gdb.execute("handle all nostop noprint pass")
gdb.execute("handle SIGINT SIGTRAP stop nopass")


def frames():
    found, frame = [], gdb.newest_frame()
    while frame is not None:
        sal = frame.find_sal()
        library = gdb.solib_name(frame.pc()) or ""
        found.append({
            "pc": frame.pc(), "name": frame.name(), "kind": frame.type(), "line": sal.line if sal.symtab else 0,
            "agent": library.endswith("libcallscope-agent.so"),
        })
        try:
            frame = frame.older()
        except gdb.error:
            break
    # Those of the agent, among them what its handlers return to.
    at = 0
    while at < len(found) and found[at]["agent"]:
        at += 1
    # What gdb infers of tail calls has no frame any more.
    found = [f for i, f in enumerate(found) if i < at or f["kind"] != gdb.TAILCALL_FRAME]
    for f in found:
        f["inline"] = f["kind"] == gdb.INLINE_FRAME
    return found[at:]


class Stop(gdb.Breakpoint):
    count = 0

    def stop(self):
        if self.count < limit:
            out.write(json.dumps(frames()) + "\n")
        Stop.count += 1
        return False


Stop("cs_snapshot")
gdb.execute("run")
out.close()
"""


@dataclass
class Comparison:
    """stacks, frames: compared. wrong: addresses that differ; named: frames and calls inlined in them, of stacks with
    equal addresses; names, lines: of these that differ where gdb knows them.
    """

    stacks: int = 0
    frames: int = 0
    wrong: int = 0
    named: int = 0
    names: int = 0
    lines: int = 0
    examples: list[str] = field(default_factory=list)
    symbols: dict[str, Symbols | None] = field(default_factory=dict)


def compare(
    command: Sequence[str | Path], directory: Path, cache: Path, limit: int, program: str, recording: dict[str, Any]
) -> Comparison:
    """Record `command` under gdb and compare up to `limit` stacks of the process whose file is called `program`."""
    script, seen = directory / "stops.py", directory / "stops.json"
    script.write_text(_SCRIPT)
    words = ["gdb", "-nx", "-batch", "-x", script, "--args", *command]
    environment = {"STACKS_OUT": str(seen), "STACKS_LIMIT": str(limit)}
    outcome = run_traced(words, directory / "gdb.trace", cache, 900, recording=recording, env=environment)
    assert outcome.trace is not None
    trace = open_trace(outcome.trace)
    processes = [p for p in trace.processes if Path(p.path).name == program]
    own = [(one, group) for one, group in Stacks(trace).each() if one.process == processes[-1].number]
    own.sort(key=lambda pair: pair[0].tsc)
    done = Comparison()
    for line, (one, group) in zip(seen.read_text().splitlines(), own, strict=False):
        theirs = [frame for frame in json.loads(line) if not frame["agent"]]
        _compare(done, theirs, one, group)
    return done


def _compare(done: Comparison, theirs: list[dict[str, Any]], one: Any, group: Any) -> None:
    done.stacks += 1
    ours = [address for address, _ in one.addresses]
    real = [frame["pc"] for frame in theirs if not frame["inline"]]
    # gdb shows frames inlined in a call under the pc of the frame that holds them.
    done.frames += max(len(real), len(ours))
    wrong = sum(a != b for a, b in zip(real, ours, strict=False)) + abs(len(real) - len(ours))
    done.wrong += wrong
    if wrong:
        if len(done.examples) < 9:
            both = [
                [(hex(f["pc"]), f["name"]) for f in theirs],
                [(hex(a), f.function) for a, f in zip(ours, group.frames, strict=False)],
            ]
            done.examples.append(str(both))
        return
    named = [(name, line) for f in group.frames for name, line in
             [*((name, line) for name, _, line in f.inlines), (f.function, f.line)]]  # fmt: skip
    places = [(path, rva) for f, (path, _, rva) in zip(group.frames, group.places, strict=True)
              for _ in [*f.inlines, f]]  # fmt: skip
    done.named += len(theirs)
    if len(named) != len(theirs):
        done.names += abs(len(named) - len(theirs))
        if len(done.examples) < 5:
            done.examples.append(str([[(f["name"], f["line"]) for f in theirs], named]))
        return
    for index, (frame, (name, line)) in enumerate(zip(theirs, named, strict=True)):
        same = not frame["name"] or not name or _plain(frame["name"]) == _plain(name) or "+0x" in name
        if not same and not _is_alias(done.symbols, *places[index], frame["name"]):
            done.names += 1
            if len(done.examples) < 5:
                done.examples.append(f"{frame['name']} {name}")
        elif frame["line"] and line and frame["line"] != line:
            done.lines += 1
            if len(done.examples) < 5:
                done.examples.append(f"{index} {frame['pc']:#x} {frame['name'][:60]}: {frame['line']} {line} {name}")


def _is_alias(symbols: dict[str, Symbols | None], path: str, rva: int, name: str) -> bool:
    """Whether one of the symbols at the function around `rva` is called so."""
    if path not in symbols:
        symbols[path] = open_symbols(path) if path else None
    found = symbols[path]
    return found is not None and _plain(name) in {_plain(alias) for alias in found.aliases(rva)}


def _plain(name: str) -> str:
    """Without parameters and template arguments, which the two write differently, nor what tells aliases apart."""
    out, depth = [], 0
    for character in name.replace("operator()", "operatorcall").partition(" [")[0].split("@")[0]:
        depth += (character in "<(") - (character in ">)")
        if depth == 0 and character not in ">)":
            out.append(character)
    words = "".join(out).removesuffix(" const").split("::")[-1].split(".")[0].split()
    return words[-1] if words else name
