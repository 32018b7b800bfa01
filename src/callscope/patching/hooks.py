"""Calls of the compiler's hooks in instrumented images (gcc's manual, -finstrument-functions).

Such code calls `__cyg_profile_func_enter(function, call site)` where a function begins and `__cyg_profile_func_exit`
where it ends, inlined functions included. The plan records functions by itself, so those calls are taken out that tell
of the function around them; calls that tell of inlined functions stay, and the agent has the hooks.

A call is taken out only where it is certain what it names: from the instructions just before it. A hook that stays
tells what is known already, and readers see that.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from iced_x86 import Instruction, Mnemonic, OpKind, Register, RegisterExt

from callscope.binary import disassembly as dis
from callscope.binary.elf import Image as ElfImage
from callscope.binary.image import Image
from callscope.binary.imports import exported_functions, import_names
from callscope.binary.open import open_image
from callscope.binary.pe import PeImage
from callscope.errors import CallscopeError
from callscope.patching.text import HOOK, Text

ENTER, EXIT = "__cyg_profile_func_enter", "__cyg_profile_func_exit"
_MARK_BYTES = 8
_OWN_HOOKS = {bytes.fromhex("0f1f840043534845"): ENTER, bytes.fromhex("0f1f840043534858"): EXIT}
"""no-operations with which native/include/callscope-hooks.c begins its functions"""
_CALLS = (dis.CALL, dis.INDIRECT_CALL)
_JUMPS = (dis.JUMP, dis.INDIRECT_JUMP)
_RET = 0xC3
_CLONES = (b".constprop.", b".isra.", b".simdclone.")
_LOADS = 8
"""instructions looked at for the function that a hook is told of"""
# Multi-byte no-operations (Intel SDM volume 2B, NOP).
NOPS = {
    4: bytes.fromhex("0f1f4000"),
    5: bytes.fromhex("0f1f440000"),
    6: bytes.fromhex("660f1f440000"),
    7: bytes.fromhex("0f1f8000000000"),
    8: bytes.fromhex("0f1f840000000000"),
}


@dataclass(frozen=True, slots=True)
class _Site:
    """A call of a hook, or a jump to it. `names`: start of the function that it tells of, None where that is not
    certain.
    """

    address: int
    size: int
    function: int
    enters: bool
    jumps: bool
    names: int | None


def calls_hooks(image: Image) -> bool:
    """Whether an image asks its loader for the hooks."""
    return isinstance(image, ElfImage) and ENTER in import_names(image).values()


def silence_hooks(image: Image, text: Text) -> None:
    """Take the calls of hooks that tell nothing new out of the code to plan for; `text.hooks` and `text.silenced` say
    what was found.
    """
    words: dict[int, int] = {}
    if isinstance(image, ElfImage):
        names = import_names(image)
        places = {place: name for place, name in names.items() if name in (ENTER, EXIT)}
        exported = exported_functions(image) if places else {}
        words = {place: exported[name] for place, name in names.items() if name in exported}
    else:
        places = _own_hooks(text)
    if not places:
        return
    groups: dict[int, list[_Site]] = defaultdict(list)
    for index in range(len(text.starts)):
        if index not in text.undecodable:
            sites = _find(text, index, places, words, image)
            if sites:
                groups[int(text.owners[index])] += sites
    text.hooks = frozenset(site.address for sites in groups.values() for site in sites)
    code = bytearray(text.code)
    originals = _originals(image)
    for owner, sites in groups.items():
        start = originals.get(text.starts[owner], text.starts[owner])
        redundant = _redundant(start, sites)
        if not redundant and any(site.enters and site.names == start for site in sites):
            text.hooked.add(owner)
        for site in redundant:
            size = site.size - 1 if site.jumps else site.size
            new = bytes([_RET]) * site.jumps + NOPS[size]
            code[site.address - text.low : site.address - text.low + site.size] = new
            text.silenced[site.address] = (site.size, site.function)
    text.file_code, text.code = text.code, bytes(code)


def _symbols(image: Image) -> Iterator[dict[bytes, int]]:
    """Name -> start of the functions of each symbol table that may name clones."""
    if isinstance(image, PeImage):
        yield {name.encode(): rva for name, rva in zip(image.symbols.names, image.symbols.rva.tolist(), strict=True)}
    for table in image.symbol_tables if isinstance(image, ElfImage) else ():
        records, strings = table.functions(), bytes(table.strings)
        if any(mark in strings for mark in _CLONES):
            names = [strings[at : strings.find(b"\0", at)] for at in records["name"].tolist()]
            yield dict(zip(names, (records["value"] - np.uint64(image.base)).tolist(), strict=True))


def _originals(image: Image) -> dict[int, int]:
    """Start of a clone that gcc made -> start of the function it was made from, which is what its hooks name."""
    found: dict[int, int] = {}
    for places in _symbols(image):
        for name, place in places.items():
            cuts = [name.find(mark) for mark in _CLONES if mark in name]
            if cuts and name[: min(cuts)] in places:
                found[place] = places[name[: min(cuts)]]
    return found


def _redundant(start: int, sites: list[_Site]) -> list[_Site]:
    """Those of a function's hook calls that tell of itself. None when a call of itself may be inlined too."""
    enters = [site for site in sites if site.enters]
    own = [site for site in enters if site.names == start]
    if len(own) != 1 or any(site.names is None for site in enters):
        return []
    if len(enters) == 1:
        return sites
    return own + [site for site in sites if not site.enters and site.names == start]


def _own_hooks(text: Text) -> dict[int, str]:
    """The hooks of callscope-hooks.c in a PE image, by their first bytes; they are not planned."""
    found = {}
    for index, start in enumerate(text.starts):
        name = _OWN_HOOKS.get(text.code[start - text.low : start - text.low + _MARK_BYTES])
        if name is not None:
            found[start] = name
            text.kinds[index] = HOOK
    return found


def _find(text: Text, index: int, places: dict[int, str], words: dict[int, int], image: Image) -> list[_Site]:
    code = text.instructions(index)
    argument = Register.RCX if image.is_pe else Register.RDI
    found = []
    for position, instruction in enumerate(code):
        kind = dis.KINDS[instruction.code]
        if kind in (dis.CALL, dis.JUMP):
            name = places.get(instruction.near_branch_target)
        elif kind in (dis.INDIRECT_CALL, dis.INDIRECT_JUMP) and instruction.is_ip_rel_memory_operand:
            name = places.get(instruction.ip_rel_memory_address)
        else:
            continue
        if name is not None and instruction.len - (kind in _JUMPS) in NOPS:
            named = _value(code, position, argument, words, image.base)
            found.append(_Site(instruction.ip, instruction.len, index, name == ENTER, kind in _JUMPS, named))
    return found


def _value(code: list[Instruction], position: int, register: int, words: dict[int, int], base: int) -> int | None:
    """The relative address that a register holds before an instruction; None where that is not certain."""
    for at in range(position - 1, max(position - 1 - _LOADS, -1), -1):
        load = code[at]
        if load.next_ip != code[at + 1].ip or dis.KINDS[load.code] not in dis.FALLS_THROUGH:
            return None
        if load.op0_kind != OpKind.REGISTER or RegisterExt.full_register(load.op0_register) != register:
            continue
        if load.mnemonic == Mnemonic.LEA and load.is_ip_rel_memory_operand:
            return int(load.ip_rel_memory_address)
        if load.mnemonic != Mnemonic.MOV:
            return None
        if load.op1_kind == OpKind.REGISTER:
            return _value(code, at, RegisterExt.full_register(load.op1_register), words, base)
        if load.op1_kind == OpKind.MEMORY:
            return words.get(load.ip_rel_memory_address) if load.is_ip_rel_memory_operand else None
        return int(load.immediate(1)) - base
    return None


@lru_cache(maxsize=1024)
def is_instrumented(path: str) -> bool:
    """Whether the file at `path` was built to call the hooks; False when it cannot be read."""
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(ENTER.encode()) < 0:
                return False
        return calls_hooks(open_image(path))
    except (OSError, ValueError, CallscopeError):
        return False
