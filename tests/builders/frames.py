"""Writes .eh_frame sections entry by entry."""

from __future__ import annotations

import struct


def uleb(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def sleb(value: int) -> bytes:
    """Signed LEB128."""
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        done = (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40)
        out.append(byte | (0 if done else 0x80))
        if done:
            return bytes(out)


class Frames:
    """An .eh_frame section that will lie at `rva`. Pointers are written as `encoding` says."""

    def __init__(self, rva: int = 0x500, base: int = 0) -> None:
        self.rva = rva
        self.base = base
        self.data = bytearray()
        self._lsda = 0xFF
        self._encoding = 0x1B

    def cie(
        self,
        encoding: int = 0x1B,
        lsda: int = 0xFF,
        letters: str = "",
        version: int = 1,
        code_align: int = 1,
        data_align: int = -8,
        instructions: bytes = b"\x0c\x07\x08\x90\x01",
        wide: bool = False,
        augmentation: str | None = None,
    ) -> int:
        """Append a common information entry (CFA = rsp + 8, return address at CFA - 8); its offset."""
        self._encoding, self._lsda = encoding, lsda
        text = "zR" + ("L" if lsda != 0xFF else "") + letters if augmentation is None else augmentation
        values = {"R": bytes([encoding]), "L": bytes([lsda]), "P": b"\x9b\x44\x33\x22\x11"}
        data = b"".join(values.get(letter, b"") for letter in text[1:]) if text.startswith("z") else b""
        body = bytes([version]) + text.encode() + b"\0"
        body += b"\x08\x00" if version == 4 else b""
        body += uleb(code_align) + sleb(data_align) + b"\x10"
        body += uleb(len(data)) + data if text.startswith("z") else b""
        return self.entry(struct.pack("<I", 0), body + instructions, wide)

    def fde(self, cie: int, start: int, size: int, instructions: bytes = b"", lsda: int = 0, wide: bool = False) -> int:
        """Append a frame description entry for `size` bytes at rva `start`; its offset."""
        id_at = len(self.data) + (12 if wide else 4)
        place = self.rva + id_at + 4
        body = self.pointer(start, self._encoding, place)
        body += self.pointer(size, self._encoding & 0x0F, 0, absolute=False)
        extra = b""
        if self._lsda != 0xFF:
            extra = self.pointer(lsda, self._lsda, place + len(body) + 1)
        return self.entry(struct.pack("<I", id_at - cie), body + uleb(len(extra)) + extra + instructions, wide)

    def entry(self, identifier: bytes, body: bytes, wide: bool = False) -> int:
        """Append an entry with this id field, padded to 8 bytes with nops; its offset."""
        offset = len(self.data)
        length = len(identifier) + len(body)
        padding = -(length + (12 if wide else 4)) % 8
        head = struct.pack("<IQ", 0xFFFFFFFF, length + padding) if wide else struct.pack("<I", length + padding)
        self.data += head + identifier + body + bytes(padding)
        return offset

    def pointer(self, rva: int, encoding: int, place: int, absolute: bool = True) -> bytes:
        """An encoded pointer to `rva` (0 with `absolute`: null) that will stand at rva `place`."""
        application = encoding & 0x70
        value = rva
        if absolute and rva:
            value = rva + self.base if application == 0 else rva - (place if application == 0x10 else 0)
        code = {0: "<Q", 2: "<H", 3: "<I", 4: "<Q", 0xA: "<h", 0xB: "<i", 0xC: "<q"}.get(encoding & 0x0F)
        if code is None:
            return uleb(value) if encoding & 0x0F == 1 else sleb(value)
        return struct.pack(code, value & (2 ** (8 * struct.calcsize(code)) - 1) if code[1].isupper() else value)
