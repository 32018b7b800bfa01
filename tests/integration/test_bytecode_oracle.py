"""What callscope says was executed, against what gdb sees an untraced interpreter execute, instruction for instruction.

gdb sees machine code, so two things differ, and are allowed only where they must be. Specialised instructions of 3.11
on may do the work of the next one as well, which then is missing; so is END_FOR (and POP_TOP) where FOR_ITER does it.
And an instruction may be seen twice: when its machine code falls through to another's, or when it is specialised and
dispatched again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from callscope.bytecode.interpreters import Version
from tests.builders.gdb_bytecode import Step, steps
from tests.builders.pythons import VERSIONS, bytecode, interpreter_of, name_of, program, rarely

needs_gdb = pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
CORPUS: dict[str, Version] = {"basic": (2, 7), "modern": (3, 6), "match": (3, 10), "groups": (3, 11)}
LONG: dict[str, Version] = {"flow": (3, 8)}
CASES = [
    pytest.param(
        name, version, marks=pytest.mark.long if name in LONG else rarely(version), id=f"{name}-{name_of(version)}"
    )
    for name, oldest in (CORPUS | LONG).items()
    for version in VERSIONS
    if version >= oldest
]
EXTENDED_ARG = {(2, 7): (145, -146)} | {(3, minor): (144,) for minor in range(6, 11)}

Place = tuple[str, int, int]
"""Name and first line of a code object, offset."""


def place_of(row: dict[str, Any]) -> Place:
    return row["code"], row["first_line"], row["offset"]


class Seen(NamedTuple):
    """A step: its place, the opcode whose machine code ran, and the byte that stood there (3.11 on)."""

    place: Place
    label: int
    byte: int


def seen(found: list[Step], version: Version) -> Iterator[Seen]:
    """What gdb saw. Up to 3.10 an instruction behind EXTENDED_ARG has the position of that one; and where the switch
    always leads to the label, it is no execution of its own.
    """
    unit = 3 if version < (3,) else 2
    copies = {one[:3] for one, two in pairwise(found) if one[3] < 0 and (one[:3] != two[:3] or two[3] < 0)}
    behind = 0
    last: Step | None = None
    for step, after in pairwise([*found, None]):
        assert step is not None
        name, line, offset, label, byte = step
        if last is not None and last[:3] == step[:3] and last[3] in EXTENDED_ARG.get(version, ()):
            behind += 1
        elif last is None or last[:3] != step[:3] or last[3] >= 0:
            behind = 0
        last = step
        if label >= 0 or after is None or step[:3] in copies or behind:
            yield Seen((name, line, offset + unit * behind), label, byte)


class Matcher:
    """Follows what gdb saw through the rows, allowing for what one instruction does of the next ones' work."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.places = [place_of(row) for row in rows]
        self._following = {one: two for one, two in pairwise(sorted(set(self.places))) if one[:2] == two[:2]}
        self._last: dict[tuple[str, int], tuple[int, int]] = {}
        """By code object: the row executed last, and how many behind it may have been done with it."""

    def take(self, at: int, specialised: bool) -> None:
        """Row `at` was executed."""
        self._last[self.places[at][:2]] = (at, 2 if specialised else 0)

    def done_before(self, at: int) -> bool:
        """Whether row `at` may be part of what was executed before it in its code object; it is taken then."""
        code = self.places[at][:2]
        last, room = self._last.get(code, (-1, 0))
        if last >= 0 and self.rows[last]["name"] == "FOR_ITER" and self.rows[at]["name"] == "END_FOR":
            self._last[code] = (at, int(self.rows[at + 1]["name"] == "POP_TOP"))
        elif room > 0 and self._following.get(self.places[last]) == self.places[at]:
            self._last[code] = (at, room - 1)
        else:
            return False
        return True


def differences(expected: list[Seen], rows: list[dict[str, Any]]) -> str:
    """Where the two part; empty when they do not. A generator's first part is left out of both: it is shown later."""
    made = {place_of(row)[:2]: row["offset"] for row in rows if row["name"] == "RETURN_GENERATOR"}
    expected = [step for step in expected if step.place[2] > made.get(step.place[:2], -1)]
    rows = [row for row in rows if row["offset"] > made.get(place_of(row)[:2], -1)]
    matcher = Matcher(rows)
    places = matcher.places
    at = places.index(expected[0].place)
    before: Seen | None = None
    for number, step in enumerate(expected):
        if before is not None and places[at : at + 1] != [step.place]:
            if step.place == before.place and (step.byte or step.label != before.label):
                if step.byte not in (0, rows[at - 1]["opcode"]):
                    matcher.take(at - 1, True)
                continue
            while at < len(rows) and places[at] != step.place and matcher.done_before(at):
                at += 1
        if at >= len(rows) or places[at] != step.place:
            shown = [f"{place_of(row)} {row['name']}" for row in rows[max(at - 4, 0) : at + 4]]
            return f"step {number} of {len(expected)}: {expected[max(number - 4, 0) : number + 4]}, but {shown}"
        matcher.take(at, step.byte not in (0, rows[at]["opcode"]))
        before = step
        at += 1
    left = [row["name"] for row in rows[at:]]
    return f"{left} are left" if len(left) > 12 else ""


def traced(directory: Path, version: Version, source: Path, *arguments: object) -> list[dict[str, Any]]:
    done = bytecode(
        directory, "--python", interpreter_of(version).path, "--format", "json", source, "trace.json", *arguments
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (directory / "trace.json").read_text().splitlines()]


@needs_gdb
@pytest.mark.parametrize(("name", "version"), CASES)
def test_executed_instructions(name: str, version: Version, tmp_path: Path) -> None:
    interpreter = interpreter_of(version)
    source = program(tmp_path, name)
    found = list(seen(steps(tmp_path, interpreter, source), version))
    assert len(found) > 50
    assert differences(found, traced(tmp_path, version, source)) == ""


@needs_gdb
@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS, ids=name_of)
def test_operands_of_two_bytes(version: Version, tmp_path: Path) -> None:
    source = program(tmp_path, "tables")
    source.write_text(source.read_text().replace("70000", "300" if version > (2, 7) else "400"))
    found = list(seen(steps(tmp_path, interpreter_of(version), source), version))
    rows = traced(tmp_path, version, source)
    assert differences(found, rows) == ""
    assert any((row["operand"] or 0) > 255 for row in rows)
    assert version == (2, 7) or any(row["name"] == "EXTENDED_ARG" for row in rows)


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS, ids=name_of)
def test_operands_of_three_bytes(version: Version, tmp_path: Path) -> None:
    """Straight code is executed in the order in which it stands; jumps skip it, or lead back."""
    rows = [row for row in traced(tmp_path, version, program(tmp_path, "tables")) if row["code"] == "big"]
    second = next(index for index, row in enumerate(rows) if index and row["offset"] == 0)
    straight, jumps = rows[:second], rows[second:]
    assert max(row["operand"] or 0 for row in straight) >= 69_999
    assert [row["offset"] for row in straight] == sorted({row["offset"] for row in straight})
    names = [row["name"] for row in straight]
    assert names.count("LOAD_CONST") + names.count("RETURN_CONST") >= 70_000 and names.count("STORE_FAST") == 70_000
    assert names.count("EXTENDED_ARG") >= (4465 if version == (2, 7) else 65_536 - 256 + 2 * 4464)
    # for i in range(3): 0 is passed over, 1 executes the whole table, 2 leads back to the loop
    assert [row["name"] for row in jumps].count("FOR_ITER") == 4
    assert sum(row["name"] == "STORE_FAST" for row in jumps) == 3 + 70_000
    back = [row for one, row in pairwise(jumps) if row["offset"] < one["offset"]]
    assert [row["name"] in ("FOR_ITER", "EXTENDED_ARG") for row in back] == [True] * 3
    assert max(row["operand"] or 0 for row in jumps) > 65_535
