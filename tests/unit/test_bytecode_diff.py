"""`callscope diff` of two traces of instructions."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callscope.bytecode.diff import Parting, first_difference
from callscope.cli.main import main
from callscope.errors import TraceError

LINES = ["<module>> 0 LOAD_CONST (<code object f at 0x7f0011223344>)", "<module>> 2 STORE_NAME (f)",
         "f> 0 RESUME (0)", "f> 2 RETURN_VALUE ; [1]"]  # fmt: skip


def written(directory: Path, name: str, lines: list[str]) -> Path:
    path = directory / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_first_difference(tmp_path: Path) -> None:
    one = written(tmp_path, "one", LINES)
    assert first_difference(one, one) == 4
    other = [LINES[0].replace("0x7f0011223344", "0x7fffffffffff"), *LINES[1:2], "# thread 2", "f> 0 NOP", *LINES[3:]]
    assert first_difference(one, written(tmp_path, "two", other)) == Parting(
        2, ["<module>> 0 LOAD_CONST (<code object f at 0x>)", LINES[1]], [LINES[2], "f> 2 RETURN_VALUE"],
        ["f> 0 NOP", "f> 2 RETURN_VALUE"],
    )  # fmt: skip
    found = first_difference(written(tmp_path, "three", LINES[:3]), one)
    assert found == Parting(
        3, ["<module>> 0 LOAD_CONST (<code object f at 0x>)", *LINES[1:3]], [], ["f> 2 RETURN_VALUE"]
    )


def test_json_and_text_are_the_same(tmp_path: Path) -> None:
    rows = [
        {"code": "f", "offset": 0, "name": "LOAD_FAST", "operand": 1, "meaning": "x"},
        {"code": "f", "offset": 2, "name": "POP_TOP", "operand": None},
    ]
    one = written(tmp_path, "one", [json.dumps(row) for row in rows])
    two = written(tmp_path, "two", ["f> 0 LOAD_FAST (x)", "f> 2 POP_TOP"])
    assert first_difference(one, two) == 2


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = written(tmp_path, "one", LINES), written(tmp_path, "two", [*LINES[:2], "f> 0 NOP"])
    assert main(["diff", str(one), str(two)]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "they part after 2 instructions", "  <module>> 0 LOAD_CONST (<code object f at 0x>)", f"  {LINES[1]}",
        "- f> 0 RESUME (0)", "- f> 2 RETURN_VALUE", "+ f> 0 NOP",
    ]  # fmt: skip
    assert main(["diff", "--format", "json", str(one), str(one)]) == 0
    assert json.loads(capsys.readouterr().out) == {"instructions": 4, "same": True}
    written(tmp_path, "bad", ["nothing of the kind"])
    assert main(["diff", str(one), str(tmp_path / "bad")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_file_is_a_trace_or_refused(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "trace"
    path.write_bytes(b"\n".join([b'{"code": 1', *lines]))
    try:
        first_difference(path, path)
    except TraceError as error:
        assert "\n" not in str(error)
