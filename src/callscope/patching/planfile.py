"""Lays a plan out as the two files the agent and the readers use. Formats: format/schema.toml, records plan_* and
functions_*.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from callscope import format as fmt
from callscope.binary.elf import Image as ElfImage
from callscope.binary.pe import PeImage
from callscope.patching.code import shift_displacements
from callscope.patching.frames import compact_rules
from callscope.patching.planner import Plan
from callscope.patching.seh import join_table
from callscope.patching.text import PART
from callscope.patching.unwind import default_record, join, symbol_file

_MIB = 1 << 20
_GIB = 1 << 30


def _pages(size: int) -> int:
    return (size + fmt.PLAN_PAGE - 1) & -fmt.PLAN_PAGE


def planned_delta(plan: Plan, region_bytes: int) -> int:
    """Where the region should lie, relative to the image's base, in bytes.

    Below a program or library, where address space is free; libraries differ by a hash so that their regions do not
    meet. Programs at a fixed low address have no room below: theirs goes above, out of the heap's way. That of a PE
    image goes above too, for its unwind information counts from the image's base upwards.
    """
    spread = int.from_bytes(hashlib.sha256(plan.image.build_id or str(plan.image.path).encode()).digest()[:2], "little")
    if isinstance(plan.image, PeImage):
        above = -(-plan.image.span // fmt.PLAN_PE_ALIGNMENT) * fmt.PLAN_PE_ALIGNMENT
        return above + (640 + spread % 256 * 2) * _MIB if plan.image.is_library else above + 16 * _MIB
    assert isinstance(plan.image, ElfImage)
    if plan.image.kind == "exec":
        return _pages(plan.image.span) + _GIB
    if plan.image.kind == "pie":
        return -(_pages(region_bytes) + 16 * _MIB)
    return -(_pages(region_bytes) + 640 * _MIB + spread % 256 * 2 * _MIB)


def plan_bytes(plan: Plan) -> bytes:
    """The plan file. Raises PlanError when the region cannot reach the image."""
    bases = fmt.PLAN_PAGE + np.concatenate([[0], np.cumsum([_align(len(part.code)) for part in plan.parts])])
    code_bytes = _pages(int(bases[-1]))
    frames = _frames(plan, bases, code_bytes)
    captures = frames.offset + (len(frames.data) + 7 & -8)
    capture_data, capture_places = _captures(plan)
    sites = _pages(captures + len(capture_data))
    first_site = np.concatenate([[0], np.cumsum([part.flags for part in plan.parts])])
    region_bytes = _pages(sites + int(first_site[-1]))
    delta = planned_delta(plan, region_bytes)
    region = bytearray(region_bytes)
    fixups: list[NDArray[np.int64]] = []
    patches: list[NDArray[np.void]] = []
    for part, base, first in zip(plan.parts, bases.tolist(), first_site.tolist(), strict=False):
        code = np.frombuffer(bytearray(part.code), "u1").copy()
        shift_displacements(code, part.to_image, -(delta + base))
        shift_displacements(code, part.to_stub, -base)
        shift_displacements(code, part.to_flag[:, 0], sites + first - base)
        shift_displacements(code, part.to_capture[:, 0], captures - base + capture_places[part.to_capture[:, 1]])
        region[base : base + len(code)] = code.tobytes()
        fixups.append(part.to_image + base)
        patches.append(_patches(plan, part.patches, delta + base))
    region[code_bytes : code_bytes + len(frames.symbols)] = frames.symbols
    region[frames.offset : frames.offset + len(frames.data)] = frames.data
    region[captures : captures + len(capture_data)] = capture_data
    all_patches = np.concatenate(patches)
    all_patches = all_patches[np.argsort(all_patches["rva"], kind="stable")]
    all_fixups = np.concatenate(fixups).astype("<u4")
    texts = _text_ranges(plan)
    moved = _moved(plan, bases)
    gates = _gates(plan, bases)
    header = np.zeros(1, fmt.PLAN_HEADER)
    patch_offset = _pages(fmt.PLAN_HEADER.itemsize)
    fixup_offset = patch_offset + all_patches.nbytes
    text_offset = fixup_offset + (all_fixups.nbytes + 7 & -8)
    moved_offset = text_offset + texts.nbytes
    gate_offset = moved_offset + moved.nbytes
    region_offset = _pages(gate_offset + gates.nbytes)
    for name, value in {
        "magic": fmt.PLAN_MAGIC,
        "version": fmt.PLAN_VERSION,
        "header_size": fmt.PLAN_HEADER.itemsize,
        "features": fmt.PLAN_HOOKS if plan.text.hooks else 0,
        "build_id_bytes": len(plan.image.build_id),
        "function_count": len(plan.functions.rva),
        "image_span": plan.image.span,
        "delta": delta,
        "region_offset": region_offset,
        "region_bytes": region_bytes,
        "code_bytes": code_bytes,
        "symfile": code_bytes,
        "symfile_bytes": len(frames.symbols) + len(frames.data) if frames.symbols else 0,
        "frames": frames.offset,
        "frames_bytes": frames.table_bytes,
        "patch_offset": patch_offset,
        "fixup_offset": fixup_offset,
        "text_offset": text_offset,
        "patch_count": len(all_patches),
        "fixup_count": len(all_fixups),
        "text_count": len(texts),
        "image_kind": fmt.PLAN_PE if plan.image.is_pe else fmt.PLAN_ELF,
        "moved_offset": moved_offset,
        "moved_count": len(moved),
        "gate_offset": gate_offset,
        "gate_count": len(gates),
        "sites": sites,
        "captures": captures,
        "captures_bytes": len(capture_data),
    }.items():
        header[name] = value
    header["build_id"] = _build_id(plan.image.build_id)
    header["checksum"] = header_checksum(header)
    out = bytearray(region_offset)
    for offset, data in (
        (0, header.tobytes()),
        (patch_offset, all_patches.tobytes()),
        (fixup_offset, all_fixups.tobytes()),
        (text_offset, texts.tobytes()),
        (moved_offset, moved.tobytes()),
        (gate_offset, gates.tobytes()),
    ):
        out[offset : offset + len(data)] = data
    return bytes(out + region)


def _captures(plan: Plan) -> tuple[bytes, NDArray[np.int64]]:
    """The capture records, and by function index the offset of each, int64, shape (functions,)."""
    places = np.zeros(len(plan.functions.rva), np.int64)
    data = bytearray()
    for index, capture in sorted(plan.text.captures.items()):
        places[index] = len(data)
        data += capture.record(index)
    return bytes(data), places


def header_checksum(header: NDArray[np.void]) -> int:
    """The last field of a PLAN_HEADER: FNV-1a, 32 bits (draft-eastlake-fnv, section 2), of the bytes before it."""
    value = 0x811C9DC5
    fields = fmt.PLAN_HEADER.fields
    assert fields is not None
    for byte in header.tobytes()[: fields["checksum"][1]]:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


class _Frames(NamedTuple):
    """Unwind information of a region: `data` at `offset` in it, `table_bytes` of which are registered; `symbols`
    lie before it.
    """

    offset: int
    data: bytes
    table_bytes: int
    symbols: bytes


def _frames(plan: Plan, bases: NDArray[np.int64], code_bytes: int) -> _Frames:
    records = [record for part in plan.parts for record in part.records]
    starts = [part.record_starts + base for part, base in zip(plan.parts, bases, strict=False)]
    if plan.image.is_pe:
        starts_in_order = np.concatenate(starts)
        data = join_table(records, starts_in_order, code_bytes, planned_delta(plan, 0))
        return _Frames(code_bytes, data, fmt.RUNTIME_FUNCTION_BYTES * len(records), b"")
    records.insert(0, default_record(fmt.STUB_POINTERS))
    offset = code_bytes + len(symbol_file(code_bytes, 0, b""))
    data = join(records, np.concatenate([np.zeros(1, np.int64), *starts]), offset)
    return _Frames(offset, data, len(data), symbol_file(code_bytes, offset, data))


def _moved(plan: Plan, bases: NDArray[np.int64]) -> NDArray[np.void]:
    """MOVED records."""
    pairs = zip(plan.parts, bases.tolist(), strict=False)
    rows = np.concatenate([part.moved + np.array([0, base], np.int64) for part, base in pairs])
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    out = np.zeros(len(rows), fmt.MOVED)
    out["rva"], out["place"] = rows.T
    return out


def _gates(plan: Plan, bases: NDArray[np.int64]) -> NDArray[np.void]:
    """GATE records."""
    pairs = zip(plan.parts, bases.tolist(), strict=False)
    rows = np.concatenate([part.gates + np.array([base, 0], np.int64) for part, base in pairs])
    out = np.zeros(len(rows), fmt.GATE)
    out["place"], out["function"] = rows[np.argsort(rows[:, 0], kind="stable")].T
    return out


def functions_bytes(plan: Plan) -> bytes:
    """The functions file."""
    table = np.zeros(len(plan.functions.rva), fmt.FUNCTION)
    table["rva"] = plan.functions.rva
    table["bytes"] = plan.functions.size
    table["owner"] = plan.text.owners
    table["flags"] = function_flags(plan)
    rules = compact_rules(plan.frames)
    header = np.zeros(1, fmt.FUNCTIONS_HEADER)
    for name, value in {
        "magic": fmt.FUNCTIONS_MAGIC,
        "version": fmt.PLAN_VERSION,
        "header_size": fmt.FUNCTIONS_HEADER.itemsize,
        "build_id_bytes": len(plan.image.build_id),
        "function_count": len(table),
        "image_span": plan.image.span,
        "function_offset": fmt.FUNCTIONS_HEADER.itemsize,
        "cfa_offset": fmt.FUNCTIONS_HEADER.itemsize + table.nbytes,
        "cfa_count": len(rules),
    }.items():
        header[name] = value
    header["build_id"] = _build_id(plan.image.build_id)
    return header.tobytes() + table.tobytes() + rules.tobytes()


def function_flags(plan: Plan) -> NDArray[np.uint32]:
    """FUNCTION_* flags of every function, uint32, shape (functions,)."""
    flags = np.full(len(plan.functions.rva), fmt.FUNCTION_EXITS | fmt.FUNCTION_TAILS, np.uint32)
    flags[np.frombuffer(bytes(plan.text.kinds), "u1") == PART] |= fmt.FUNCTION_PART
    flags[sorted(plan.text.hooked)] |= fmt.FUNCTION_HOOKED
    for part in plan.parts:
        flags[part.entered] |= fmt.FUNCTION_ENTRY
        flags[part.exits_left] &= ~np.uint32(fmt.FUNCTION_EXITS)
        flags[part.tails_left] &= ~np.uint32(fmt.FUNCTION_TAILS)
    return flags


def _align(size: int) -> int:
    return (size + 63) & -64


def _build_id(build_id: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(build_id[:32].ljust(32, b"\0"), "u1")


def _patches(plan: Plan, rows: NDArray[np.void], base: int) -> NDArray[np.void]:
    """PATCH records of a part whose code lies at `base` relative to the image."""
    out = np.zeros(len(rows), fmt.PATCH)
    for name in ("rva", "function", "length", "rel_offset", "new"):
        out[name] = rows[name]
    jumps = rows["rel_offset"] != fmt.PATCH_NO_REL
    if jumps.any():
        at = rows["rva"][jumps].astype(np.int64) + rows["rel_offset"][jumps]
        values = (rows["target"][jumps] + base - (at + 4)).astype("<i4").view("u1").reshape(-1, 4)
        new = out["new"][jumps]
        where = rows["rel_offset"][jumps].astype(np.int64)[:, None] + np.arange(4)
        np.put_along_axis(new, where, values, axis=1)
        out["new"][jumps] = new
    code = plan.text.file_code or plan.text.code
    text = np.frombuffer(code.ljust(len(code) + 8, b"\0"), "u1")
    columns = np.arange(8)
    old = text[(rows["rva"].astype(np.int64) - plan.text.low)[:, None] + columns].copy()
    old[columns[None, :] >= rows["length"][:, None]] = 0
    out["old"] = old
    return out


def _text_ranges(plan: Plan) -> NDArray[np.void]:
    """The executable segments, in whole pages."""
    segments = [segment for segment in plan.image.segments if segment.executable and segment.memory_size]
    out = np.zeros(len(segments), fmt.TEXT_RANGE)
    for row, segment in zip(out, segments, strict=True):
        first = segment.rva & -fmt.PLAN_PAGE
        row["rva"] = first
        row["bytes"] = _pages(segment.rva + segment.memory_size) - first
    return out
