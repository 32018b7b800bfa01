"""A random program whose recording is switched on and off from another process, held against its own log.

Which of its calls the trace has is told by their times: each call reads the processor's counter after its ENTRY has.
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from callscope.errors import RecordError
from callscope.recording.control import control_of
from callscope.trace.journal import Switch
from callscope.trace.open import Trace, open_trace
from tests.builders.compilers import compile_program
from tests.builders.random_program import (
    FRESH_STACK_FUNCTIONS,
    SIGNAL_FUNCTIONS,
    UNTRACED_TAIL_FUNCTIONS,
    Program,
    random_program,
)
from tests.builders.tracing import read_calls, run_traced, traced_threads
from tests.builders.truth import SIGNAL_STREAM, Ints, Section, TracedThread, is_undecidable, logged_addresses, nearest

TIMED = np.dtype([("function", "<i4"), ("parent", "<i4"), ("end", "<i4"), ("unused", "<i4"), ("time", "<u8")])
LONGEST_WAIT = 0.0004
"""seconds between two switches, at most"""


@dataclass
class SwitchedVerdict:
    """What came of a run. switches: how often a process obeyed. calls: recorded ones that were judged."""

    switches: int = 0
    calls: int = 0
    wrong_parents: int = 0
    unmade: int = 0
    """recorded calls that the program did not make"""
    problems: list[str] = field(default_factory=list)
    details: Counter[str] = field(default_factory=Counter)


def toggle(directory: Path, seed: int) -> None:
    """Switch the session of a trace directory at random until it is complete."""
    choose = random.Random(seed)
    events, session = directory / "events", directory / "session.json"
    while not events.exists():
        time.sleep(0.001)
    while True:
        try:
            with control_of(events) as control:
                on = False
                while '"status": "recording"' in session.read_text():
                    for _ in range(50):
                        control.switch(on)
                        on = not on
                        time.sleep(choose.random() * LONGEST_WAIT)
            return
        except (RecordError, OSError):
            time.sleep(0.001)  # it is being made


def run_switched(seed: int, directory: Path, cache: Path, limit: int) -> SwitchedVerdict:
    """Build a program, record it while another process switches, and judge what was recorded."""
    program = random_program(seed)
    source = directory / f"random{seed}.cpp"
    source.write_text(program.source)
    binary = compile_program([source], directory / "random", ["-O2", "-DTIMED"], "gcc")
    log, trace = directory / "truth", directory / "trace"
    toggler = threading.Thread(target=toggle, args=(trace, seed), daemon=True)
    toggler.start()
    outcome = run_traced([binary, log, str(limit)], trace, cache, recording={"switchable": True})
    toggler.join(30)
    verdict = SwitchedVerdict()
    if outcome.status or outcome.errors:
        verdict.problems.append(f"the program ended with {outcome}")
    judge(open_trace(trace), binary, program, log, verdict)
    return verdict


def judge(opened: Trace, binary: Path, program: Program, log: Path, verdict: SwitchedVerdict) -> None:
    """Hold every thread of the trace against the log."""
    verdict.switches = sum(isinstance(record, Switch) for record in opened.journal)
    threads = {(thread.pid, thread.tid): thread for thread in traced_threads(opened.path, binary.name)}
    starts = read_calls(opened.path, ["start_ns"])
    numbers = {(thread.pid, thread.tid): thread.number for thread in opened.threads}
    process = {(thread.pid, thread.tid): thread.process for thread in opened.threads}
    addresses = logged_addresses(binary, program)
    for section, times in read_timed(log):
        key = (section.pid, section.tid)
        thread = threads.get(key)
        if thread is None or section.stream == SIGNAL_STREAM:
            continue  # it recorded nothing; or calls of handlers that interrupt each other, in no order of time
        begun = np.array([_tsc(opened, int(ns)) for ns in starts[numbers[key]]["start_ns"]], np.int64)
        offs = [span[0] for span in opened.history.offs.get(process[key], [])]
        _judge_section(section, times, thread, begun, np.array(offs, np.int64), program, addresses, verdict)


def _tsc(opened: Trace, ns: int) -> int:
    """The earliest tick of a nanosecond."""
    return opened.clock.origin + (ns << 40) // opened.clock.scale


def read_timed(path: Path) -> list[tuple[Section, Ints]]:
    """The sections of a log, with the time of each call in ticks."""
    data = path.read_bytes()
    sections, at = [], 0
    while at < len(data):
        pid, tid, stream, count = struct.unpack_from("<4i", data, at)
        rows = np.frombuffer(data, TIMED, count, at + 16)
        columns = (rows[name].astype(np.int64) for name in ("function", "parent", "end"))
        sections.append((Section(pid, tid, stream, *columns), rows["time"].astype(np.int64)))
        at += 16 + TIMED.itemsize * count
    return sections


def _made(section: Section, times: Ints, functions: Ints, begun: Ints, program: Program) -> Ints:
    """For every recorded call the one that the program logged, or -1: the next of that function, or of one that only
    jumps on, whose caller logs it, the last.
    """
    made = np.full(len(functions), -1, np.int64)
    early = program.tiny | UNTRACED_TAIL_FUNCTIONS
    for function in np.unique(functions):
        own = np.flatnonzero(section.functions == function)
        mine = np.flatnonzero(functions == function)
        is_early = program.names[function] in early
        at = np.searchsorted(times[own], begun[mine]) - is_early
        inside = (at >= 0) & (at < len(own))
        made[mine[inside]] = own[at[inside]]
    return made


def _judge_section(section: Section, times: Ints, thread: TracedThread, begun: Ints, offs: Ints, program: Program,
                   addresses: dict[int, int], verdict: SwitchedVerdict) -> None:  # fmt: skip
    names = program.names
    is_signal = np.array([name in SIGNAL_FUNCTIONS for name in names])
    keys = np.array(sorted(addresses), np.int64)
    values = np.array([addresses[key] for key in keys], np.int64)
    position = np.minimum(np.searchsorted(keys, thread.addresses), len(keys) - 1)
    numbers = np.where(keys[position] == thread.addresses, values[position], -1)
    wanted = numbers >= 0
    wanted[wanted] = ~is_signal[numbers[wanted]]
    seen = np.flatnonzero(wanted)
    made = _made(section, times, numbers[seen], begun[seen], program)
    known = np.maximum(made, 0)
    unmade = made < 0
    unmade[1:] |= made[1:] == made[:-1]
    verdict.unmade += int(unmade.sum())
    for i in np.flatnonzero(unmade)[:50]:
        verdict.details[f"{names[numbers[seen[i]]]} is not {names[section.functions[known[i]]]}, made then"] += 1
    recorded = np.full(len(section.functions), -1, np.int64)
    recorded[known[~unmade]] = np.flatnonzero(~unmade)
    is_recorded = recorded >= 0
    true = nearest(section.parents, is_recorded)
    above = nearest(thread.parents, wanted)[seen]
    above = np.where(above < 0, -1, np.searchsorted(seen, above))
    got = np.where(above < 0, -1, known[np.maximum(above, 0)])
    want = true[known]
    # A call that was open when recording went off is nobody's parent afterwards.
    period = np.searchsorted(offs, begun[seen])
    cut = period != period[recorded[np.maximum(want, 0)]]
    wrong = (got != want) & ~unmade & ~((got < 0) & ((want < 0) | cut))
    wrong &= ~is_undecidable(section.functions[known], above, np.where(want < 0, -1, recorded[want]),
                             section.ends[known], names)  # fmt: skip
    fresh = np.array([name in FRESH_STACK_FUNCTIONS for name in names])
    wrong &= ~(fresh[section.functions[known]] & (got < 0))
    wrong &= section.parents[known] != -2  # called before the fork that this process began with
    verdict.calls += int((~unmade).sum())
    verdict.wrong_parents += int(wrong.sum())
    for i in np.flatnonzero(wrong)[:50]:
        had, has = (names[section.functions[n]] if n >= 0 else "none" for n in (got[i], want[i]))
        verdict.details[f"parent of {names[section.functions[known[i]]]}: {had}, truly {has}"] += 1
