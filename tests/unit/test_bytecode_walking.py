"""Walking through code from token to token; recordings that are damaged."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callscope.bytecode import tokens
from callscope.bytecode.codes import Code, Codes, Instruction
from callscope.bytecode.decode import Decoder
from callscope.bytecode.executed import Edge, Executed
from callscope.bytecode.infer import Inferred
from callscope.bytecode.run import EVENTS
from callscope.bytecode.tokens import Token
from callscope.errors import RecordError

# def f(): for x in y: (await z; g())
LOOP = [
    ("RESUME", None), ("FOR_ITER", 20), ("SEND", 12), ("YIELD_VALUE", None), ("RESUME", None),
    ("JUMP_BACKWARD_NO_INTERRUPT", 4), ("END_SEND", None), ("CALL", None), ("POP_TOP", None), ("JUMP_BACKWARD", 2),
    ("END_FOR", None), ("RETURN_CONST", None), ("PUSH_EXC_INFO", None), ("RERAISE", None),
]  # fmt: skip


def code_of(facts: list[tuple[str, int | None]]) -> Code:
    """Each instruction takes two bytes."""
    instructions = [
        Instruction(2 * index, 0, name, target, None if target is None else str(target), 1)
        for index, (name, target) in enumerate(facts)
    ]
    return Code(1, "f", "f", "f.py", 1, instructions)


CODES = Codes((3, 13), 2, {1: code_of(LOOP)})


def walked(content: list[Token], version: tuple[int, int] = (3, 13)) -> list[int | str]:
    inferred = Inferred(CODES, version < (3, 13))
    return [
        one.at if isinstance(one, Executed) else "in" if isinstance(one, Edge) and one.enters else "out"
        for one in inferred.of(content)
    ]


START = (tokens.START, 1, 1)
TO_LOOP, TO_END = (tokens.FAR, 2, 0), (tokens.FAR, 11, 0)
AT_CALL = (tokens.AT, 7, 0)


def test_a_loop_with_yields_and_a_call() -> None:
    """Twice at its YIELD_VALUE, then through END_SEND to CALL, at which something is called two times."""
    yields = [(tokens.AT, 3, 0), (tokens.YIELD, 0, 0), (tokens.START, 1, 5)]
    content = [START, TO_LOOP, *yields, *yields, AT_CALL, AT_CALL]
    assert walked(content) == ["in", 0, 1, 2, 3, "out", "in", 4, 5, 2, 3, "out", "in", 4, 5, 2, 6, 7]


def test_an_exhausted_loop_and_a_return() -> None:
    assert walked([START, TO_END, (tokens.RETURN, 0, 0)]) == ["in", 0, 1, 10, 11, "out"]


def test_an_exception_thrown_in_and_raised_again() -> None:
    content = [(tokens.THROW, 1, 4), (tokens.AT, 3, 0), (tokens.HANDLED, 12, 0), (tokens.AT, 13, 0)]
    assert walked([*content, (tokens.UNWIND, 0, 0)]) == ["in", 12, 13, "out"]


def test_frames_of_two_stacks() -> None:
    other = [(tokens.FRAME, 0, 0), START, TO_LOOP, AT_CALL]
    content = [START, TO_LOOP, (tokens.AT, 2, 0), *other, (tokens.FRAME, 1, 0), AT_CALL]
    assert walked(content) == ["in", 0, 1, 2, "in", 0, 1, 2, 6, 7, 6, 7]


@pytest.mark.parametrize("version", [(3, 12), (3, 13)])
def test_a_signal_handler_at_a_jump(version: tuple[int, int]) -> None:
    """In CPython 3.12 it runs behind the jump, in 3.13 before: it is at the jump in both."""
    jump, at_jump = (tokens.FAR, 1, 0), (tokens.AT, 9, 0)
    content = [START, TO_LOOP, AT_CALL, *([jump, at_jump] if version < (3, 13) else [at_jump, jump]), TO_END]
    assert walked(content, version) == ["in", 0, 1, 2, 6, 7, 8, 9, 1, 10]


@pytest.mark.parametrize(
    "content",
    [
        [START, (tokens.FAR, 8, 0)], [START, (tokens.RETURN, 0, 0)], [START, (tokens.AT, 12, 0)],
        [START, TO_LOOP, AT_CALL, (tokens.AT, 6, 0)], [START, TO_END, (tokens.AT, 0, 0)],
    ],
)  # fmt: skip
def test_what_the_code_cannot_lead_to_is_an_error(content: list[Token]) -> None:
    with pytest.raises(RecordError, match=r"contradicts its code at .*--no-infer"):
        walked(content)


KINDS = st.sampled_from([0x61, 0x62, 0x5F, 0x69, *range(tokens.FAR, tokens.FRAME + 2)])
NUMBERS = st.sampled_from([1, 2, 3, 5, 8, 12, 0x7F, 0x80])


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.one_of(KINDS, NUMBERS, st.integers(1, 255)), max_size=80).map(bytes), st.booleans())
def test_any_recording_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, infer: bool
) -> None:
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / EVENTS).write_bytes(bytes([tokens.INFER] if infer else []) + content)
    assert count(directory) < 2000


def count(directory: Path) -> int:
    try:
        return sum(1 for _ in Decoder(CODES).read(directory))
    except RecordError as error:
        assert "\n" not in str(error)
        return 0
