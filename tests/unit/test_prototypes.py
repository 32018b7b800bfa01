"""Prototypes, their places by the calling conventions, and damaged debug information."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callscope import format as records
from callscope.binary import prototypes as proto
from callscope.binary.declarations import known_prototypes, parse_declarations
from callscope.binary.dwarf_types import read_prototypes
from callscope.binary.prototypes import Type
from callscope.errors import PlanError
from callscope.patching.abi import classify, parameter_places, result_place
from callscope.patching.capture import Capture, compile_capture
from callscope.reports.values import Layout, argument_list, render
from tests.builders.compilers import compile_program
from tests.builders.random_arguments import arguments_program

RDI, RSI, RDX, RCX, R8, R9, RAX = 7, 6, 2, 1, 8, 9, 0
XMM, STACK = records.CAPTURE_VECTOR, records.CAPTURE_STACK


def sources(declaration: str, windows: bool = False) -> list[list[tuple[int, int]]]:
    """(source, offset) of the pieces of each parameter of one declared function."""
    (prototype,) = parse_declarations(declaration, "test.h").values()
    places = parameter_places(prototype, windows)
    return [[(piece.source, piece.offset) for piece in place.pieces] if place else [] for place in places]


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("int f(int a, double b, long c);", [[(RDI, 0)], [(XMM, 0)], [(RSI, 0)]]),
        (
            "void f(int a, int b, int c, int d, int e, int f, int g, char h);",
            [[(n, 0)] for n in (RDI, RSI, RDX, RCX, R8, R9)] + [[(STACK, 0)], [(STACK, 8)]],
        ),
        ("struct big {long a[4];}; struct big f(int a);", [[(RSI, 0)]]),
        ("struct mixed {long a; double b;}; void f(struct mixed m, int n);", [[(RDI, 0), (XMM, 0)], [(RSI, 0)]]),
        ("struct three {float a, b, c;}; void f(struct three m);", [[(XMM, 0), (XMM + 1, 0)]]),
        ("void f(long double x, int n, long double y);", [[(STACK, 0)], [(RDI, 0)], [(STACK, 16)]]),
        ("struct two {long a, b;}; void f(int a,int b,int c,int d,int e, struct two m, int g);",
         [[(n, 0)] for n in (RDI, RSI, RDX, RCX, R8)] + [[(STACK, 0)], [(R9, 0)]]),
    ],
)  # fmt: skip
def test_places_of_the_system_v_abi(declaration: str, expected: list[list[tuple[int, int]]]) -> None:
    assert sources(declaration) == expected


def test_places_on_windows() -> None:
    assert sources("int f(int a, double b, long c, float d, int e, double f);", windows=True) == [
        [(RCX, 0)], [(XMM + 1, 0)], [(R8, 0)], [(XMM + 3, 0)], [(STACK, 32)], [(STACK, 40)],
    ]  # fmt: skip
    assert sources("struct big {long a[4];}; struct big f(struct big b);", windows=True) == [[(RDX, 0)]]


def test_results() -> None:
    def of(declaration: str) -> tuple[list[int], bool]:
        (prototype,) = parse_declarations(declaration, "test.h").values()
        place = result_place(prototype.result, False)
        assert place is not None
        return [piece.source for piece in place.pieces], place.by_reference

    assert of("int f(void);") == ([RAX], False)
    assert of("double f(void);") == ([XMM], False)
    assert of("long double f(void);") == ([records.CAPTURE_X87], False)
    assert of("struct p {long a; double b;}; struct p f(void);") == ([RAX, XMM], False)
    assert of("struct p {long a, b, c;}; struct p f(void);") == ([RAX], True)
    assert result_place(proto.NOTHING, False) is None


def test_a_packed_struct_is_in_memory() -> None:
    members = (
        proto.Member("c", Type(proto.CHARACTER, "char", 1), 0),
        proto.Member("n", Type(proto.INTEGER, "int", 4), 1),
    )
    assert classify(Type(proto.STRUCT, "packed", 5, members=members)) is None


def test_well_known_functions_are_declared_well() -> None:
    known = known_prototypes()
    assert len(known) > 140
    for prototype in known.values():
        capture = compile_capture(prototype, False)
        assert all("missing" not in parameter for parameter in capture.layout["parameters"]), prototype.name


@pytest.mark.parametrize("text", ["int f(", "struct", "int f(int", "}"])
def test_what_is_no_declaration_is_said_so(text: str) -> None:
    with pytest.raises(PlanError, match=r"x\.h is not a file of C declarations"):
        parse_declarations(text, "x.h")


def test_values() -> None:
    flags = Type(proto.ENUM, "E", 4, values=((1, "A"), (2, "B"), (8, "C")))
    assert render(flags, b"\x02\0\0\0") == ("B", "B")
    assert render(flags, b"\x0b\0\0\0")[0] == "A|B|C"
    assert render(flags, b"\x10\0\0\0")[0] == "16"
    assert render(Type(proto.FLOAT, "float", 4), b"\xcd\xcc\xcc\x3d")[0] == "0.1"
    assert (
        render(Type(proto.FLOAT, "long double", 16), bytes.fromhex("00a0 0000 0000 0000 ff3f".replace(" ", "")))[1] != 0
    )
    bits = proto.Member("b", Type(proto.INTEGER, "int", 4), 0, bit=3, bits=3)
    assert render(Type(proto.STRUCT, "S", 4, members=(bits,)), (0b111000).to_bytes(4, "little"))[0] == "{b=-1}"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("damaged")
    source = directory / "a.cpp"
    source.write_text(arguments_program(77, True, functions=6).source)
    return compile_program([source], directory / "a", ["-O1", "-g", "-w"]).read_bytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_debug_information_is_survived(data: st.DataObject, program: bytes, tmp_path: Path) -> None:
    from callscope.binary.debug_files import symbol_file

    sections = symbol_file(memoryview(program), None, "a")
    contents = [sections.contents(name) for name in (".debug_info", ".debug_abbrev", ".debug_loclists", ".debug_str")]
    damaged = bytearray(program)
    for part in contents:
        if part is None or not len(part):
            continue
        start = program.find(bytes(part))
        for _ in range(data.draw(st.integers(0, 6))):
            damaged[start + data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(bytes(damaged))
    for prototype in read_prototypes(path, 0, lambda rva: "f").values():
        capture = compile_capture(prototype, False)
        assert len(capture.record(0)) < 4096


@given(data=st.binary(max_size=200))
def test_damaged_captures_are_survived(data: bytes) -> None:
    (prototype,) = parse_declarations(
        "struct s {int a; double b[9];}; char *f(char *a, struct s b, float c);", "x.h"
    ).values()
    capture: Capture = compile_capture(prototype, False)
    import json

    layout = Layout(json.dumps(capture.layout))
    assert isinstance(argument_list(layout, data), str)
    layout.result(data)


@given(text=st.text(max_size=60))
def test_damaged_layouts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="damaged layout"):
        Layout(text)
