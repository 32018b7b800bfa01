"""Unwind tables kept between runs, beside the plans: by build-id, and by the plan whose trampolines they tell of."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from callscope import format as records
from callscope.binary.open import open_image, read_build_id
from callscope.errors import ImageError
from callscope.patching.cache import content_hash, plans_directory, write_whole
from callscope.patching.unwind_table import unwind_bytes

TABLE_VERSION = 2
KERNEL_IMAGE = "[vdso]"
"""What the agent calls the code that the kernel puts into every process: it is the same in this one."""
_AT_SYSINFO_EHDR = 33
_KERNEL_IMAGE_BYTES = 0x4000


@dataclass(frozen=True)
class UnwindFile:
    """A table and the identity of the image it is for."""

    path: Path
    build_id: bytes


def load_or_compile(path: str, plan: Path | None = None) -> UnwindFile:
    """The unwind table of an image and of the trampolines of its plan, from the cache or made now.

    Raises ImageError or PlanError.
    """
    directory = plans_directory()
    if path == KERNEL_IMAGE:
        path = str(_kernel_image(directory))
    build_id = read_build_id(path)
    name = plan.stem if plan is not None else build_id.hex() or content_hash(Path(path))
    table = directory / f"{name}-u{TABLE_VERSION}.unwind"
    if not _is_whole(table) or (plan is not None and table.stat().st_mtime_ns < plan.stat().st_mtime_ns):
        write_whole(table, unwind_bytes(open_image(path), plan))
    return UnwindFile(table, build_id)


def _is_whole(table: Path) -> bool:
    """Whether a table is there, as long as it says."""
    try:
        header = np.fromfile(table, records.UNWIND_HEADER, 1)
        size = table.stat().st_size
    except OSError:
        return False
    if len(header) != 1 or header["magic"][0] != records.UNWIND_MAGIC:
        return False
    rows = int(header["row_count"][0]) + int(header["region_row_count"][0])
    return size == int(header["row_offset"][0]) + rows * records.UNWIND_ROW.itemsize


@lru_cache(1)
def _kernel_image(directory: Path) -> Path:
    """A file of the kernel's image in this process. Raises ImageError when there is none."""
    try:
        library = ctypes.CDLL(None)
        library.getauxval.restype = ctypes.c_ulong
        address = int(library.getauxval(_AT_SYSINFO_EHDR))
        with Path("/proc/self/mem").open("rb", buffering=0) as memory:
            data = os.pread(memory.fileno(), _KERNEL_IMAGE_BYTES, address) if address else b""
    except (OSError, OverflowError, AttributeError):
        data = b""
    if not data.startswith(b"\x7fELF"):
        raise ImageError("the kernel's code in this process cannot be read: its frames are guessed")
    path = directory / f"vdso-{os.uname().release}"
    write_whole(path, data)
    return path
