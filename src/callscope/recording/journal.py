"""What the recorder reads of the journal for its summary: how many processes, what went wrong.

The trace reader does the same with more care; the recorder only needs what it prints. Records: format/schema.toml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from callscope import format as records

_NEAR_BYTES = 2048
"""of the stack, in which a return address of a trampoline may lie"""


@dataclass
class JournalSummary:
    """What agents wrote of their processes.

    processes: how many had an agent. execs: how often one became another program. notes: what agents complained of,
    without repeats, in order. refused: by module path, patches left out because the code in memory was not the file's.
    untraced: paths of modules without a plan, in order of loading. faults: by process, the exception that ended it on
    Windows, as far as one can tell; raised: those of them that raised it themselves. crashes: how many on Linux,
    without faults that the program handled, whose signals are in handled. crash_places: addresses where faults
    happened, or that the stack held just there. regions: the first function id of each image, and where its
    trampolines lay. scripts: module, file and name of functions of interpreters.
    """

    processes: int = 0
    execs: int = 0
    crashes: int = 0
    notes: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    untraced: list[str] = field(default_factory=list)
    faults: dict[int, int] = field(default_factory=dict)
    raised: set[int] = field(default_factory=set)
    handled: set[int] = field(default_factory=set)
    crash_places: list[int] = field(default_factory=list)
    regions: list[tuple[int, range]] = field(default_factory=list)
    scripts: list[tuple[str, str, str]] = field(default_factory=list)

    def crashed_regions(self) -> set[int]:
        """The first function ids of images in whose trampolines a crash may have happened."""
        return {id_base for id_base, region in self.regions if any(place in region for place in self.crash_places)}


def summarise_journal(path: Path) -> JournalSummary:
    """Read the journal; what is torn is passed over."""
    summary = JournalSummary()
    header = np.fromfile(path, records.JOURNAL_HEADER, 1)
    if len(header) != 1:
        return summary
    data = np.fromfile(path, np.uint8, min(int(header["tail"][0]), records.JOURNAL_BYTES)).tobytes()
    at, head = records.JOURNAL_HEADER_BYTES, records.JOURNAL_RECORD.itemsize
    empty, behind = (
        records.JOURNAL_HEADER_BYTES + records.JOURNAL_CELL_BYTES * cells
        for cells in (int(min(header["next_cell"][0], header["cells"][0])), int(header["cells"][0]))
    )
    while at + head <= len(data):
        if empty <= at < behind:  # cells that no thread had yet
            at = behind
            continue
        record = np.frombuffer(data, records.JOURNAL_RECORD, 1, at)[0]
        size = int(record["size"])
        if size < head or size % 8 or at + size > len(data):
            at += 8  # a hole
            continue
        _add(summary, int(record["kind"]), int(record["process"]), data[at + head : at + size])
        at += size
    return summary


def _add(summary: JournalSummary, kind: int, process: int, payload: bytes) -> None:
    if kind == records.JOURNAL_PROCESS_START and len(payload) >= records.PROCESS_START.itemsize:
        if np.frombuffer(payload, records.PROCESS_START, 1)[0]["cause"] == records.CAUSE_EXEC:
            summary.execs += 1
        else:
            summary.processes += 1
    elif kind == records.JOURNAL_CRASH:
        _add_crash(summary, process, payload)
    elif kind == records.JOURNAL_PROCESS_END:
        summary.faults.pop(process, None)
    elif kind == records.JOURNAL_SCRIPT_FUNCTION and len(payload) >= records.SCRIPT_FUNCTION.itemsize:
        summary.scripts.append(_script(payload))
    elif kind == records.JOURNAL_NOTE and len(payload) >= records.TEXT_PAYLOAD.itemsize:
        size = int(np.frombuffer(payload, records.TEXT_PAYLOAD, 1)[0]["text_bytes"])
        text = payload[records.TEXT_PAYLOAD.itemsize :][:size].decode("utf-8", "replace")
        if text not in summary.notes:
            summary.notes.append(text)
    elif kind == records.JOURNAL_MODULE_LOAD and len(payload) >= records.MODULE_LOAD.itemsize:
        module = np.frombuffer(payload, records.MODULE_LOAD, 1)[0]
        path = payload[records.MODULE_LOAD.itemsize :][: int(module["path_bytes"])].decode("utf-8", "replace")
        traced = bool(int(module["module_flags"]) & records.MODULE_TRACED)
        if not traced and path.startswith("/") and path not in summary.untraced:
            summary.untraced.append(path)
        if traced:
            region = int(module["region"])
            summary.regions.append((int(module["id_base"]), range(region, region + int(module["region_bytes"]))))
        if module["patch_refused"]:
            summary.refused[path] = max(summary.refused.get(path, 0), int(module["patch_refused"]))


def _script(payload: bytes) -> tuple[str, str, str]:
    script = np.frombuffer(payload, records.SCRIPT_FUNCTION, 1)[0]
    texts, at = {}, records.SCRIPT_FUNCTION.itemsize
    for name in ("name", "file", "module"):
        size = int(script[f"{name}_bytes"])
        texts[name] = payload[at : at + size].decode("utf-8", "replace")
        at += size
    return texts["module"], texts["file"], texts["name"]


def _add_crash(summary: JournalSummary, process: int, payload: bytes) -> None:
    if len(payload) < records.CRASH.itemsize:
        return
    crash = np.frombuffer(payload, records.CRASH, 1)[0]
    flags = int(crash["crash_flags"])
    if crash["system"] == records.CRASH_WINDOWS and not flags & records.CRASH_AT_EXIT:
        summary.faults[process] = int(crash["code"])
        if flags & records.CRASH_RAISED:
            summary.raised.add(process)
        else:
            summary.raised.discard(process)
    elif not flags & records.CRASH_HANDLED or flags & records.CRASH_AT_EXIT:
        summary.crashes += 1
    else:
        summary.handled.add(int(crash["code"]))
    vector = (int(crash["vector_bytes"]) + 7) & ~7
    size = min(int(crash["stack_bytes"]), _NEAR_BYTES) & ~7
    stack = payload[records.CRASH.itemsize + vector :][:size]
    summary.crash_places += [int(crash["rip"]), *np.frombuffer(stack[: len(stack) & ~7], "<u8").tolist()]
