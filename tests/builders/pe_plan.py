"""A planned PE image in memory, patched as the agent would, beside the untouched one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from iced_x86 import Decoder, Mnemonic
from numpy.typing import NDArray

from callscope import format as fmt
from callscope.binary.pe import PeImage
from callscope.patching.planfile import plan_bytes
from callscope.patching.planner import Plan
from tests.builders.windows_unwinder import Caller, Read, Table, Value, frame_distance, unwind


@dataclass
class PatchedImage:
    """The image of a plan, before and after; addresses are relative to its base."""

    plan: Plan

    @cached_property
    def file(self) -> bytes:
        """The plan file."""
        return plan_bytes(self.plan)

    @cached_property
    def header(self) -> np.void:
        """Its header."""
        header: np.void = np.frombuffer(self.file, fmt.PLAN_HEADER, 1)[0]
        return header

    def _records(self, kind: np.dtype[np.void], name: str) -> NDArray[np.void]:
        return np.frombuffer(self.file, kind, int(self.header[f"{name}_count"]), int(self.header[f"{name}_offset"]))

    @cached_property
    def patches(self) -> NDArray[np.void]:
        """PATCH records."""
        return self._records(fmt.PATCH, "patch")

    @cached_property
    def moved(self) -> NDArray[np.void]:
        """MOVED records."""
        return self._records(fmt.MOVED, "moved")

    @cached_property
    def region(self) -> bytes:
        """The region's bytes."""
        return self.file[int(self.header["region_offset"]) :][: int(self.header["region_bytes"])]

    @property
    def delta(self) -> int:
        """Where the region lies."""
        return int(self.header["delta"])

    @cached_property
    def original(self) -> bytes:
        """The image as it is mapped."""
        image = self.plan.image
        memory = bytearray(image.span)
        for segment in image.segments:
            memory[segment.rva : segment.rva + segment.size] = image.read(segment.rva, segment.size)
        return bytes(memory)

    @cached_property
    def memory(self) -> bytes:
        """The image with all patches written over it."""
        memory = bytearray(self.original)
        for patch in self.patches:
            rva, length = int(patch["rva"]), int(patch["length"])
            assert memory[rva : rva + length] == patch["old"].tobytes()[:length]
            memory[rva : rva + length] = patch["new"].tobytes()[:length]
        return bytes(memory)

    def read_original(self, rva: int, size: int) -> bytes:
        """Untouched memory."""
        return self.original[rva : rva + size]

    def read(self, rva: int, size: int) -> bytes:
        """Memory with patches and region."""
        source, at = (self.memory, rva) if rva < len(self.memory) else (self.region, rva - self.delta)
        return source[at : at + size]

    @cached_property
    def functions(self) -> Table:
        """The image's own RUNTIME_FUNCTION entries, in ascending order and without those for padding only."""
        assert isinstance(self.plan.image, PeImage)
        return Table(self.plan.image.read(*self.plan.image.directory(3)))

    @cached_property
    def trampolines(self) -> Table:
        """The region's RUNTIME_FUNCTION entries."""
        frames = int(self.header["frames"])
        return Table(self.region[frames : frames + int(self.header["frames_bytes"])])

    def same(self, original: int, now: int) -> bool:
        """Whether unwinding leads to the same caller from `original` in the untouched image and from `now` in this one.

        What a prologue stored elsewhere than by pushes is not compared: an epilogue loads it before the unwinder knows.
        """
        entry = self.functions.lookup(original)
        frame = None if entry is None else frame_distance(self.read_original, entry)
        first, second = (_by_stack_pointer(caller, frame) for caller in (self.before(original), self.after(now)))
        return first == second

    def before(self, rip: int) -> Caller:
        """Unwinding from an address of the untouched image."""
        return self._unwind(self.read_original, rip)

    def after(self, rip: int) -> Caller:
        """Unwinding from an address of the patched image or of the region."""
        return self._unwind(self.read, rip)

    def _unwind(self, read: Read, rip: int) -> Caller:
        table = self.functions if rip < self.plan.image.span else self.trampolines
        return unwind(read, table.lookup(rip), rip)

    def return_addresses(self) -> Iterator[int]:
        """Addresses behind the calls of all functions that are still where they were."""
        text = self.plan.text
        runs = sorted(tuple(run) for part in self.plan.parts for run in part.runs.tolist())
        starts = [start for start, _ in runs]
        for index, (start, end) in enumerate(zip(text.starts, text.ends, strict=True)):
            for instruction in text.instructions(index):
                if instruction.mnemonic == Mnemonic.CALL and instruction.next_ip < end and instruction.ip >= start:
                    run = bisect_right(starts, instruction.next_ip) - 1
                    if run < 0 or not runs[run][0] < instruction.next_ip < runs[run][1]:
                        yield instruction.next_ip

    def stub_returns(self) -> Iterator[tuple[int, int]]:
        """(address behind a call of the stub page, STUB_*)."""
        for start, end in self._code():
            for instruction in Decoder(64, self.region[start:end], ip=start):
                if instruction.mnemonic == Mnemonic.CALL and instruction.near_branch_target < fmt.STUB_POINTERS:
                    yield instruction.next_ip + self.delta, instruction.near_branch_target // fmt.STUB_BYTES

    def _code(self) -> Iterator[tuple[int, int]]:
        start = fmt.PLAN_PAGE
        for part in self.plan.parts:
            yield start, start + len(part.code)
            start += (len(part.code) + 63) & -64


def _by_stack_pointer(caller: Caller, frame: Value | None) -> tuple[Value, dict[str, Value]]:
    """The same with values relative to the frame register as what they are relative to the stack pointer."""

    def value(found: Value) -> Value:
        return ("rsp", found[1] + frame[1]) if frame and found[0] == frame[0] else found

    return value(caller.rsp), {name: value(place) for name, place in caller.pushed.items()}
