"""Crash records: read as written, and no harm from damaged ones."""

import struct
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from callscope import format as records
from callscope.binary.stack_effects import pushed_first, stack_effects
from callscope.reports.crash_causes import Fault, describe
from callscope.reports.crash_exception import exception_of
from callscope.reports.crash_memory import GENERAL, Memory, Registers, registers_of, signal_frame, vector_registers
from callscope.reports.crash_trampoline import Region, undo
from callscope.reports.crash_unwind import Unwinder
from callscope.trace.journal import Crash, parse_records
from callscope.trace.processes import Module


def record(payload: bytes, kind: int = records.JOURNAL_CRASH) -> bytes:
    payload += bytes(-len(payload) % 8)
    return struct.pack("<IHHQIIII", 32 + len(payload), kind, 0, 1000, 1, 2, 3, 4) + payload


def crash_record(
    vector: bytes = b"", stack: bytes = b"", text: bytes = b"", pieces: bytes = b"", **fields: Any
) -> bytes:
    row = np.zeros((), records.CRASH)
    sizes = {"vector_bytes": len(vector), "stack_bytes": len(stack), "code_bytes": len(text)}
    sizes["pieces_bytes"] = len(pieces)
    for name, value in (sizes | fields).items():
        row[name] = value
    return record(row.tobytes() + b"".join(part + bytes(-len(part) % 8) for part in (vector, stack, text, pieces)))


def test_a_record_is_read_as_written() -> None:
    data = crash_record(
        b"v" * 12,
        b"s" * 16,
        b"c" * 7,
        code=11,
        registers=list(range(16)),
        rip=77,
        name=b"worker",
        segments=[51, 43, 0, 0],
    )
    warnings: list[str] = []
    (crash,) = parse_records(data, 0, warnings)
    assert isinstance(crash, Crash) and warnings == []
    assert (crash.vector, crash.stack, crash.code) == (b"v" * 12, b"s" * 16, b"c" * 7)
    assert registers_of(crash) == {**{name: i for i, name in enumerate(GENERAL)}, "rip": 77, "rflags": 0}
    assert (crash.fields["name"], crash.fields["segments"], crash.tid) == ("worker", (51, 43, 0, 0), 3)


def exception_pieces() -> bytes:
    """An exception at 0x1050 of a type at 0x2000, E, whose only base is std::runtime_error at 0x3000."""

    def piece(address: int, data: bytes) -> bytes:
        data += bytes(-len(data) % 8)
        return struct.pack("<QQ", address, len(data)) + data

    header = struct.pack("<Q", 0x2000).ljust(112, b"\0") + struct.pack("<QQ", 0, 0x5000)
    return (
        piece(0x1000, header)
        + piece(0x2000, struct.pack("<QQQ", 0, 0x4000, 0x3000))
        + piece(0x3000, struct.pack("<QQQ", 0, 0x4100, 0))
        + piece(0x4000, b"1E\0")
        + piece(0x4100, b"St13runtime_error\0")
        + piece(0x5000, b"why\0")
    )


def test_an_exception_is_read_from_copies_of_memory() -> None:
    (crash,) = parse_records(crash_record(pieces=exception_pieces(), exception=0x1050), 0, [])
    assert isinstance(crash, Crash)
    assert exception_of(crash) == {"type": "E", "what": "why"}
    (none,) = parse_records(crash_record(pieces=exception_pieces()), 0, [])
    assert isinstance(none, Crash) and exception_of(none) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=24))
def test_damaged_copies_of_an_exception_do_no_harm(at: int, damage: bytes) -> None:
    pieces = bytearray(exception_pieces())
    pieces[at : at + len(damage)] = damage
    for crash in parse_records(crash_record(pieces=bytes(pieces), exception=0x1050), 0, []):
        assert isinstance(crash, Crash)
        found = exception_of(crash)
        assert found is not None and set(found) == {"type", "what"}


def test_a_record_shorter_than_it_says_is_left_out() -> None:
    warnings: list[str] = []
    whole = crash_record(stack=b"s" * 4096)
    assert parse_records(record(whole[32 : records.CRASH.itemsize + 32 + 100]), 0, warnings) == []
    assert len(warnings) == 1


def test_vector_registers_are_put_together() -> None:
    state = bytearray(2696)
    state[160 + 3 * 16 : 160 + 4 * 16] = b"\x01" * 16
    struct.pack_into("<Q", state, 512, 0b11100111)
    state[576 + 3 * 16 : 576 + 4 * 16] = b"\x02" * 16
    state[1152 + 3 * 32 : 1152 + 4 * 32] = b"\x03" * 32
    state[1664:1728] = b"\x04" * 64
    struct.pack_into("<Q", state, 1088 + 8, 99)
    fields = {"vector_layout": records.VECTOR_XSAVE, "vector_offsets": (576, 1088, 1152, 1664)}
    found = vector_registers(fields, bytes(state))
    assert found["zmm3"] == int.from_bytes(b"\x01" * 16 + b"\x02" * 16 + b"\x03" * 32, "little")
    assert (found["zmm16"], found["k1"]) == (int.from_bytes(b"\x04" * 64, "little"), 99)
    struct.pack_into("<Q", state, 512, 0b11)  # what is not marked as stored is zero
    assert vector_registers(fields, bytes(state))["zmm3"] == int.from_bytes(b"\x01" * 16, "little")


def test_what_a_trampoline_pushed_is_taken_back() -> None:
    # lea rsp,[rsp-128]; push rcx; mov ecx,7; call; pop rcx; lea rsp,[rsp+128]
    code = bytes.fromhex("488d642480 51 b907000000 e800000000 59 488da42480000000")
    region = Region(bytes(16) + code, np.array([16]), np.array([0x1234]))
    memory = Memory([(0x7000, struct.pack("<Q", 0xABC))])
    inside: Registers = {"rsp": 0x7000, "rcx": 7, "rip": 0}
    assert undo(region, 16 + 11, inside, memory) == (0x1234, {"rsp": 0x7088, "rcx": 0xABC, "rip": 0})
    assert undo(region, 16 + len(code), inside, memory) == (0x1234, inside)
    assert undo(region, 8, inside, memory) is None and undo(region, 16 + 1000, inside, memory) is None
    assert pushed_first(bytes.fromhex("50 52 53 9f")) == ["rax", "rdx", "rbx"]
    assert [moved for moved, _ in stack_effects(code)] == [128, 8, 0, 0, -8, -128]


def test_causes_have_names() -> None:
    found = describe(records.CRASH_LINUX, Fault(11, 1, 16), False)
    assert (found["signal_name"], found["code_name"], found["fault_address"]) == (
        "SIGSEGV (Segmentation fault)", "SEGV_MAPERR", "0x10",
    )  # fmt: skip
    assert describe(records.CRASH_LINUX, Fault(6, (1 << 32) - 6, 0), False)["code_name"] == "SI_TKILL"
    assert describe(records.CRASH_LINUX, Fault(1 << 31, 7, 1), True)["signal_name"] == "signal 2147483648"
    assert describe(records.CRASH_WINDOWS, Fault(0xC0000005, 0, 8), False)["fault_address"] == "0x8"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=800), st.binary(max_size=600))
def test_damaged_records_do_no_harm(fields: bytes, rest: bytes) -> None:
    payload = fields[: records.CRASH.itemsize].ljust(records.CRASH.itemsize, b"\0") + rest
    for crash in parse_records(record(payload), 0, []):
        if not isinstance(crash, Crash):
            continue
        vector_registers(crash.fields, crash.vector)
        describe(crash.fields["system"], Fault(crash.fields["code"], crash.fields["detail"], 1), True)
        memory = Memory([(crash.fields["stack_address"], crash.stack)])
        signal_frame(memory, crash.fields["stack_address"])
        whole = Module(1, 0, 1 << 64, "/nowhere", b"", 0, 0, 0, 0, 0, 0)
        for modules in ([], [whole]):
            assert len(list(Unwinder(modules, memory, []).walk(registers_of(crash)))) >= 1
