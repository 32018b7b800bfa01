"""Chunks of events, compressed and back, as the file `packed` has them (format/SPEC.md), for who writes and who reads.

zstd is that of Arrow, which the package needs anyway.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from callscope import format as records

LEVEL: Final = 1
"""of zstd: more takes longer and gains little, as the bytes of words lie apart already"""


@cache
def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=LEVEL)


def pack(header: bytes, events: NDArray[np.uint8]) -> tuple[bytes, int]:
    """The events behind a chunk_header, compressed, and the checksum of both.

    The first bytes of all words, then the second ones, and so on: what is alike lies together. What does not make a
    word comes last.
    """
    whole = len(events) // records.PACKED_WORD * records.PACKED_WORD
    columns = np.ascontiguousarray(events[:whole].reshape(-1, records.PACKED_WORD).T)
    packed: bytes = _codec().compress(columns.tobytes() + events[whole:].tobytes(), asbytes=True)
    return packed, zlib.crc32(packed, zlib.crc32(header))


def unpack(header: bytes, packed: bytes, event_bytes: int, checksum: int) -> NDArray[np.uint8] | None:
    """The events of a chunk; None when they are damaged. No more memory is used than a few times `event_bytes`."""
    if zlib.crc32(packed, zlib.crc32(header)) != checksum:
        return None
    try:
        data = np.frombuffer(_codec().decompress(packed, event_bytes, asbytes=True), np.uint8)
    except (pa.ArrowException, OSError, ValueError):
        return None
    if len(data) != event_bytes:
        return None
    whole = event_bytes // records.PACKED_WORD * records.PACKED_WORD
    events = np.empty(event_bytes, np.uint8)
    events[:whole].reshape(-1, records.PACKED_WORD)[:] = data[:whole].reshape(records.PACKED_WORD, -1).T
    events[whole:] = data[whole:]
    return events
