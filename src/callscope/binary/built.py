"""How a binary was built, as far as the file tells: what `callscope check` says.

Sources: gcc's manual ("Instrumentation Options", "patchable_function_entry"), the x86-64 psABI (".note.gnu.property").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callscope.binary.debug_files import SYSTEM_DEBUG_DIRECTORIES, find_debug_file, open_symbol_file
from callscope.binary.elf import Image as ElfImage
from callscope.binary.functions import find_functions
from callscope.binary.image import Image
from callscope.binary.imports import exported_functions, import_names
from callscope.binary.open import open_image
from callscope.binary.pe import PeImage

HOOK = "__cyg_profile_func_enter"
_PROFILERS = ("mcount", "_mcount", "__fentry__")
_X86_FEATURES = 0xC0000002  # GNU_PROPERTY_X86_FEATURE_1_AND
_FRAME_SETUP = bytes.fromhex("554889e5")  # push rbp; mov rbp,rsp
_ENDBR = bytes.fromhex("f30f1efa")
_SAMPLE = 2000


@dataclass(frozen=True)
class Build:
    """instrumented: it calls the hooks of -finstrument-functions; own_hooks: and has them itself. profiled: what -pg or
    -mfentry calls, "" for none. patchable: -fpatchable-function-entry. debug: "file", "separate" (in debug_file) or "".
    stripped: no symbol table. frame_pointers: the share of functions that begin with one, 0 to 1. branch_tracking,
    shadow_stack: marked for them (CET). format: "elf" or "pe"; kind: "exec", "pie", "shared", "static", or "library"
    and "program" of Windows.
    """

    path: Path
    format: str
    kind: str
    functions: int
    instrumented: bool
    own_hooks: bool
    profiled: str
    patchable: bool
    debug: str
    debug_file: Path | None
    stripped: bool
    frame_pointers: float
    branch_tracking: bool
    shadow_stack: bool
    build_id: str


def read_build(path: Path) -> Build:
    """Look at the file. Raises ImageError."""
    image = open_image(path)
    names = set(import_names(image).values())
    functions = find_functions(image)
    sections = {section.name for section in image.sections}
    debug, debug_file, stripped = "", None, False
    if isinstance(image, ElfImage):
        source = open_symbol_file(path)
        debug_file_found = find_debug_file(source, image.build_id, SYSTEM_DEBUG_DIRECTORIES, [])
        debug_file = debug_file_found.path if debug_file_found else None
        stripped = ".symtab" not in sections
    if sections & {".debug_info", ".zdebug_info"}:
        debug = "file"
    elif debug_file is not None:
        debug = "separate"
    features = _x86_features(image) if isinstance(image, ElfImage) else 0
    own = isinstance(image, ElfImage) and (HOOK in exported_functions(image) or _defines(image, HOOK))
    return Build(
        path=path,
        format="pe" if image.is_pe else "elf",
        kind=_kind(image),
        functions=len(functions.rva),
        instrumented=HOOK in names or own,
        own_hooks=own,
        profiled=next((name for name in _PROFILERS if name in names), ""),
        patchable="__patchable_function_entries" in sections,
        debug=debug,
        debug_file=debug_file,
        stripped=stripped,
        frame_pointers=_frame_pointers(image, functions.rva.tolist()),
        branch_tracking=bool(features & 1),
        shadow_stack=bool(features & 2) or image.has_shadow_stack,
        build_id=image.build_id.hex(),
    )


def _kind(image: Image) -> str:
    if isinstance(image, ElfImage):
        return image.kind
    return "library" if isinstance(image, PeImage) and image.is_library else "program"


def _defines(image: ElfImage, name: str) -> bool:
    wanted = b"\0" + name.encode() + b"\0"
    for table in image.symbol_tables:
        strings = bytes(table.strings)
        at = strings.find(wanted)
        if at >= 0 and (table.functions()["name"] == at + 1).any():
            return True
    return False


def _frame_pointers(image: Image, starts: list[int]) -> float:
    chosen = starts[:: max(len(starts) // _SAMPLE, 1)]
    found = 0
    for start in chosen:
        code = image.read(start, 8)
        found += code.removeprefix(_ENDBR).startswith(_FRAME_SETUP)
    return found / len(chosen) if chosen else 0.0


def _x86_features(image: ElfImage) -> int:
    section = image.section(".note.gnu.property")
    data = bytes(image.section_data(section)[:4096]) if section else b""
    at = 16  # behind the note's header and name
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == _X86_FEATURES and size == 4 and at + 12 <= len(data):
            return int(np.frombuffer(data, "<u4", 1, at + 8)[0])
        at += 8 + (size + 7 & -8)
    return 0
