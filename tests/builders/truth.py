"""Reads the log of a random program and holds rebuilt calls against it. No tolerance: one wrong parent is a failure.

A logged function is found in the trace by its address, through the symbols of the unstripped program; functions that
log nothing (the C++ runtime linked in, helpers at -O0) may stand between a call and its nearest logged ancestor.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from callscope.binary.functions import find_functions
from callscope.binary.open import open_image
from callscope.binary.symbols import open_symbols
from tests.builders.random_program import (
    COROUTINE_FUNCTIONS,
    FRESH_STACK_FUNCTIONS,
    SIGNAL_FUNCTIONS,
    UNTRACED_TAIL_FUNCTIONS,
    Program,
)

Ints = npt.NDArray[np.int64]

UNWOUND, RETURNED, TAILED, FINISHED, UNSEEN = range(5)
"""How a call ended by the program's own log (tests/targets/random_runtime.h)."""

ENDINGS = ("return", "tail_call", "unwound", "running")
RETURN, TAIL_CALL, UNWIND, RUNNING = (1 << i for i in range(4))
MAIN_STREAM, SIGNAL_STREAM = 0, 1


@dataclass(frozen=True)
class Section:
    """The log of one thread, or of the signal handlers on it (`stream`).

    `parents` are indices in this section; -1 for none, -2 for a call made before the fork this process began with.
    """

    pid: int
    tid: int
    stream: int
    functions: Ints
    parents: Ints
    ends: Ints


@dataclass(frozen=True)
class TracedThread:
    """The calls a trace has of one thread, in order of start. `parents` are indices in these arrays, or -1."""

    pid: int
    tid: int
    addresses: Ints
    """Of the called function, relative to its image; -1 for functions of other modules."""
    parents: Ints
    ended: Ints
    """Index in ENDINGS."""


@dataclass(frozen=True)
class Patched:
    """The numbers of the logged functions that the plan patched; of others the truth cannot be asked for."""

    entries: frozenset[int]
    exits: frozenset[int]
    tails: frozenset[int]


@dataclass
class Verdict:
    """The comparison of one run."""

    calls: int = 0
    wrong_parents: int = 0
    wrong_endings: int = 0
    skipped: int = 0
    """Calls of functions whose entry could not be patched."""
    undecidable: int = 0
    """Calls whose parent nothing could tell: see `is_undecidable`."""
    problems: list[str] = field(default_factory=list)
    details: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        """Whether nothing at all was wrong."""
        return not (self.problems or self.wrong_parents or self.wrong_endings)

    def __str__(self) -> str:
        text = f"{self.calls} calls, {self.wrong_parents} wrong parents, {self.wrong_endings} wrong endings, "
        text += f"{self.undecidable} undecidable, {self.skipped} calls of unpatched functions"
        common = [f"{count} x {what}" for what, count in self.details.most_common(8)]
        return "\n    ".join([text, *self.problems, *common])


def read_truth(path: Path) -> list[Section]:
    """The sections of a program's log file."""
    data = path.read_bytes()
    sections, at = [], 0
    while at < len(data):
        pid, tid, stream, count = struct.unpack_from("<4i", data, at)
        rows = np.frombuffer(data, "<i4", 3 * count, at + 16).reshape(count, 3).astype(np.int64)
        sections.append(Section(pid, tid, stream, rows[:, 0], rows[:, 1], rows[:, 2]))
        at += 16 + 12 * count
    return sections


def image_base(path: Path) -> int:
    """The lowest address a file loads at, rounded down to a page: what relative addresses count from."""
    data = path.read_bytes()
    if data[:2] == b"MZ":
        (header,) = struct.unpack_from("<I", data, 60)
        return int(struct.unpack_from("<Q", data, header + 48)[0])  # ImageBase
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<2H", data, 54)
    headers = [struct.unpack_from("<2I6Q", data, offset + i * size) for i in range(count)]
    return int(min(header[3] for header in headers if header[0] == 1)) & ~0xFFF


def logged_addresses(path: Path, program: Program) -> dict[int, int]:
    """Relative address -> number of the logged function, clones that a compiler made (`f012.constprop.0`) included."""
    numbers = {name: number for number, name in enumerate(program.names)}
    if path.suffix == ".exe" and path.with_suffix(".pdb").exists():
        return _addresses_in_pdb(path, program, numbers)
    base = image_base(path)
    output = subprocess.run(["nm", "--defined-only", str(path)], check=True, capture_output=True, text=True).stdout
    found: dict[int, int] = {}
    for line in output.splitlines():
        address, kind, symbol = line.split(maxsplit=2)
        name = _source_name(symbol)
        if kind not in "tT" or name not in numbers:
            continue
        number = numbers[name]
        if found.setdefault(int(address, 16) - base, number) != number:
            raise AssertionError(
                f"{path}: {symbol} shares its address with {program.names[found[int(address, 16) - base]]}"
            )
    return found


def _addresses_in_pdb(path: Path, program: Program, numbers: Mapping[str, int]) -> dict[int, int]:
    """As `logged_addresses`, for a Windows program whose symbols are in a PDB, where names are demangled."""
    methods = [name for name in program.names if re.fullmatch(r"v\d+", name)]
    rvas = find_functions(open_image(path)).rva
    found = {}
    for rva, symbol in zip(rvas.tolist(), open_symbols(path).names(rvas), strict=True):
        method = re.match(r"Class(\d+)::(left|right)\(", symbol or "")
        if method:
            name = methods[2 * int(method[1]) + (method[2] == "right")]
        else:
            name, is_lambda, rest = (symbol or "").partition("::<lambda")
            name = name.partition("(")[0] + (".lambda" if is_lambda and "operator()" in rest else is_lambda)
        if name in numbers:
            found[int(rva)] = numbers[name]
    return found


def _source_name(symbol: str) -> str:
    """The name in the program of a symbol: without what compilers add to clones and to functions that are not global.

    A lambda is named after its function; a part split off for being cold is no function and gets no name.
    """
    mangled = re.match(r"_Z(Z?)L?(\d+)", symbol)
    if mangled is None:
        name, *suffixes = symbol.split(".")
        return "" if "cold" in suffixes else name
    name = symbol[mangled.end() :][: int(mangled[2])]
    rest = symbol[mangled.end() + len(name) :]
    if ".cold" in rest or (mangled[1] and "clE" not in rest):
        return ""
    return name + ".lambda" if mangled[1] else name


def allowed_endings(section: Section, fresh: npt.NDArray[np.bool_]) -> Ints:
    """For every call the endings (bits in the order of ENDINGS) that agree with the log.

    A TAILED call ends `tail_call` where the compiler made it one, and else as the call it ends with does. A call left
    by longjmp or an exception that was made on another stack may be seen as still running: nothing proves its end.
    """
    count = len(section.functions)
    allowed = np.zeros(count, np.int64)
    last_child = np.full(count, -1, np.int64)
    inside = section.parents >= 0
    np.maximum.at(last_child, section.parents[inside], np.arange(count)[inside])
    simple = {RETURNED: RETURN, FINISHED: RETURN | TAIL_CALL, UNSEEN: TAIL_CALL | UNWIND, UNWOUND: UNWIND}
    for i in range(count - 1, -1, -1):
        end = int(section.ends[i])
        if end == TAILED:
            allowed[i] = TAIL_CALL | (allowed[last_child[i]] if last_child[i] >= 0 else RETURN | UNWIND | RUNNING)
        else:
            allowed[i] = simple[end] | (RUNNING if end == UNWOUND and fresh[i] else 0)
    return allowed


def nearest(parents: Ints, wanted: npt.NDArray[np.bool_]) -> Ints:
    """For every call its nearest ancestor among the wanted ones, or -1."""
    found = parents.copy()
    while True:
        through = (found >= 0) & ~wanted[found]
        if not through.any():
            return found
        found[through] = parents[found[through]]


def _descends(parents: Ints, marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    result = marked.copy()
    for i in range(len(parents)):
        if parents[i] >= 0 and result[parents[i]]:
            result[i] = True
    return result


def _resumed(section: Section, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Calls of coroutines begun before the fork: this process's trace has nothing of their stacks."""
    is_coroutine = np.array([name in COROUTINE_FUNCTIONS for name in names])
    return np.asarray(is_coroutine[section.functions] & (section.parents == -2))


def is_undecidable(
    functions: Ints, seen_parents: Ints, true_parents: Ints, ends: Ints, names: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Callbacks that a caller's later untraced call makes, taken for those of its earlier callee.

    That callee ended in a tail jump into untraced code. When this code returned, and when its like was called again,
    nothing traced took part: no tracer of calls can see that the callbacks are now those of the caller.
    """
    is_thunk = np.array([name in UNTRACED_TAIL_FUNCTIONS for name in names])
    seen = np.maximum(seen_parents, 0)
    through = (seen_parents >= 0) & is_thunk[functions[seen]] & (ends[seen] == FINISHED)
    return np.asarray(through & (true_parents[seen] == true_parents))


def _compare_section(section: Section, thread: TracedThread, program: Program, numbers: Ints, patched: Patched,
                     verdict: Verdict) -> None:  # fmt: skip
    names = program.names
    where = f"pid {section.pid} tid {section.tid}"
    is_signal = np.array([name in SIGNAL_FUNCTIONS for name in names])
    is_fresh = np.array([name in FRESH_STACK_FUNCTIONS for name in names])
    # The trace, restricted to the logged functions of this stream.
    wanted = numbers >= 0
    wanted[wanted] = is_signal[numbers[wanted]] == (section.stream == SIGNAL_STREAM)
    seen = np.flatnonzero(wanted)
    seen_functions = numbers[seen]
    # The truth, restricted to patched functions.
    kept_mask = np.isin(section.functions, list(patched.entries))
    kept = np.flatnonzero(kept_mask)
    verdict.skipped += len(section.functions) - len(kept)
    functions = section.functions[kept]
    if len(seen) != len(kept) or not np.array_equal(seen_functions, functions):
        shared = min(len(seen), len(kept))
        differ = np.flatnonzero(seen_functions[:shared] != functions[:shared])
        at = int(differ[0]) if len(differ) else shared
        around = slice(max(at - 3, 0), at + 4)
        verdict.problems.append(
            f"{where}: {len(seen)} calls in the trace, {len(kept)} in truth; they part at call {at}: "
            f"trace {[names[n] for n in seen_functions[around]]}, truth {[names[n] for n in functions[around]]}"
        )
        return
    verdict.calls += len(kept)
    # Parents, as positions among the restricted calls.
    seen_parents = np.searchsorted(seen, nearest(thread.parents, wanted)[seen])
    seen_parents[nearest(thread.parents, wanted)[seen] < 0] = -1
    true = nearest(section.parents, kept_mask)[kept]
    true_parents = np.where(true < 0, -1, np.searchsorted(kept, true))
    wrong = seen_parents != true_parents
    wrong &= ~(is_fresh[functions] & (seen_parents == -1))
    wrong &= ~_resumed(section, names)[kept]
    undecidable = wrong & is_undecidable(functions, seen_parents, true_parents, section.ends[kept], names)
    verdict.undecidable += int(undecidable.sum())
    wrong &= ~undecidable
    verdict.wrong_parents += int(wrong.sum())
    for i in np.flatnonzero(wrong)[:200]:
        got, want = (names[functions[p]] if p >= 0 else "none" for p in (seen_parents[i], true_parents[i]))
        verdict.details[f"parent of {names[functions[i]]}: {got}, truly {want}"] += 1
    # Endings.
    fresh = _descends(section.parents, is_fresh[section.functions] | _resumed(section, names))
    allowed = allowed_endings(section, fresh)[kept]
    ended = thread.ended[seen]
    exits, tails = np.isin(functions, list(patched.exits)), np.isin(functions, list(patched.tails))
    ends = section.ends[kept]
    certain = (ends == UNWOUND) | (exits & tails) | (exits & (ends == RETURNED))
    wrong = certain & ((allowed >> ended) & 1 == 0)
    verdict.wrong_endings += int(wrong.sum())
    for i in np.flatnonzero(wrong)[:200]:
        may = "/".join(name for bit, name in enumerate(ENDINGS) if allowed[i] >> bit & 1)
        verdict.details[f"ending of {names[functions[i]]}: {ENDINGS[ended[i]]}, truly {may}"] += 1


def compare(truth: Sequence[Section], threads: Sequence[TracedThread], program: Program, addresses: Mapping[int, int],
            patched: Patched) -> Verdict:  # fmt: skip
    """Hold every thread of a trace against the program's own log."""
    verdict = Verdict()
    by_id = {(thread.pid, thread.tid): thread for thread in threads}
    if len(by_id) != len(threads):
        verdict.problems.append("the trace has two threads of the same pid and tid")
    known = {(section.pid, section.tid) for section in truth}
    keys = np.array(sorted(addresses), np.int64)
    values = np.array([addresses[key] for key in keys], np.int64)
    for section in truth:
        thread = by_id.get((section.pid, section.tid))
        if thread is None:
            verdict.problems.append(f"pid {section.pid} tid {section.tid} is not in the trace")
            continue
        position = np.minimum(np.searchsorted(keys, thread.addresses), len(keys) - 1)
        numbers = np.where(keys[position] == thread.addresses, values[position], -1)
        _compare_section(section, thread, program, numbers, patched, verdict)
    for thread in threads:
        if (thread.pid, thread.tid) not in known and bool(np.isin(thread.addresses, keys).any()):
            verdict.problems.append(f"pid {thread.pid} tid {thread.tid} has logged functions and no truth")
    return verdict
