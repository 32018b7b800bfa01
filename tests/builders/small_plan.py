"""Plans made by hand for the agent's own tests: a few functions of a small program, by name, without the planner.

Entries and rets are patched where the instructions beside them can simply be moved; a function where that is not so is
an error, so a test knows what is patched. The layout is format/schema.toml's plan_header.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from iced_x86 import Decoder, FlowControl, Instruction, OpKind

from callscope import format as records
from callscope.patching.planfile import header_checksum

DELTA = 0x4000000
"""Trampolines begin this far above the image's first byte, or below when it is negative (`small_plan`)."""
JUMP_BYTES = 5


@dataclass
class SmallPlan:
    """A plan file and its functions: name -> index."""

    path: Path
    functions: dict[str, int]


@dataclass
class _Build:
    text: bytes
    text_rva: int
    region: int
    code: bytearray = field(default_factory=lambda: bytearray(records.PLAN_PAGE))
    fixups: list[int] = field(default_factory=list)
    patches: list[tuple[int, int, bytes, bytes]] = field(default_factory=list)
    gates: list[tuple[int, int]] = field(default_factory=list)

    def bytes_at(self, rva: int, count: int) -> bytes:
        return self.text[rva - self.text_rva : rva - self.text_rva + count]

    def branch(self, opcode: int, target: int, *, inside: bool) -> None:
        """Append a jmp or call to `target`: an offset in the region when `inside`, else relative to the image."""
        next_offset = len(self.code) + JUMP_BYTES
        if not inside:
            self.fixups.append(len(self.code) + 1)
            target -= self.region
        self.code += bytes([opcode]) + (target - next_offset).to_bytes(4, "little", signed=True)

    def gate(self, stub: int, function: int) -> None:
        """Append a call of the stub page, within eight aligned bytes."""
        while len(self.code) % 8 > 3:
            self.code += b"\x90"
        self.gates.append((len(self.code), function))
        self.branch(0xE8, stub * records.STUB_BYTES, inside=True)

    def patch(self, rva: int, function: int, trampoline: int) -> None:
        displacement = self.region + trampoline - (rva + JUMP_BYTES)
        new = b"\xe9" + displacement.to_bytes(4, "little", signed=True)
        self.patches.append((rva, function, self.bytes_at(rva, JUMP_BYTES), new))


def small_plan(program: Path, names: Sequence[str], output: Path, delta: int = DELTA) -> SmallPlan:
    """Plan the functions `names` of a program with symbols and write the plan to `output`."""
    symbols = read_symbols(program)
    segments = read_segments(program)
    base = min(start for start, _, _, _ in segments) & ~0xFFF
    end = max(start + size for start, size, _, _ in segments)
    start, _, offset, executable = next(segment for segment in segments if segment[3])
    assert executable
    data = program.read_bytes()
    size = next(size for begin, size, _, _ in segments if begin == start)
    build = _Build(data[offset : offset + size], start - base, delta)
    functions = {name: index for index, name in enumerate(names)}
    for name, index in functions.items():
        plan_function(build, symbols[name][0] - base, symbols[name][1], index)
    first, last = (start - base) & ~0xFFF, (start - base + size + 0xFFF) & ~0xFFF
    write_plan(build, output, len(names), (end - base + 0xFFF) & ~0xFFF, (first, last - first))
    return SmallPlan(output, functions)


def read_symbols(program: Path) -> dict[str, tuple[int, int]]:
    """Function name -> address, size."""
    lines = subprocess.run(["nm", "-S", str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    fields = [line.split() for line in lines]
    return {f[3]: (int(f[0], 16), int(f[1], 16)) for f in fields if len(f) == 4 and f[2] in "tTwW"}


def read_segments(program: Path) -> list[tuple[int, int, int, bool]]:
    """Address, size in memory, file offset, executable of every PT_LOAD."""
    lines = subprocess.run(["readelf", "-lW", str(program)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in lines.splitlines() if line.split()[:1] == ["LOAD"]]
    return [(int(row[2], 16), int(row[5], 16), int(row[1], 16), "E" in row[6:-1]) for row in rows]


def plan_function(build: _Build, rva: int, size: int, index: int) -> None:
    """Patch the entry and every ret of one function."""
    decoder = Decoder(64, build.bytes_at(rva, size), ip=rva)
    instructions = list(decoder)
    targets = {i.near_branch_target for i in instructions if i.op_count and i.op0_kind == OpKind.NEAR_BRANCH64}
    moved, length = [], 0
    for instruction in instructions[1 if instructions[0].code == 0 else 0 :]:
        moved.append(instruction)
        length += instruction.len
        if length >= JUMP_BYTES:
            break
    check_movable(moved, targets, rva)
    trampoline = len(build.code)
    build.code += b"\x51\xb9" + index.to_bytes(4, "little")  # push rcx; mov ecx, index
    build.gate(records.STUB_ENTRY, index)
    build.code += b"\x59" + build.bytes_at(rva, length)  # pop rcx
    build.branch(0xE9, rva + length, inside=False)
    build.patch(rva, index, trampoline)
    for position, instruction in enumerate(instructions):
        if instruction.flow_control == FlowControl.RETURN:
            plan_exit(build, instructions[: position + 1], targets, index, rva + length)


def plan_exit(build: _Build, instructions: Sequence[Instruction], targets: set[int], index: int, lowest: int) -> None:
    """Patch the ret that ends `instructions`."""
    count, length = 0, 0
    while length < JUMP_BYTES:
        count += 1
        length += instructions[-count].len
    run = instructions[-count:]
    start = run[0].ip
    assert start >= lowest, f"the ret at {start:#x} is too near the entry"
    check_movable(run[:-1], targets, start)
    assert run[-1].ip not in targets, f"the ret at {run[-1].ip:#x} is a branch target"
    trampoline = len(build.code)
    build.code += build.bytes_at(start, length - run[-1].len)
    build.gate(records.STUB_EXIT, index)
    build.code += b"\xc3"
    build.patch(start, index, trampoline)


def check_movable(run: Sequence[Instruction], targets: set[int], start: int) -> None:
    """Fail unless these instructions mean the same elsewhere and nothing jumps among them."""
    for instruction in run:
        assert instruction.ip == start or instruction.ip not in targets, f"branch into {instruction.ip:#x}"
        assert not instruction.is_ip_rel_memory_operand, f"{instruction} is relative"
        assert instruction.flow_control == FlowControl.NEXT, f"{instruction} branches"


def write_plan(build: _Build, output: Path, functions: int, span: int, text: tuple[int, int]) -> None:
    """Write the file: header, patches, fixups, text range, region."""
    page = records.PLAN_PAGE
    build.code += bytes(-len(build.code) % page)
    patches = np.zeros(len(build.patches), records.PATCH)
    for row, (rva, function, old, new) in zip(patches, sorted(build.patches), strict=True):
        row["rva"], row["function"], row["length"], row["rel_offset"] = rva, function, len(new), 1
        row["old"][: len(old)] = np.frombuffer(old, np.uint8)
        row["new"][: len(new)] = np.frombuffer(new, np.uint8)
    fixups = np.array(build.fixups, np.uint32)
    texts = np.array([text], records.TEXT_RANGE)
    header = np.zeros(1, records.PLAN_HEADER)
    gates = np.array(build.gates, records.GATE)
    tables = patches.tobytes() + texts.tobytes() + fixups.tobytes() + gates.tobytes()
    begin = records.PLAN_HEADER.itemsize
    values = {
        "magic": records.PLAN_MAGIC,
        "version": records.PLAN_VERSION,
        "header_size": begin,
        "function_count": functions,
        "image_span": span,
        "delta": build.region,
        "region_offset": (begin + len(tables) + page - 1) // page * page,
        "region_bytes": len(build.code),
        "code_bytes": len(build.code),
        "sites": len(build.code),
        "captures": len(build.code),
        "patch_offset": begin,
        "patch_count": len(patches),
        "text_offset": begin + patches.nbytes,
        "text_count": 1,
        "fixup_offset": begin + patches.nbytes + texts.nbytes,
        "fixup_count": len(fixups),
        "gate_offset": begin + patches.nbytes + texts.nbytes + fixups.nbytes,
        "gate_count": len(gates),
    }
    for name, value in values.items():
        header[name] = value
    header["checksum"] = header_checksum(header)
    content = header.tobytes() + tables
    output.write_bytes(content + bytes(int(header["region_offset"][0]) - len(content)) + bytes(build.code))
