"""What the planner decides for small functions, tactic by tactic."""

from __future__ import annotations

import numpy as np
from iced_x86 import Decoder, Mnemonic

from callscope.format import STUB_BYTES, STUB_CALL, STUB_ENTRY, STUB_EXIT, STUB_LANDING, STUB_RETURNED, STUB_TAIL
from callscope.patching.scope import FUNCTIONS, Scope
from callscope.patching.worker import Part, plan_range
from tests.builders.code import LOW, NO_FRAMES, text_of

PROLOGUE = bytes.fromhex("55 4889e5 53 4883ec08")  # push rbp; mov rbp,rsp; push rbx; sub rsp,8
EPILOGUE = bytes.fromhex("4883c408 5b 5d c3")  # add rsp,8; pop rbx; pop rbp; ret
PADDING = bytes.fromhex("660f1f440000")


def plan(
    functions: list[bytes], pointers: tuple[int, ...] = (), gap: bytes = PADDING, scope: Scope = FUNCTIONS
) -> Part:
    text = text_of(functions, pointers, gap)
    return plan_range(text, NO_FRAMES, scope, 0, len(functions))


def stubs_called(part: Part) -> list[int]:
    """The stub of every call in the part's code, in order."""
    called = []
    for place in part.to_stub.tolist():
        displacement = int.from_bytes(part.code[place : place + 4], "little", signed=True)
        called.append((displacement + place + 4) // STUB_BYTES)
    return called


def reasons(part: Part) -> list[tuple[str, str]]:
    return [(refusal.kind, refusal.reason) for refusal in part.refusals]


def patched(part: Part) -> dict[int, int]:
    """Address -> number of bytes written there."""
    return {int(row["rva"]): int(row["length"]) for row in part.patches}


def trampoline(part: Part, address: int) -> list[str]:
    """The instructions of the trampoline that the jump at an address leads to, up to its end."""
    row = next(row for row in part.patches if row["rva"] == address and row["target"] >= 0)
    decoder = Decoder(64, part.code[int(row["target"]) :], ip=int(row["target"]))
    out = []
    for instruction in decoder:
        out.append(str(instruction))
        if instruction.mnemonic in (Mnemonic.RET, Mnemonic.JMP):
            break
    return out


def test_a_function_that_is_entered_behind_its_first_byte() -> None:
    part = plan([bytes.fromhex("90 e800000000 90"), PROLOGUE + EPILOGUE])  # nop; call; nop
    assert min(patched(part)) > LOW + 7
    assert len(part.refusals) == 1 and "runtime.goexit" in part.refusals[0].reason


def test_entry_and_exit_of_a_plain_function() -> None:
    part = plan([PROLOGUE + bytes.fromhex("e800000000") + EPILOGUE])
    assert patched(part) == {LOW: 5, LOW + len(PROLOGUE) + 5 + 2 - 2: 5}
    assert stubs_called(part) == [STUB_ENTRY, STUB_EXIT]
    assert part.counts == {"entry": 1, "exit": 1, "tail": 0, "landing": 0, "call": 0, "return": 0}
    assert not part.refusals
    assert trampoline(part, LOW)[:2] == ["push rcx", "mov ecx,0"]


def test_moved_instructions_jump_back_behind_themselves() -> None:
    part = plan([PROLOGUE + bytes.fromhex("e800000000") + EPILOGUE])
    code = trampoline(part, LOW)
    assert code[3:7] == ["pop rcx", "push rbp", "mov rbp,rsp", "push rbx"]
    assert code[-1].endswith(f"{LOW + 5:016X}h")


def test_a_tiny_function_moves_whole_with_its_ret() -> None:
    part = plan([bytes.fromhex("89f8c3")])  # mov eax,edi; ret
    assert stubs_called(part) == [STUB_ENTRY, STUB_EXIT]
    assert patched(part) == {LOW: 5}


def test_lone_rets_without_padding_are_refused_with_their_reason() -> None:
    part = plan([b"\xc3", b"\xc3"], gap=b"")
    assert part.counts == {"entry": 2, "exit": 2, "tail": 0, "landing": 0, "call": 0, "return": 0}
    assert {kind for kind, reason in reasons(part) if "single byte" in reason} == {"entry", "exit"}
    assert len(part.refusals) == 4
    assert not len(part.patches)


def test_no_patch_covers_a_pointer_target() -> None:
    body = PROLOGUE + bytes.fromhex("4883c408 5b") + bytes.fromhex("5d c3")
    pointer = LOW + len(body) - 2
    part = plan([body], (pointer,), gap=b"\xcc" * 16)
    for address, length in patched(part).items():
        assert not address < pointer < address + length


def test_a_short_ret_takes_an_island() -> None:
    # pop rbp is a pointer's target, and the two bytes behind it are all there is.
    first = PROLOGUE + bytes.fromhex("4883c408 5b") + bytes.fromhex("5d c3")
    straight = bytes.fromhex("4883c001" * 6)  # add rax,1: room to borrow
    part = plan([first, PROLOGUE + straight + EPILOGUE], (LOW + len(first) - 2,), gap=b"")
    assert patched(part)[LOW + len(first) - 2] == 2
    assert not part.refusals
    assert stubs_called(part).count(STUB_EXIT) == 2


def test_a_short_ret_with_nothing_around_it_is_refused() -> None:
    first = PROLOGUE + bytes.fromhex("4883c408 5b") + bytes.fromhex("5d c3")
    part = plan([first], (LOW + len(first) - 2,), gap=b"")
    assert reasons(part) == [("exit", "no room for an island within reach of a short jump")]
    assert part.exits_left == [0]


def test_a_loop_to_the_first_instruction_does_not_enter_again() -> None:
    # 1: dec edi; add eax,1; jnz 1b; ret
    part = plan([bytes.fromhex("ffcf 83c001 75f9 c3")], gap=b"\xcc" * 32)
    assert not part.refusals
    assert stubs_called(part) == [STUB_ENTRY, STUB_EXIT]
    code = Decoder(64, part.code, ip=0)
    instructions = list(code)
    branch = next(instruction for instruction in instructions if instruction.mnemonic == Mnemonic.JNE)
    back_at = next(instruction for instruction in instructions if instruction.ip == branch.near_branch_target)
    assert back_at.mnemonic == Mnemonic.DEC


def test_a_jump_to_another_function_is_a_tail_call() -> None:
    first = PROLOGUE + bytes.fromhex("4883c408 5b 5d")
    jump = b"\xe9" + (len(PADDING)).to_bytes(4, "little")
    part = plan([first + jump, PROLOGUE + EPILOGUE])
    assert part.counts["tail"] == 1
    assert STUB_TAIL in stubs_called(part)
    assert patched(part)[LOW + len(first) + 1] == 4


def test_a_displaced_call_pushes_the_original_return_address() -> None:
    body = bytes.fromhex("4883ec08 e810000000 4883c408 c3")  # sub rsp,8; call; add rsp,8; ret
    part = plan([body])
    code = trampoline(part, LOW)
    assert not [line for line in code[3:] if line.startswith("call")]
    assert any(f"{LOW + 9:X}h" in line for line in code if line.startswith("lea rax"))


def test_unwind_records_cover_every_trampoline() -> None:
    part = plan([PROLOGUE + bytes.fromhex("e800000000") + EPILOGUE])
    assert len(part.records) == len(part.record_starts) == 2
    assert np.all(np.diff(part.record_starts) > 0)


def test_a_landing_pad_is_recorded_where_it_begins() -> None:
    pad = bytes.fromhex("4889c7 e800000000")  # mov rdi,rax; call: where an exception resumes
    body = PROLOGUE + bytes.fromhex("e800000000") + EPILOGUE + pad
    place = LOW + len(body) - len(pad)
    text = text_of([body], gap=PADDING, landing_pads=(place,))
    part = plan_range(text, NO_FRAMES, FUNCTIONS, 0, 1)
    assert part.counts["landing"] == 1
    assert patched(part)[place] == 5
    assert STUB_LANDING in stubs_called(part)


LEAVING, ONCE = Scope("leaving"), Scope("leaving", once=True)


def thunk(part: Part, call: int) -> list[str]:
    """The instructions of the thunk that the five bytes of a patch ending behind `call` call."""
    (row,) = [row for row in part.patches if row["rva"] <= call < row["rva"] + row["length"] and 0xE8 in row["new"]]
    decoder = Decoder(64, part.code[int(row["target"]) :], ip=int(row["target"]))
    found = []
    for instruction in decoder:
        found.append(f"{instruction}".replace("qword ptr ", "").replace("dword ptr ", ""))
        if instruction.mnemonic == Mnemonic.JMP:
            return found
    raise AssertionError("the thunk does not end in a jump")


def test_a_long_indirect_call_becomes_a_call_of_a_thunk_of_the_same_length() -> None:
    call = bytes.fromhex("ff9080000000")  # call [rax+128]
    part = plan([PROLOGUE + call + bytes.fromhex("4889c3 4889d9") + EPILOGUE], scope=LEAVING)
    place = LOW + len(PROLOGUE)
    (row,) = [row for row in part.patches if row["rva"] == place]
    assert row["new"].tolist()[:2] == [0x67, 0xE8]
    assert row["length"] == len(call)
    assert part.counts["call"] == part.counts["return"] == 1
    assert not part.refusals
    code = thunk(part, place)
    assert code[:2] == ["push rcx", "mov ecx,[rax+80h]"]
    assert code[-2:] == ["pop rcx", "jmp [rax+80h]"]
    assert STUB_RETURNED in stubs_called(part)


def test_a_short_call_takes_what_is_before_it_along() -> None:
    before = bytes.fromhex("488b7c2408")  # mov rdi,[rsp+8]
    part = plan([PROLOGUE + bytes.fromhex("90" * 5) + before + bytes.fromhex("ffd0") + EPILOGUE], scope=LEAVING)
    code = thunk(part, LOW + len(PROLOGUE) + 10)
    assert code[:3] == ["mov rdi,[rsp+10h]", "push rcx", "mov ecx,eax"]
    assert code[-1] == "jmp rax"
    assert patched(part)[LOW + len(PROLOGUE) + 5] == 7


def test_a_short_call_that_a_jump_leads_to_is_refused() -> None:
    # test eax,eax; jz to the call; mov rdi,rbx; call rax
    body = PROLOGUE + bytes.fromhex("90" * 5 + "85c0 7403 4889df ffd0") + EPILOGUE
    part = plan([body], scope=LEAVING)
    assert [reason for kind, reason in reasons(part) if kind == "call"] == [
        "a jump leads to it, and it is too short for a call of a thunk"
    ]


def test_a_call_through_the_stack_finds_its_operand() -> None:
    part = plan([PROLOGUE + bytes.fromhex("90" * 5 + "ff942400010000") + EPILOGUE], scope=LEAVING)  # call [rsp+256]
    code = thunk(part, LOW + len(PROLOGUE) + 5)
    assert code[1] == "mov ecx,[rsp+110h]"
    assert code[-1] == "jmp [rsp+108h]"


def test_calls_within_the_image_are_recorded_only_when_all_are() -> None:
    body = PROLOGUE + bytes.fromhex("90" * 5)
    call = b"\xe8" + (len(EPILOGUE) + len(PADDING)).to_bytes(4, "little")
    functions = [body + call + EPILOGUE, PROLOGUE + EPILOGUE]
    assert plan(functions, scope=LEAVING).counts["call"] == 0
    assert plan(functions, scope=Scope("all")).counts["call"] == 1


def test_once_records_only_call_sites_and_each_has_a_byte() -> None:
    body = PROLOGUE + bytes.fromhex("ff9080000000 90 ff9188000000") + EPILOGUE
    part = plan([body, body], scope=ONCE)
    assert set(stubs_called(part)) == {STUB_CALL}
    assert part.flags == 4
    assert sorted({number for _, number in part.to_flag.tolist()}) == [0, 1, 2, 3]
    assert not part.entered
