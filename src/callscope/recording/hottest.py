"""The function that makes most of a trace's events, if one does: the recorder names it."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from callscope.binary.symbols import open_symbols
from callscope.errors import CallscopeError
from callscope.recording.directory import read_header
from callscope.recording.plans import PlannedImage, read_functions
from callscope.recording.sample import MOST_CHUNKS, sample_chunks

SHARE: Final = 0.5
"""of all calls, from which on a function makes most of them"""
LEAST_CALLS: Final = 1_000_000


@dataclass(frozen=True)
class Hottest:
    """name: as `-x` takes it. share: of all calls."""

    name: str
    share: float


def hottest(events: Path, images: Sequence[PlannedImage], calls: int) -> Hottest | None:
    """The function that made most of so many calls; None when none did, or these are few."""
    if calls < LEAST_CALLS:
        return None
    header = read_header(events)
    last = min(int(header["next_chunk"]), int(header["chunk_limit"]))
    numbers = range(1, last)
    with events.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        step = -(-len(numbers) // MOST_CHUNKS) or 1
        sample = sample_chunks(memory, numbers[::step], int(header["chunk_bytes"]))
    if not sample.calls or float(sample.shares.max()) < SHARE:
        return None
    function, share = int(sample.functions[sample.shares.argmax()]), float(sample.shares.max())
    for image in images:
        index = function - image.id_base
        if 0 <= index < image.files.function_count:
            return Hottest(_name(image, index), share)
    return None


def _name(image: PlannedImage, index: int) -> str:
    """A function's name, or its place in its module."""
    rvas = read_functions(image.files.functions)["rva"][index : index + 1]
    with suppress(CallscopeError):
        name = open_symbols(image.source).names(rvas)[0]
        if name:
            return name
    return f"{Path(image.path).name}+0x{int(rvas[0]):x}"
