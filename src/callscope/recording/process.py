"""A running program, seen through /proc: what it has mapped, its memory, and the symbols of its libraries as they lie
there.

No file of the program's is opened: it may have been replaced meanwhile, or belong to another root directory.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PROC = Path("/proc")
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_GNU_HASH = 5, 6, 10, 0x6FFFFEF5
_NT_GNU_BUILD_ID = 3
_SYMBOL = struct.Struct("<IBBHQQ")
_FUNCTION, _OBJECT = 2, 1
_MOST_BYTES = 64 << 20
"""of a table of symbols: what is longer is nonsense"""


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/PID/maps (proc(5)). `path` is empty for memory without a file."""

    start: int
    end: int
    protection: str
    offset: int
    path: str

    @property
    def name(self) -> str:
        """The file's name, without directories and what the kernel adds to it when it is gone."""
        return Path(self.path.removesuffix(" (deleted)")).name


class Process:
    """Process `pid`. What the system refuses is an OSError."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.memory = os.open(PROC / str(pid) / "mem", os.O_RDWR | os.O_CLOEXEC)
        """descriptor of /proc/PID/mem"""

    def close(self) -> None:
        """Let go of its memory."""
        os.close(self.memory)

    @cached_property
    def maps(self) -> list[Mapping]:
        """What it had mapped when this was first asked for."""
        return read_maps(self.pid)

    def refresh(self) -> None:
        """Look at its mappings anew."""
        self.__dict__.pop("maps", None)

    def threads(self) -> list[int]:
        """Its threads."""
        return [int(entry.name) for entry in (PROC / str(self.pid) / "task").iterdir()]

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes of its memory. Raises OSError."""
        data = os.pread(self.memory, size, address)
        if len(data) != size:
            raise OSError(f"only {len(data)} of {size} bytes at {address:#x}")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Change its memory, whatever its protection."""
        os.pwrite(self.memory, data, address)

    def mapping(self, address: int) -> Mapping | None:
        """What holds an address."""
        index = bisect_right(self.maps, address, key=lambda found: found.start) - 1
        return self.maps[index] if index >= 0 and address < self.maps[index].end else None

    def libraries(self) -> dict[str, int]:
        """Path -> address of its first byte, of every file mapped from its start, in order of addresses."""
        bases: dict[str, int] = {}
        for mapping in self.maps:
            if mapping.path.startswith("/") and mapping.offset == 0:
                bases.setdefault(mapping.path, mapping.start)
        return bases

    def build_id(self, base: int) -> bytes:
        """Of the image at `base`; empty without one."""
        for kind, address, size in self._headers(base):
            if kind == _PT_NOTE:
                with suppress(OSError):
                    if found := _build_id(self.read(address, min(size, 4096))):
                        return found
        return b""

    def symbols(self, base: int) -> dict[str, int]:
        """Addresses of what the image at `base` exports (System V gABI, chapter 5). Empty when they make no sense."""
        with suppress(OSError, struct.error):
            dynamic = next((address, size) for kind, address, size in self._headers(base) if kind == _PT_DYNAMIC)
            data = self.read(*dynamic)
            tags = dict(struct.iter_unpack("<QQ", data[: len(data) // 16 * 16]))
            # glibc has turned the offsets into addresses, other loaders leave them.
            table, names, hashes = (
                tags[tag] if tags[tag] >= base else base + tags[tag] for tag in (_DT_SYMTAB, _DT_STRTAB, _DT_GNU_HASH)
            )
            return dict(self._read_symbols(base, table, (names, tags[_DT_STRSZ]), hashes))
        return {}

    def _read_symbols(self, base: int, table: int, names: tuple[int, int], hashes: int) -> Iterator[tuple[str, int]]:
        count = self._symbol_count(hashes)
        if count * _SYMBOL.size > _MOST_BYTES or names[1] > _MOST_BYTES:
            return
        text = self.read(*names)
        for name, info, _, section, value, _ in _SYMBOL.iter_unpack(self.read(table, count * _SYMBOL.size)):
            if section and value and info & 15 in (_FUNCTION, _OBJECT) and name < len(text):
                yield text[name : text.index(b"\0", name)].decode("ascii", "replace"), base + value

    def _symbol_count(self, hashes: int) -> int:
        """How many symbols a DT_GNU_HASH table is about: the last of the longest chain, plus one."""
        buckets, first, bloom = struct.unpack("<III", self.read(hashes, 12))
        if buckets > 1 << 20 or bloom > 1 << 20:
            return 0
        start = hashes + 16 + 8 * bloom
        last = max(struct.unpack(f"<{buckets}I", self.read(start, 4 * buckets)))
        if last < first:
            return int(first)
        chain = start + 4 * buckets
        while not struct.unpack("<I", self.read(chain + 4 * (last - first), 4))[0] & 1:
            last += 1
        return int(last) + 1

    def _headers(self, base: int) -> Iterator[tuple[int, int, int]]:
        """(kind, address, size) of the program headers of the image whose first page lies at `base`."""
        head = self.read(base, 64)
        offset, size, count = struct.unpack_from("<32xQ14xHH", head)
        if head[:5] != b"\x7fELF\x02" or size != 56:
            return
        found = list(struct.iter_unpack("<IIQQQQQQ", self.read(base + offset, size * count)))
        low = min((header[3] for header in found if header[0] == _PT_LOAD), default=0) & ~4095
        for kind, _, _, address, _, _, memory, _ in found:
            yield kind, base + address - low, memory


def _build_id(notes: bytes) -> bytes:
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        begin = at + 12 + (name + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0":
            return notes[begin : begin + size]
        at = begin + (size + 3 & ~3)
    return b""


def read_maps(pid: int) -> list[Mapping]:
    """What a process has mapped, in order of addresses. Raises OSError."""
    found = []
    for line in (PROC / str(pid) / "maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(None, 5)
        start, _, end = fields[0].partition("-")
        path = fields[5] if len(fields) > 5 else ""
        found.append(Mapping(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), path))
    return found


def status_field(pid: int, name: str) -> str:
    """A field of /proc/PID/status, where PID may be a thread; empty when there is none, or no such process."""
    with suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
    return ""
