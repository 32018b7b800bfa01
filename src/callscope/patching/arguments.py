"""Finds out whose arguments can be recorded: the prototypes of an image's functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from callscope.binary.debug_files import SYSTEM_DEBUG_DIRECTORIES, find_debug_file, open_symbol_file
from callscope.binary.declarations import known_prototypes, read_declarations
from callscope.binary.dwarf_types import read_prototypes
from callscope.binary.functions import FunctionTable
from callscope.binary.image import Image
from callscope.binary.prototypes import Prototype
from callscope.binary.symbols import open_symbols
from callscope.errors import ImageError
from callscope.globs import NameGlob
from callscope.patching.capture import CALLERS, Capture, compile_capture, raw_capture
from callscope.patching.scope import Arguments


def find_captures(image: Image, functions: FunctionTable, wanted: Arguments) -> dict[int, Capture]:
    """What to capture, by function index. Raises PlanError for prototypes that cannot be read."""
    names = open_symbols(image.path).names(functions.rva)
    globs = [NameGlob(glob) for glob in wanted.functions]
    chosen: dict[int, int] = {}
    symbols: dict[int, str] = {}
    for index, (rva, name) in enumerate(zip(functions.rva.tolist(), names, strict=True)):
        if not globs or any(glob.matches_name(name or "") for glob in globs):
            chosen[rva] = index
            symbols[rva] = name or ""
    given = read_declarations(wanted.prototypes) if wanted.prototypes is not None else {}
    described = _from_debug_information(image, symbols)
    common = {} if image.is_pe else known_prototypes()
    captures: dict[int, Capture] = {}
    for rva, index in chosen.items():
        bare = symbols[rva].partition("(")[0]
        prototype = given.get(bare) or described.get(rva) or common.get(bare)
        if prototype is not None:
            captures[index] = compile_capture(prototype, image.is_pe)
        elif wanted.raw:
            captures[index] = raw_capture(image.is_pe)
    return captures


def add_callers(
    image: Image, functions: FunctionTable, globs: Sequence[str], captures: Mapping[int, Capture]
) -> dict[int, Capture]:
    """`captures`, and the call stack at each entry of the functions that one of `globs` matches."""
    wanted = [glob for glob in map(NameGlob, globs) if glob.matches_module(str(image.path))]
    names = open_symbols(image.path).names(functions.rva) if wanted else []
    out = dict(captures)
    for index, (rva, name) in enumerate(zip(functions.rva.tolist(), names, strict=False)):
        stable = f"{image.path.name}+0x{rva:x}"
        if any(glob.matches_name(name or stable) or glob.matches_name(stable) for glob in wanted):
            known = out.get(index, Capture((), (), {}))
            out[index] = replace(known, entry=(CALLERS, *known.entry))
    return out


def _from_debug_information(image: Image, symbols: dict[int, str]) -> dict[int, Prototype]:
    found: dict[int, Prototype] = {}
    for path in _debug_files(image):
        found = read_prototypes(path, image.base, symbols.get)
        if found:
            break
    return found


def _debug_files(image: Image) -> list[Path]:
    """The files that may hold the image's debug information."""
    paths = [image.path]
    if not image.is_pe:
        try:
            source = open_symbol_file(image.path)
            debug = find_debug_file(source, source.build_id, SYSTEM_DEBUG_DIRECTORIES, [])
        except ImageError:
            debug = None
        if debug is not None and debug.path is not None:
            paths.append(debug.path)
    return paths
