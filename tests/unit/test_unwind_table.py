"""Unwind tables say the same as the call frame information they are made of; captured stacks are read from anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from callscope import format as records
from callscope.binary import cfi
from callscope.binary.open import open_image, unwinding
from callscope.patching.unwind_table import unwind_bytes
from callscope.trace.stacks import _of_chunk

LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")


def parts(data: bytes) -> tuple[np.void, NDArray[np.void], NDArray[np.void]]:
    header = np.frombuffer(data, records.UNWIND_HEADER, 1)[0]
    rules = np.frombuffer(data, records.UNWIND_RULE, int(header["rule_count"]), int(header["rule_offset"]))
    rows = np.frombuffer(data, records.UNWIND_ROW, int(header["row_count"]), int(header["row_offset"]))
    return header, rules, rows


@pytest.mark.skipif(not LIBC.exists(), reason="there is no glibc here")
def test_every_rule_is_that_of_the_frame_information() -> None:
    image = open_image(LIBC)
    header, rules, rows = parts(unwind_bytes(image))
    assert int(header["image_span"]) == image.span and len(np.unique(rules)) == len(rules)
    assert rows["rva"][0] == 0 and np.all(np.diff(rows["rva"].astype(np.int64)) > 0)
    frames = unwinding(image).frames
    rng = np.random.default_rng(1)
    places = np.concatenate([rng.integers(0, image.span, 20_000), frames.rows["rva"][:20_000].astype(np.int64)])
    found = rules[rows["rule"][np.searchsorted(rows["rva"], places, side="right") - 1]]
    index = frames.rows_at(places)
    signal = (frames.fdes["flags"][frames.entries_at(places)] & cfi.FRAME_SIGNAL) != 0
    assert np.all(found["kind"][index < 0] == records.UNWIND_NONE)
    assert np.all(found["kind"][(index >= 0) & signal] == records.UNWIND_SIGNAL)
    known = (index >= 0) & ~signal
    row = frames.rows[index]
    by_register = known & np.isin(row["cfa_kind"], [cfi.CFA_RSP, cfi.CFA_RBP, cfi.CFA_REGISTER])
    by_register &= found["kind"] != records.UNWIND_END
    assert by_register.sum() > 10_000
    assert np.all(found["kind"][by_register] == records.UNWIND_OFFSET)
    for ours, theirs in (("offset", "cfa_offset"), ("base", "cfa_register"), ("from_rbp", "from_rbp")):
        assert np.array_equal(found[ours][by_register], row[theirs][by_register])
    assert np.array_equal(found["saved"][by_register], row["saved"][by_register][:, : cfi.RETURN_ADDRESS])
    outermost = known & (row["saved"][:, cfi.RETURN_ADDRESS] == cfi.SAVED_UNKNOWN)
    assert np.all(found["kind"][outermost] == records.UNWIND_END)


def shared_stack(base: int, outer: int, own: list[int]) -> bytes:
    event = np.zeros((), records.STACK_SHARED_EVENT)
    units = records.STACK_SHARED_EVENT.itemsize // 8 + len(own)
    event["type"], event["size"] = records.EXTENDED_STACK_SHARED, units << 3 | records.EVENT_EXTENDED
    event["base"], event["outer"] = base, outer
    return event.tobytes() + np.array(own, np.uint64).tobytes()


def whole_stack(addresses: list[int]) -> bytes:
    event = np.zeros((), records.STACK_EVENT)
    units = records.STACK_EVENT.itemsize // 8 + len(addresses)
    event["type"], event["size"] = records.EXTENDED_STACK, units << 3 | records.EVENT_EXTENDED
    event["count"] = len(addresses)
    return event.tobytes() + np.array(addresses, np.uint64).tobytes()


def read_stacks(data: bytes) -> list[tuple[list[int], int]]:
    chunk = np.zeros(1, records.CHUNK_HEADER)[0]
    buffer = np.frombuffer(data, np.uint8).copy()
    found = _of_chunk(chunk, buffer, np.zeros(len(buffer) // 8 + 1, np.uint64))
    return [([address for address, _ in one.addresses], one.flags) for one in found]


def test_stacks_that_share_frames() -> None:
    header = records.CHUNK_HEADER.itemsize // 8
    first, second = whole_stack([1, 2, 3, 4]), whole_stack([5, 6])
    base = header + len(first) // 8
    data = first + second + shared_stack(header, 3, [9]) + shared_stack(header, 4, []) + shared_stack(base, 2, [7, 8])
    whole = [([1, 2, 3, 4], 0), ([5, 6], 0), ([9, 2, 3, 4], 0), ([1, 2, 3, 4], 0), ([7, 8, 5, 6], 0)]
    assert read_stacks(data) == whole
    broken = records.STACK_BROKEN
    assert read_stacks(first + shared_stack(header, 5, [9])) == [whole[0], ([9], broken)]
    assert read_stacks(first + shared_stack(header + 1, 1, [9])) == [whole[0], ([9], broken)]
    assert read_stacks(shared_stack(header + 5, 1, [9]) + first) == [([9], broken), whole[0]]
    assert read_stacks(shared_stack(0, 0, [])) == []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 70000), st.integers(0, 5)), max_size=20))
def test_stacks_that_say_to_share_anything(pieces: list[tuple[int, int, int]]) -> None:
    data = b""
    for base, outer, own in pieces:
        data += whole_stack([1] * own) if outer == 0 else shared_stack(base, outer % 65536, [2] * own)
    assert all(addresses for addresses, _ in read_stacks(data))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.binary(min_size=8, max_size=64), st.integers(0, 40)), max_size=20),
    st.integers(0, 7),
)
def test_stacks_are_read_from_anything(pieces: list[bytes | int], cut: int) -> None:
    data, wanted = bytearray(), 0
    whole = True
    for piece in pieces:
        if isinstance(piece, bytes):
            data += piece.ljust(-(-len(piece) // 8) * 8, b"\0")
            whole = False
            continue
        event = np.zeros((), records.STACK_EVENT)
        units = (records.STACK_EVENT.itemsize + 8 * piece) // 8
        event["type"], event["size"] = records.EXTENDED_STACK, units << 3 | records.EVENT_EXTENDED
        event["count"] = piece
        data += event.tobytes() + bytes(range(8)) * piece
        wanted += piece > 0
    chunk = np.zeros(1, records.CHUNK_HEADER)[0]
    buffer = np.frombuffer(bytes(data[: len(data) - cut] if cut and not whole else data), np.uint8).copy()
    found = list(_of_chunk(chunk, buffer, np.zeros(len(buffer) // 8 + 1, np.uint64)))
    if whole:
        assert len(found) == wanted
    assert all(len(one.raw) % 8 == 0 and one.addresses for one in found)
