"""Names of what an image imports: by the words its loader fills in, and by the stubs that jump through them."""

from __future__ import annotations

from callscope.binary import elf, pe
from callscope.binary.image import Image
from callscope.binary.second_returns import linkage_stubs
from callscope.binary.symbol_tables import SymbolTable


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


def _name(table: SymbolTable, offset: int) -> str:
    data = bytes(table.strings[offset : offset + 4096])
    return data.partition(b"\0")[0].decode("utf-8", "replace")
