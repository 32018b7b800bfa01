"""Images of either format by their path, and what unwinding knows of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from callscope.binary import elf, pe
from callscope.binary.cfi import FrameTable, LandingPads, frame_table, landing_pads
from callscope.binary.elf_headers import map_file
from callscope.binary.image import Image
from callscope.binary.pe_headers import is_pe
from callscope.binary.pe_unwind import UnwindTable


class Unwinding(Protocol):
    """Where frames are, and where exceptions lead."""

    @property
    def frames(self) -> FrameTable:
        """Frames of all functions with unwind information."""

    def landing_pads(self) -> LandingPads:
        """Where exceptions may resume."""

    def owners(self) -> dict[int, int]:
        """Start of each part that unwind information names as one -> start of its function."""


@dataclass
class ElfUnwinding:
    """What .eh_frame and the exception tables of an ELF image say."""

    image: elf.Image

    @cached_property
    def frames(self) -> FrameTable:
        """As `frame_table`."""
        return frame_table(self.image)

    def landing_pads(self) -> LandingPads:
        """As `cfi.landing_pads`."""
        return landing_pads(self.image, self.frames)

    def owners(self) -> dict[int, int]:
        """Nothing: .eh_frame does not say which parts belong together."""
        return {}


def open_image(path: str | Path) -> Image:
    """Read the headers of a program or library, ELF or PE. Raises ImageError as `read_image` and `read_pe` do."""
    return pe.read_pe(path) if is_pe(map_file(path)) else elf.read_image(path)


def read_build_id(path: str | Path) -> bytes:
    """The build-id of an ELF file, or b""; the identity of a PE file. Raises ImageError as `open_image` does."""
    return pe.read_pe(path).build_id if is_pe(map_file(path)) else elf.read_build_id(path)


def unwinding(image: Image) -> Unwinding:
    """The unwind information of an image. Raises ImageError as `frame_table` does."""
    if isinstance(image, pe.PeImage):
        return UnwindTable(image)
    assert isinstance(image, elf.Image)
    return ElfUnwinding(image)
