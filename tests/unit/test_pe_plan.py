"""Plans of PE images: what their code needs besides what ELF code needs, and Windows' unwinder through every patch."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callscope import format as fmt
from callscope.cli.main import main
from callscope.errors import CallscopeError
from callscope.patching.planner import plan_image
from callscope.patching.unwind_table import unwind_bytes
from tests.builders.compilers import MINGW, TARGETS, compile_program, have
from tests.builders.pe_file import RUNTIME, TEXT, PeFile, Unwind
from tests.builders.pe_plan import PatchedImage
from tests.builders.windows_unwinder import Table, unwind

ALLOC_28 = bytes([4, 0x42])  # sub rsp,0x28 ends at 4
PADDING = b"\xcc" * 16
DWARF_NAMES = [
    "rax",
    "rdx",
    "rcx",
    "rbx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
]
needs_mingw = pytest.mark.skipif(not have(*MINGW.values()), reason="needs mingw-w64")


def planned(tmp_path: Path, file: PeFile) -> PatchedImage:
    path = tmp_path / "small.exe"
    path.write_bytes(file.build())
    return PatchedImage(plan_image(path, jobs=1))


def written(image: PatchedImage) -> dict[int, bytes]:
    """Relative address -> bytes written there, displacements as zeros."""
    out = {}
    for patch in image.patches:
        new = bytearray(patch["new"].tobytes()[: int(patch["length"])])
        if patch["rel_offset"] != fmt.PATCH_NO_REL:
            at = int(patch["rel_offset"])
            new[at : at + 4] = bytes(4)
        out[int(patch["rva"]) - TEXT] = bytes(new)
    return out


def call(place: int, target: int) -> bytes:
    return b"\xe8" + struct.pack("<i", target - place - 5)


def test_a_patch_behind_a_call_begins_with_a_nop(tmp_path: Path) -> None:
    # sub rsp,0x28; call leaf; add rsp,0x28; ret
    text = bytes.fromhex("4883ec28") + call(4, 0x40) + bytes.fromhex("4883c428 c3") + PADDING * 4
    text = text[:0x40] + bytes.fromhex("8d0409 31d2 c3") + PADDING  # lea eax,[rcx+rcx]; xor edx,edx; ret
    image = planned(tmp_path, PeFile(text=text, unwinds=[Unwind(TEXT, TEXT + 14, ALLOC_28, 4)]))
    patches = written(image)
    assert patches[9] == bytes.fromhex("90e900000000")
    assert patches[0x40] == bytes.fromhex("e900000000")  # a leaf without unwind information, found by the call
    assert image.before(TEXT + 9) == image.after(TEXT + 9)
    # A plain jump there would look like the end of an epilogue: the frame would be lost.
    bare = image.memory[: TEXT + 9] + image.memory[TEXT + 10 : TEXT + 15] + image.memory[TEXT + 14 :]
    wrong = unwind(lambda rva, size: bare[rva : rva + size], image.functions.lookup(TEXT + 9), TEXT + 9)
    assert wrong.rsp == ("rsp", 8) != image.before(TEXT + 9).rsp


def test_a_patch_within_an_epilogue_behind_a_call(tmp_path: Path) -> None:
    # push rbx; sub rsp,0x20; call; add rsp,0x20; (a jump target:) mov eax,1; pop rbx; ret: no epilogue, so no nop.
    # The other: add rsp,0x20; pop rbx; ret, where growing over the add is barred by a jump to the pop.
    codes = bytes([5, 0x32, 1, 0x30])
    body = bytes.fromhex("53 4883ec20") + call(5, 0x60) + bytes.fromhex("4883c420 5b c3")
    text = body.ljust(0x20, b"\xcc") + bytes.fromhex("53 75 0d 4883ec20") + call(0x27, 0x60)
    text = (text + bytes.fromhex("4883c420 5b c3")).ljust(0x60, b"\xcc") + bytes.fromhex("8d0409 31d2 c3") + PADDING
    assert text[0x30:0x32] == bytes.fromhex("5bc3")
    unwinds = [Unwind(TEXT, TEXT + 16, codes, 5), Unwind(TEXT + 0x20, TEXT + 0x32, bytes([7, 0x32, 1, 0x30]), 7)]
    image = planned(tmp_path, PeFile(text=text, unwinds=unwinds))
    patches = written(image)
    assert patches[0x0A] == bytes.fromhex("90e900000000")
    assert patches[0x30] == bytes.fromhex("90e900000000")
    for place in (TEXT + 0x0A, TEXT + 0x2C):
        assert image.same(place, place)


def test_calls_stay_where_shadow_stacks_are_checked(tmp_path: Path) -> None:
    text = call(0, 0x40) + bytes.fromhex("c3") + PADDING * 4
    text = text[:0x40] + bytes.fromhex("8d0409 31d2 c3") + PADDING
    moved = []
    for shadow_stack in (False, True):
        image = planned(tmp_path, PeFile(text=text, shadow_stack=shadow_stack))
        moved.append(TEXT in image.moved["rva"])
        assert image.plan.image.has_shadow_stack == shadow_stack
    assert moved == [True, False]


def test_what_a_try_guards_stays_where_it_is(tmp_path: Path) -> None:
    # sub rsp,0x28; | mov eax,[rcx]; add eax,[rcx+4]; | add rsp,0x28; ret; the handler: xor eax,eax; add rsp,0x28; ret
    text = bytes.fromhex("4883ec28 8b01 034104 4883c428 c3") + bytes.fromhex("31c0 4883c428 c3") + PADDING
    scope = struct.pack("<IIIIII", 0x1234, 1, TEXT + 4, TEXT + 9, 1, TEXT + 14)
    image = planned(tmp_path, PeFile(text=text, unwinds=[Unwind(TEXT, TEXT + 21, ALLOC_28, 4, 0, 3, scope)]))
    moved = image.moved["rva"].astype(int) - TEXT
    assert not set(moved) & {4, 6} and 9 in moved and 14 in moved
    assert image.plan.text.landings == [TEXT + 14] and image.plan.counts["landing"] == 1


def switch(table: int) -> bytes:
    """cmp ecx,2; ja default; lea rdx,[image]; mov ecx,[rdx+rcx*4+table]; add rcx,rdx; jmp rcx; three cases."""
    head = bytes.fromhex("83f902 7725") + b"\x48\x8d\x15" + struct.pack("<i", -(TEXT + 12))
    head += b"\x8b\x8c\x8a" + struct.pack("<I", table) + bytes.fromhex("4801d1 ffe1")
    cases = b"".join(b"\xb8" + struct.pack("<I", number) + b"\xc3" for number in range(4))
    return head + cases


def test_jump_tables_in_the_code(tmp_path: Path) -> None:
    body = switch(TEXT + 0x40)
    assert len(body) == 0x18 + 24
    first = 0x18
    entries = [TEXT + first + 6 * number for number in range(3)]
    # 0xcc is the first byte of the table: padding, were it not known for a table
    table = struct.pack("<III", *entries)
    text = body.ljust(0x40, b"\xcc") + table + b"\xc3" * 4 + PADDING
    image = planned(tmp_path, PeFile(text=text, unwinds=[Unwind(TEXT, TEXT + 0x50)]))
    patches = written(image)
    assert {0, *(first + 6 * number for number in range(4))} <= set(patches)
    assert all(address + len(new) <= 0x40 for address, new in patches.items())
    assert image.plan.counts["exit"] == 4 and not image.plan.refusals
    assert image.plan.counts["tail"] == 0  # the jump through the table stays in the function


def test_a_jump_table_behind_a_function_without_unwind_information(tmp_path: Path) -> None:
    # As in node 12: the table's first byte, directly behind a ret of one byte that is jumped to, is 0xcc.
    leaf = TEXT + 0xA0
    case, end, table, numbers = leaf + 0x2C, leaf + 0x33, leaf + 0x34, leaf + 0x3C
    code = bytes.fromhex("0fb6c2 0575ffffff 83f82a 7726 4c8d05") + struct.pack("<i", -(leaf + 0x14))
    code += bytes.fromhex("4898 410fb68400") + struct.pack("<I", numbers)  # movzx eax,[image+rax+numbers]
    code += bytes.fromhex("418b9480") + struct.pack("<I", table)  # mov edx,[image+rax*4+table]
    code += bytes.fromhex("4903d0 ffe2 c6818a00000001 c3") + struct.pack("<II", case, end) + bytes([0, 1, 1, 0])
    assert code[table - leaf] == 0xCC and code[end - leaf] == 0xC3
    caller = bytes.fromhex("4883ec28") + call(4, 0xA0) + bytes.fromhex("4883c428 c3")
    text = caller.ljust(0xA0, b"\xcc") + code + PADDING
    image = planned(tmp_path, PeFile(text=text, unwinds=[Unwind(TEXT, TEXT + 14, ALLOC_28, 4)]))
    patches = {address + TEXT: len(new) for address, new in written(image).items()}
    assert leaf in patches and all(address + size <= table for address, size in patches.items())
    assert image.plan.counts["exit"] == 2


def test_functions_that_only_pointers_and_jumps_lead_to(tmp_path: Path) -> None:
    getter = bytes.fromhex("8b4108 83c001 c3")  # mov eax,[rcx+8]; add eax,1; ret
    text = (getter.ljust(16, b"\xcc") * 3).ljust(0x40, b"\xcc")
    text += b"\x06\x07" * 8 + getter  # no instructions; then a function, but not on a boundary
    text = text.ljust(0x80, b"\xcc") + bytes.fromhex("31c0 90 e9") + struct.pack("<i", 0x20 - 0x88) + PADDING
    file = PeFile(text=text, unwinds=[Unwind(TEXT + 0x80, TEXT + 0x88)], entry=TEXT + 0x80)
    assert [start - TEXT for start in planned(tmp_path, file).plan.text.starts] == [0x20, 0x80]
    file.pointers = {0: 0}
    data = file.data_at  # with relocations
    file.pointers = {data + 8 * number: TEXT + at for number, at in enumerate((0, 4, 0x40, 0x51))}
    assert [start - TEXT for start in planned(tmp_path, file).plan.text.starts] == [0, 0x20, 0x80]


def test_the_plan_file(tmp_path: Path) -> None:
    text = bytes.fromhex("53 4883ec20") + call(5, 0x40) + bytes.fromhex("4883c420 5b c3")
    text = text.ljust(0x40, b"\xcc") + bytes.fromhex("8d0409 31d2 c3") + PADDING
    image = planned(tmp_path, PeFile(text=text, unwinds=[Unwind(TEXT, TEXT + 16, bytes([5, 0x32, 1, 0x30]), 5)]))
    header = image.header
    assert int(header["image_kind"]) == fmt.PLAN_PE and int(header["symfile_bytes"]) == 0
    assert image.delta >= image.plan.image.span and image.delta % fmt.PLAN_PE_ALIGNMENT == 0
    assert bytes(header["build_id"])[: int(header["build_id_bytes"])] == image.plan.image.build_id
    assert int(header["frames_bytes"]) % fmt.RUNTIME_FUNCTION_BYTES == 0
    assert int(header["frames"]) >= int(header["code_bytes"])
    entries = image.trampolines.entries
    code = range(image.delta + fmt.PLAN_PAGE, image.delta + int(header["code_bytes"]) + 1)
    assert entries and all(begin in code and end in code for begin, end, _ in entries)
    assert all(first[1] <= second[0] for first, second in pairwise(entries))
    assert np.all(np.diff(image.moved["rva"].astype(np.int64)) > 0)
    moved = {int(row["rva"]) - TEXT: image.region[int(row["place"])] for row in image.moved}
    assert moved[0] == 0x53 and moved[1] == 0x48
    assert Table(b"").lookup(TEXT) is None


@needs_mingw
@pytest.mark.parametrize("level", ["-O0", "-O2"])
@pytest.mark.parametrize(("compiler", "name"), [("mingw", "windows_program.cpp"), ("zig-windows", "windows_plugin.c")])
def test_windows_unwinder_walks_through_every_patch(tmp_path: Path, compiler: str, name: str, level: str) -> None:
    flags = [level, "-shared"] if name == "windows_plugin.c" else [level]
    image = PatchedImage(plan_image(compile_program([TARGETS / name], tmp_path / "program.exe", flags, compiler)))
    returns = list(image.return_addresses())
    assert len(returns) > 100
    assert [hex(place) for place in returns if not image.same(place, place)] == []
    wrong = [hex(row["rva"]) for row in image.moved if not image.same(int(row["rva"]), int(row["place"]) + image.delta)]
    assert len(image.moved) > 500 and wrong == []
    for place, stub in image.stub_returns():
        if stub != fmt.STUB_LANDING:
            caller = image.after(place)
            assert stub not in (fmt.STUB_ENTRY_RED_ZONE, fmt.STUB_TAIL_RED_ZONE)
            assert caller.rsp == ("rsp", 16 if stub == fmt.STUB_ENTRY else 8) and not caller.pushed
    counts = image.plan.counts
    for kind, least in (("entry", 0.99), ("exit", 0.97)):
        left = sum(refusal.kind == kind for refusal in image.plan.refusals)
        assert counts[kind] > 50 and left <= (1 - least) * counts[kind]


@needs_mingw
def test_unwind_tables_tell_of_trampolines(tmp_path: Path) -> None:
    """The agent's tables say what Windows' unwinder finds in a region, at every instruction that was moved there."""
    program = compile_program([TARGETS / "windows_program.cpp"], tmp_path / "program.exe", ["-O2"], "mingw")
    image = PatchedImage(plan_image(program))
    (tmp_path / "plan").write_bytes(image.file)
    data = unwind_bytes(image.plan.image, tmp_path / "plan")
    header = np.frombuffer(data, fmt.UNWIND_HEADER, 1)[0]
    rules = np.frombuffer(data, fmt.UNWIND_RULE, int(header["rule_count"]), int(header["rule_offset"]))
    first, count = int(header["row_count"]), int(header["region_row_count"])
    rows = np.frombuffer(data, fmt.UNWIND_ROW, first + count, int(header["row_offset"]))[first:]
    assert int(header["region_bytes"]) == len(image.region) and np.all(np.diff(rows["rva"].astype(np.int64)) > 0)
    places = [int(row["place"]) for row in image.moved] + [place - image.delta for place, _ in image.stub_returns()]
    saved = ("rbx", "rbp", "r12", "r13", "r14", "r15")
    pushed = 0
    for place in places:
        caller = image.after(place + image.delta)
        rule = rules[rows["rule"][np.searchsorted(rows["rva"], place, side="right") - 1]]
        assert rule["kind"] == fmt.UNWIND_OFFSET
        base, offset = DWARF_NAMES[int(rule["base"])], int(rule["offset"])
        assert (base, offset) == caller.rsp, hex(place)
        for name, (register, at) in caller.pushed.items():
            if name in saved and register == base:
                assert at - offset == int(rule["saved"][saved.index(name)]), hex(place)
                pushed += 1
    assert len(places) > 1000 and pushed > 500


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    code=st.binary(min_size=48, max_size=200),
    codes=st.binary(max_size=8),
    flags=st.integers(0, 7),
    split=st.integers(1, 40),
)
def test_any_bytes_are_planned_or_refused(tmp_path: Path, code: bytes, codes: bytes, flags: int, split: int) -> None:
    unwinds = [
        Unwind(TEXT, TEXT + split, codes[: len(codes) & -2], 4, 0, flags, code[:24]),
        Unwind(TEXT + split, TEXT + len(code)),
    ]
    try:
        image = planned(tmp_path, PeFile(text=code, unwinds=unwinds))
    except CallscopeError as error:
        assert "\n" not in str(error)
        return
    assert len(image.memory) == len(image.original)  # every patch has found the bytes that it replaces
    assert all(patch["rva"] >= TEXT and patch["rva"] + patch["length"] <= TEXT + len(code) for patch in image.patches)
    assert all(begin < end for begin, end, _ in image.trampolines.entries)


def test_the_plan_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CALLSCOPE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "small.exe"
    path.write_bytes(PeFile(text=bytes.fromhex("8d0409 31d2 c3") + PADDING).build())
    assert main(["plan", str(path)]) == 0
    assert capsys.readouterr().out.count("1 of         1 patched") == 2
    for file, words in (
        (PeFile(machine=0x14C), "is built for 32-bit x86"),
        (PeFile(directories={RUNTIME: (0x2000, 72)}), "is a .NET program"),
    ):
        path.write_bytes(file.build())
        assert main(["plan", str(path)]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
