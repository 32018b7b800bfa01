"""Events to calls: each rule by hand, random programs against their truth, and bytes that are no events."""

from typing import Any

import numpy as np
from hypothesis import given as with_
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from callscope import format as records
from callscope.calls.kernel import CALLS_ONCE, CALLS_RECORDED, PassInput
from tests.builders.event_stream import CLOCK_STEP, CODE, STACK, Thread, Truth, given, rebuild

SIGNAL_STACK = 0x1234_F000


def test_calls_and_returns() -> None:
    thread = Thread()
    thread.enter(1)
    for callee in (2, 3):
        thread.enter(callee)
        thread.enter(4)
        thread.exit()
        thread.exit()
    found = rebuild(bytes(thread.data))
    assert found.calls == [
        Truth(1, -1, "running"), Truth(2, 0, "return"), Truth(4, 1, "return"), Truth(3, 0, "return"),
        Truth(4, 3, "return"),
    ]  # fmt: skip
    assert found.rows["depth"].tolist() == [0, 1, 2, 1, 2]
    assert found.rows["descendants"].tolist() == [4, 1, 0, 1, 0]
    assert found.rows["duration_ns"].tolist()[1:] == [3 * CLOCK_STEP, CLOCK_STEP, 3 * CLOCK_STEP, CLOCK_STEP]
    assert found.rows["self_ns"].tolist()[1:] == [2 * CLOCK_STEP, CLOCK_STEP, 2 * CLOCK_STEP, CLOCK_STEP]
    assert not found.rows["gap"].any()


def test_tail_calls_end_where_they_jump_and_return_together() -> None:
    thread = Thread()
    thread.enter(1)
    thread.enter(2)
    thread.tail(3)
    thread.tail(4)
    thread.exit()
    thread.enter(5)
    thread.exit()
    thread.exit()
    found = rebuild(bytes(thread.data))
    assert found.calls == thread.truth
    assert found.rows["duration_ns"].tolist()[1:4] == [CLOCK_STEP, CLOCK_STEP, CLOCK_STEP]


def test_recursion_keeps_every_level() -> None:
    thread = Thread()
    for _ in range(6):
        thread.enter(7)
    for _ in range(6):
        thread.exit()
    found = rebuild(bytes(thread.data))
    assert [call.parent for call in found.calls] == [-1, 0, 1, 2, 3, 4]
    assert found.rows["depth"].tolist() == list(range(6))


def test_landing_ends_what_was_unwound() -> None:
    thread = Thread()
    thread.enter(1)
    for callee in (2, 3, 4):
        thread.enter(callee)
    thread.unwind(2)
    thread.enter(5)
    thread.exit()
    thread.exit()
    found = rebuild(bytes(thread.data))
    assert found.calls == thread.truth
    assert [call.ended_by for call in found.calls] == ["running", "return", "unwound", "unwound", "return"]


def test_unwound_frames_that_nothing_told_of_end_at_the_next_event_above() -> None:
    thread = Thread()
    thread.enter(1)
    thread.enter(2)
    thread.enter(3)
    thread.unwind(2, landing=False)
    thread.enter(4)
    thread.exit()
    found = rebuild(bytes(thread.data))
    assert found.calls == thread.truth


def test_exit_of_a_caller_ends_its_callees() -> None:
    thread = Thread()
    thread.enter(1)
    thread.enter(2)
    thread.enter(3)
    thread.unwind(1, landing=False)
    thread.exit()
    found = rebuild(bytes(thread.data))
    assert found.calls == thread.truth


def test_functions_without_patched_exits_return() -> None:
    thread = Thread()
    thread.enter(1)
    thread.enter(2)
    thread.unwind(1, landing=False)
    thread.enter(3)
    thread.exit()
    told = given({2: records.FUNCTION_ENTRY | records.FUNCTION_TAILS})
    assert [call.ended_by for call in rebuild(bytes(thread.data), told).calls] == ["running", "return", "return"]


def test_a_handler_on_another_stack_belongs_to_what_it_interrupted() -> None:
    thread = Thread()
    thread.enter(1)
    thread.enter(2)
    thread.switch(SIGNAL_STACK)
    thread.enter(3)
    thread.enter(4)
    thread.exit()
    thread.exit()
    thread.back()
    thread.enter(5)
    thread.exit()
    thread.exit()
    thread.exit()
    assert rebuild(bytes(thread.data)).calls == thread.truth


def test_calls_through_untraced_code_are_marked() -> None:
    thread = Thread()
    thread.enter(1)
    # From far below, returning to code of no function: somebody untraced lies between.
    thread.frames[-1].sp -= 0x200
    thread.enter(2, returns_to=0x10)
    thread.exit()
    found = rebuild(bytes(thread.data))
    assert [call.parent for call in found.calls] == [-1, 0]
    assert found.rows["gap"].tolist() == [0, 1]


ELSEWHERE = 0x7777_0000


def with_sites(flags: int = CALLS_RECORDED) -> PassInput:
    told = given()
    told.calls = flags
    return told


def test_a_recorded_call_of_something_untraced_is_a_call_until_it_returns() -> None:
    thread = Thread()
    thread.enter(1)
    thread.call_out(ELSEWHERE)
    thread.came_back()
    thread.call_out(ELSEWHERE + 0x100)
    thread.call_out(ELSEWHERE)  # where the one before came back to was not patched
    thread.came_back()
    thread.exit()
    found = rebuild(bytes(thread.data), with_sites())
    first, second = (call.function for call in found.calls[1:3])
    assert records.LAST_FUNCTION < first != second > records.LAST_FUNCTION
    assert found.calls == [
        Truth(1, -1, "return"), Truth(first, 0, "return"), Truth(second, 0, "return"), Truth(first, 0, "return"),
    ]  # fmt: skip
    assert found.rows["duration_ns"].tolist() == [6 * CLOCK_STEP, CLOCK_STEP, CLOCK_STEP, CLOCK_STEP]
    assert found.counts["unmatched"] == 0


def test_the_entry_of_what_was_called_takes_the_place_of_its_call() -> None:
    thread = Thread()
    thread.enter(1)
    thread.call_out(CODE + 0x200)
    thread.enter(2)
    thread.exit()
    thread.came_back()
    thread.exit()
    found = rebuild(bytes(thread.data), with_sites(), cuts=(32,))
    assert found.calls == thread.truth


def test_a_signal_between_a_call_and_its_entry_makes_no_second_call() -> None:
    thread = Thread()
    thread.enter(1)
    thread.call_out(CODE + 0x200)
    thread.switch(SIGNAL_STACK)
    thread.enter(9)
    thread.exit()
    thread.back()
    thread.enter(2)
    thread.enter(3)
    thread.exit()
    thread.exit()
    thread.came_back()
    thread.exit()
    found = rebuild(bytes(thread.data), with_sites())
    assert len(found.calls) == 4
    assert [call.parent for call in found.calls] == [-1, 0, 1, 1]
    assert [call.ended_by for call in found.calls] == ["return"] * 4


def test_a_landing_unwinds_recorded_calls() -> None:
    thread = Thread()
    thread.enter(1)
    thread.enter(2)
    thread.call_out(ELSEWHERE)
    thread.unwind(1)
    thread.exit()
    found = rebuild(bytes(thread.data), with_sites())
    assert [call.ended_by for call in found.calls] == ["return", "unwound", "unwound"]


def test_calls_recorded_once_have_no_extent() -> None:
    thread = Thread()
    thread.enter(1)
    outer, thread.data = len(thread.data), bytearray()
    assert outer
    thread.call_out(ELSEWHERE)
    thread.call_out(ELSEWHERE + 0x100)
    found = rebuild(bytes(thread.data), with_sites(CALLS_RECORDED | CALLS_ONCE))
    assert [call.parent for call in found.calls] == [-1, -1]
    assert found.rows["duration_ns"].tolist() == [0, 0]


def test_epochs_and_skips() -> None:
    thread = Thread()
    thread.enter(1)
    thread.control(records.CONTROL_EPOCH, 3)
    thread.control(records.CONTROL_SKIP, 0)
    thread.enter(2)
    thread.exit()
    found = rebuild(bytes(thread.data))
    assert found.calls == thread.truth
    assert found.rows["start_ns"].tolist() == [1010, (3 << 32) + 1020]
    assert found.counts["unknown"] == 0


def test_slots_that_nobody_filled_are_nothing() -> None:
    thread = Thread()
    thread.enter(1)
    thread.data += bytes(24)
    thread.enter(2)
    thread.exit()
    assert rebuild(bytes(thread.data)).calls == thread.truth


def test_function_ids_that_nobody_gave_are_damage() -> None:
    thread = Thread()
    thread.enter(1)
    good = len(thread.data)
    thread.enter(2)
    thread.data[good + 8 : good + 12] = (0x85963255).to_bytes(4, "little")
    found = rebuild(bytes(thread.data))
    assert [call.function for call in found.calls] == [1]
    assert found.counts["unknown"] == 1


def test_no_events_no_calls() -> None:
    assert rebuild(b"").calls == []
    assert rebuild(bytes(64)).calls == []


def test_an_exit_of_nothing_is_counted() -> None:
    thread = Thread()
    thread.enter(1)
    data = bytes(thread.data) + (1).to_bytes(4, "little") + (STACK - 0x4000 | records.EVENT_EXIT).to_bytes(4, "little")
    found = rebuild(data)
    assert found.counts["unmatched"] == 1
    assert found.calls == thread.truth


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["enter"] * 5 + ["exit"] * 4 + ["tail", "unwind", "switch"]), st.integers(1, 20)),
    max_size=120,
)


def simulate(operations: list[tuple[str, int]]) -> Thread:
    thread = Thread()
    thread.enter(1)
    thread.enter(2)
    for what, number in operations:
        depth = len({frame.sp for frame in thread.frames})
        if what == "enter" or depth < 2:
            # Of the frames of one stack only the first may be without a caller.
            thread.enter(number, 0x40 + 0x10 * (number % 3))
        elif what == "exit" and depth > 2:
            thread.exit()
        elif what == "tail":
            thread.tail(number)
        elif what == "unwind" and depth > 2:
            thread.unwind(1 + number % (depth - 2))
        elif what == "switch" and len(thread.stacks) == 1:
            thread.switch(SIGNAL_STACK)
            thread.enter(number)
            thread.enter(1 + number % 20)
            thread.exit()
            thread.exit()
            thread.back()
    return thread


@settings(max_examples=300, deadline=None)
@with_(OPERATIONS, st.lists(st.integers(0, 400), max_size=3))
def test_random_programs_have_their_true_calls(operations: list[tuple[str, int]], cuts: list[int]) -> None:
    thread = simulate(operations)
    starts = np.cumsum([0, *event_sizes(bytes(thread.data))]).tolist()
    found = rebuild(bytes(thread.data), cuts=tuple(starts[cut % len(starts)] for cut in cuts))
    assert found.calls == thread.truth
    assert found.counts["unmatched"] == found.counts["unknown"] == 0
    check_rows(found.rows)


def event_sizes(data: bytes) -> list[int]:
    sizes, at = [], 0
    while at < len(data):
        kind = int.from_bytes(data[at + 4 : at + 8], "little") & 7
        sizes.append(16 if kind == records.EVENT_ENTRY else 8)
        at += sizes[-1]
    return sizes


def check_rows(rows: dict[str, NDArray[Any]]) -> None:
    """What holds of any calls whatever the events were."""
    if not rows:
        return
    count = len(rows["up"])
    up, descendants = rows["up"].astype(int), rows["descendants"].astype(int)
    assert ((up >= 0) & (up <= np.arange(count))).all()
    assert ((descendants >= 0) & (np.arange(count) + descendants < count)).all()
    assert (rows["duration_ns"] >= 0).all()
    assert (rows["self_ns"] >= 0).all()
    assert (rows["self_ns"] <= rows["duration_ns"]).all()
    assert (rows["ended_by"] <= 3).all()


@settings(max_examples=300, deadline=None)
@with_(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=3))
def test_any_bytes_are_survived(data: bytes, cuts: list[int]) -> None:
    check_rows(rebuild(data, cuts=tuple(cuts)).rows)


@settings(max_examples=200, deadline=None)
@with_(OPERATIONS, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_events_are_survived(operations: list[tuple[str, int]], damage: list[tuple[int, int]]) -> None:
    data = bytearray(simulate(operations).data)
    for place, value in damage:
        data[place % len(data)] = value
    check_rows(rebuild(bytes(data)).rows)


def test_interpreted_calls_stand_between_native_ones() -> None:
    """Two scripts run in one loop of an interpreter that nobody traces, and call native code that runs another loop."""
    first = records.SCRIPT_FIRST
    thread = Thread()
    thread.enter(1)
    loop = STACK - 0x300
    thread.script(loop, first)
    thread.script(loop, first + 1)
    thread.tops[0] = loop + 0x80  # called from the loop, so above its recorder's stack pointer
    frames, thread.stacks[0] = thread.stacks[0], []
    thread.enter(2, returns_to=0x10)
    thread.script(loop - 0x400, first + 2)
    thread.script(loop - 0x400, first + 2, records.SCRIPT_EXIT)
    thread.exit()
    thread.stacks[0] = frames
    thread.script(loop, first + 1, records.SCRIPT_UNWOUND)
    thread.script(loop, first, records.SCRIPT_UNWOUND)
    thread.exit()
    found = rebuild(bytes(thread.data))
    assert found.calls == [
        Truth(1, -1, "return"), Truth(first, 0, "unwound"), Truth(first + 1, 1, "unwound"), Truth(2, 2, "return"),
        Truth(first + 2, 3, "return"),
    ]  # fmt: skip
    assert found.counts["unmatched"] == 0
    assert not found.rows["gap"].any()


def test_interpreted_calls_that_nobody_ended_go_with_the_native_frame_around() -> None:
    thread = Thread()
    thread.enter(1)
    thread.enter(2)
    thread.script(STACK - 0x300, records.SCRIPT_FIRST)
    thread.exit()
    thread.exit()
    found = rebuild(bytes(thread.data))
    assert [(call.parent, call.ended_by) for call in found.calls] == [(-1, "return"), (0, "return"), (1, "unwound")]
