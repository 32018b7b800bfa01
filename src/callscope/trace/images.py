"""Functions files: the functions and call frame information of planned images, kept in the trace's plans/."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.trace.session import PlannedImage

_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class ImageFunctions:
    """The functions of one image that was planned.

    functions: FUNCTION[n], rows: CFA_ROW[m], both sorted by rva. is_known: false when the functions file is missing or
    damaged; the arrays are empty then.
    """

    image: PlannedImage
    functions: NDArray[np.void]
    rows: NDArray[np.void]
    is_known: bool = True

    @property
    def id_base(self) -> int:
        """The id of the first function."""
        return self.image.id_base


def read_images(directory: Path, images: tuple[PlannedImage, ...], warnings: list[str]) -> list[ImageFunctions]:
    """The functions of every planned image, in order of ids. What cannot be read costs names and a warning."""
    found = []
    for image in images:
        problems: list[str] = []
        read = read_functions(directory / image.functions, problems)
        if read is None:
            warnings.append(f"{problems[0]}: functions of {image.path} have no names")
            empty = np.empty(0, records.FUNCTION), np.empty(0, records.CFA_ROW)
            found.append(ImageFunctions(image, *empty, is_known=False))
            continue
        build_id, functions, rows = read
        if build_id != image.build_id or len(functions) != image.function_count:
            warnings.append(f"{image.functions} is not the functions file of {image.path}: its functions have no names")
            empty = np.empty(0, records.FUNCTION), np.empty(0, records.CFA_ROW)
            found.append(ImageFunctions(image, *empty, is_known=False))
            continue
        found.append(ImageFunctions(image, functions, rows))
    return sorted(found, key=lambda item: item.id_base)


def read_functions(path: Path, problems: list[str]) -> tuple[bytes, NDArray[np.void], NDArray[np.void]] | None:
    """Build-id, FUNCTION records and CFA_ROW records of a functions file; None, and why, when it cannot be used."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            data = os.pread(descriptor, min(size, _MOST_BYTES), 0)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        problems.append(f"{path.name} cannot be read ({reason})")
        return None
    header = (
        np.frombuffer(data, records.FUNCTIONS_HEADER, 1)[0] if len(data) >= records.FUNCTIONS_HEADER.itemsize else None
    )
    if header is None or int(header["magic"]) != records.FUNCTIONS_MAGIC:
        problems.append(f"{path.name} is damaged")
        return None
    if int(header["version"]) > records.PLAN_VERSION:
        problems.append(f"{path.name} was written by a newer callscope")
        return None
    functions = _array(data, int(header["function_offset"]), int(header["function_count"]), records.FUNCTION)
    rows = _array(data, int(header["cfa_offset"]), int(header["cfa_count"]), records.CFA_ROW)
    if functions is None or rows is None or not (_is_sorted(functions["rva"]) and _is_sorted(rows["rva"])):
        problems.append(f"{path.name} is damaged")
        return None
    build_id = header["build_id"].tobytes()[: min(int(header["build_id_bytes"]), 32)]
    return build_id, functions, rows


def _array(data: bytes, offset: int, count: int, kind: np.dtype[np.void]) -> NDArray[np.void] | None:
    if offset > len(data) or count > (len(data) - offset) // kind.itemsize:
        return None
    return np.frombuffer(data, kind, count, offset)


def _is_sorted(values: NDArray[np.uint32]) -> bool:
    return bool(np.all(values[1:] >= values[:-1]))
