"""Where control may arrive, and which functions are parts of others: the ground rules of a plan.

A byte that anything may jump to never lies inside a patch, only at its start.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from callscope.binary.edges import Edges, data_targets, table_targets
from callscope.binary.functions import FunctionTable
from callscope.binary.image import Image
from callscope.binary.open import Unwinding
from callscope.patching.text import DATA, GUARDED, HARD, NOT_PART, PART, SIGNAL_FRAME, SOFT, Text


def build_text(image: Image, unwinding: Unwinding, functions: FunctionTable, edges: Edges) -> Text:
    """Everything the planners share about one image's code.

    `edges` must be the scan of `functions` and of the code between them.
    """
    low, high = code_bounds(image)
    starts = functions.rva.astype(np.int64)
    ends = starts + functions.size
    pointers = [image.relocated_code_pointers(), edges.code_references]
    if image.is_fixed:
        pointers.append(data_targets(image, low, high))
    interior = np.unique(np.concatenate(pointers))
    landing = unwinding.landing_pads()
    landings = np.unique(np.concatenate([landing.pads, edges.second_returns]))
    parts, owners = find_parts(functions, edges, interior, unwinding.owners())
    jump_tables, switches = _switches(image, edges, starts, ends, owners, low, high)
    tables = table_targets(image, jump_tables, low, high)
    hard = np.unique(np.concatenate([interior, tables, landings, edges.call_targets, functions.rva]))
    barriers = np.zeros(high - low, np.uint8)
    soft = edges.branch_targets
    barriers[soft[(soft >= low) & (soft < high)] - low] |= SOFT
    barriers[hard[(hard >= low) & (hard < high)] - low] |= HARD
    for ranges, bit in ((edges.data, DATA), (landing.guarded, GUARDED)):
        for start, end in ranges.tolist():
            barriers[start - low : end - low] |= bit
    # A jump table behind the last ret of a function without unwind information must not be taken for padding.
    behind = edges.tables[edges.tables[:, 2] == 0][:, 1]
    behind = behind[(behind >= low) & (behind < high)]
    barriers[behind[_index_of(starts, ends, behind.astype(np.uint32)) < 0] - low] |= DATA
    order = np.argsort(edges.branch_targets, kind="stable")
    kinds = np.where(functions.signal_frame, SIGNAL_FRAME, np.where(parts, PART, NOT_PART)).astype(np.uint8)
    inside = _index_of(starts, ends, interior)
    inside = inside[(inside >= 0) & (starts[np.maximum(inside, 0)] != interior)]
    unreadable = _index_of(starts, ends, unwinding.frames.fdes["start"][landing.unreadable])
    source_function = _index_of(starts, ends, edges.branch_sources)
    target_function = _index_of(starts, ends, edges.branch_targets)
    across = edges.branch_conditional & (source_function != target_function) & (target_function >= 0)
    conditional = np.unique(edges.branch_targets[across])
    return Text(
        low=low,
        high=high,
        code=_code_bytes(image, low, high),
        barriers=bytearray(barriers.tobytes()),
        starts=starts.tolist(),
        ends=ends.tolist(),
        kinds=bytearray(kinds.tobytes()),
        owners=owners,
        branch_targets=edges.branch_targets[order],
        branch_sources=edges.branch_sources[order],
        plt=tuple((int(first), int(last)) for first, last in image.plt_ranges),
        undecodable=frozenset(edges.undecodable.tolist()) | frozenset(unreadable.tolist()),
        conditional_entries=frozenset() if image.is_pe else frozenset(conditional.tolist()),
        switches=switches,
        interior_pointers=frozenset(np.unique(inside).tolist()),
        landings=landings.tolist(),
        exposed=frozenset(edges.exposed.tolist()),
        red_zone=not image.is_pe,
        mixed=image.is_pe,
        calls_stay=image.has_shadow_stack,
    )


def code_bounds(image: Image) -> tuple[int, int]:
    """Lowest and highest relative address of the image's code sections."""
    sections = image.code_sections
    return min(section.rva for section in sections), max(section.rva + section.size for section in sections)


def _code_bytes(image: Image, low: int, high: int) -> bytes:
    """The code from `low` to `high`; what lies between sections reads as zeros."""
    code = bytearray(high - low)
    for section in image.code_sections:
        data = image.section_data(section)
        code[section.rva - low : section.rva - low + len(data)] = data
    return bytes(code)


def _index_of(starts: NDArray[np.int64], ends: NDArray[np.int64], addresses: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Index of the function that contains each address, -1 where none does."""
    index = np.searchsorted(starts, addresses, "right") - 1
    outside = (index < 0) | (addresses >= ends[np.maximum(index, 0)])
    return np.where(outside, -1, index)


def find_parts(
    functions: FunctionTable, edges: Edges, interior: NDArray[np.uint32], named_owners: dict[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.uint32]]:
    """Which functions are cold parts of another, and of which: (bool array, owner indices uint32).

    A part either begins with a stack frame already made (its first call frame rule says so, or its symbol does), or is
    reached only by jumps from one other function, one of them conditional, or only by running on from the one before
    it: nothing calls it and no pointer to it is known. `named_owners`: start of a part -> start of its function,
    as far as the file says so.
    """
    count = len(functions.rva)
    starts = functions.rva.astype(np.int64)
    ends = starts + functions.size
    source = _index_of(starts, ends, edges.branch_sources)
    target = np.searchsorted(starts, edges.branch_targets)
    at_start = (target < count) & (starts[np.minimum(target, count - 1)] == edges.branch_targets) & (source >= 0)
    at_start &= source != target
    source, target, conditional = source[at_start], target[at_start], edges.branch_conditional[at_start]
    owners = np.arange(count, dtype=np.uint32)
    known = np.isin(functions.rva, edges.call_targets) | np.isin(functions.rva, interior)
    single = np.full(count, -1, np.int64)
    mixed = np.zeros(count, np.bool_)
    some_conditional = np.zeros(count, np.bool_)
    single[target] = source
    mixed[target[single[target] != source]] = True
    some_conditional[target[conditional]] = True
    alone = (single >= 0) & ~mixed & some_conditional & ~known & ~functions.named
    before = edges.open_ended[edges.open_ended + 1 < count]
    before = before[ends[before] == starts[before + 1]]
    run_into = np.zeros(count, np.bool_)
    run_into[before + 1] = True
    run_into &= ~known & ~functions.named
    single[run_into] = np.flatnonzero(run_into) - 1
    parts = (functions.cold | alone | run_into) & ~functions.signal_frame
    # A part entered in its middle only is owned by whoever jumps into it.
    loose = np.flatnonzero(parts & (single < 0))
    if len(loose):
        into = _index_of(starts, ends, edges.branch_targets)
        origin = _index_of(starts, ends, edges.branch_sources)
        foreign = (into >= 0) & (origin >= 0) & (into != origin)
        for index in loose.tolist():
            sources = origin[foreign & (into == index)]
            if len(sources):
                single[index] = sources[0]
    if named_owners:
        part, whole = np.array(sorted(named_owners.items()), np.int64).T
        part, whole = np.searchsorted(starts, part), _index_of(starts, ends, whole.astype(np.uint32))
        known_part = (whole >= 0) & parts[np.minimum(part, count - 1)]
        single[part[known_part]] = whole[known_part]
    owned = parts & (single >= 0)
    owners[owned] = single[owned]
    for _ in range(8):  # a part of a part belongs to the whole
        owners = owners[owners]
    return parts, owners


def _switches(
    image: Image,
    edges: Edges,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    owners: NDArray[np.uint32],
    low: int,
    high: int,
) -> tuple[NDArray[np.int64], frozenset[int]]:
    """(address, origin) of what may be jump tables, int64, shape (n, 2), and the functions that surely have one.

    Data computed in a function with an indirect jump (or in a part of it) may be a table when an early entry leads
    into the code; it surely is when that entry leads back into the function.
    """
    jumping = np.isin(owners[edges.tables[:, 0]], owners[edges.indirect])
    tables: list[tuple[int, int]] = []
    sure: set[int] = set()
    for index, address, origin in edges.tables[jumping].tolist():
        entries = np.frombuffer(image.read(address, 16)[:16].ljust(16, b"\0"), "<i4").astype(np.int64) + origin
        if ((entries >= low) & (entries < high)).any():
            tables.append((address, origin))
            if ((entries >= starts[index]) & (entries < ends[index])).any():
                sure.add(index)
    return np.array(tables, np.int64).reshape(-1, 2), frozenset(sure)
