"""Names of what an image imports: by the words its loader fills in, and by the stubs that jump through them."""

from __future__ import annotations

import numpy as np

from callscope.binary import elf, pe
from callscope.binary.image import Image
from callscope.binary.second_returns import linkage_stubs
from callscope.binary.symbol_tables import STB_WEAK, SymbolTable


def import_names(image: Image) -> dict[int, str]:
    """rva -> name of the imported function, for each word that holds its address and each stub that jumps there.

    Names of Windows imports have their library before them: `kernel32.dll!Sleep`; those imported by number are
    `ws2_32.dll!#`. Names are as in the file, still mangled.
    """
    if isinstance(image, pe.PeImage):
        names = {entry.slot: f"{entry.library}!{entry.name or '#'}" for entry in image.imports}
        return names | {place: names[slot] for place, slot in image.import_thunks.items() if slot in names}
    assert isinstance(image, elf.Image)
    table, relocations = image.dynamic_symbols, image.relocations
    names = {}
    for slot, number in zip(relocations.slots.tolist(), relocations.slot_symbols.tolist(), strict=True):
        if number < len(table.records) and (name := _name(table, int(table.records["name"][number]))):
            names[slot] = name
    for first, last in image.plt_ranges:
        for place, slot in linkage_stubs(bytes(image.view(first, last - first)), first):
            if slot in names:
                names.setdefault(place, names[slot])
    return names


def unbound_stubs(image: Image) -> dict[int, str]:
    """rva -> name of the imported function, for the code where an ELF file's calls of it lead until it is bound.

    It is what the linker left in the words of the procedure linkage table (System V psABI for x86-64, "Procedure
    Linkage Table"), and the stubs themselves. Empty for other images.
    """
    if not isinstance(image, elf.Image):
        return {}
    names = import_names(image)
    code = {place: name for place, name in names.items() if any(low <= place < high for low, high in image.plt_ranges)}
    for slot in image.relocations.jump_slots.tolist():
        place = int.from_bytes(image.read(slot, 8), "little") - image.base
        if slot in names and place > 0:
            code.setdefault(place, names[slot])
    return code


def exported_functions(image: Image) -> dict[str, int]:
    """Name, as in the file, -> rva of each function that an ELF file's dynamic symbols define; of two the strong."""
    if not isinstance(image, elf.Image):
        return {}
    table = image.dynamic_symbols
    records = table.functions()
    records = records[np.argsort(records["info"] >> 4 == STB_WEAK, kind="stable")]
    found: dict[str, int] = {}
    for offset, value in zip(records["name"].tolist(), records["value"].tolist(), strict=True):
        found.setdefault(_name(table, offset), value - image.base)
    return found


def _name(table: SymbolTable, offset: int) -> str:
    data = bytes(table.strings[offset : offset + 4096])
    return data.partition(b"\0")[0].decode("utf-8", "replace")
