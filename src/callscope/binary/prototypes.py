"""Prototypes of functions: what they are given and what they give back, in terms that a trace can be read with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VOID, INTEGER, UNSIGNED, BOOL, CHARACTER, FLOAT, COMPLEX = "void", "int", "unsigned", "bool", "char", "float", "complex"
POINTER, REFERENCE, ENUM, STRUCT, UNION, ARRAY, UNKNOWN = (
    "pointer",
    "reference",
    "enum",
    "struct",
    "union",
    "array",
    "?",
)
UNSIGNED_CHARACTER = "uchar"
CHARACTERS = (CHARACTER, UNSIGNED_CHARACTER)
TEXT, STRING, STRING_LIBCXX = "text", "string", "string-libcxx"
"""a pointer to characters; std::string of libstdc++, of libc++"""


@dataclass(frozen=True)
class Type:
    """A type. kind: one of the above. name: as in the source. size: bytes.

    target: of a pointer or reference, what it leads to, without members of its own; of an array its elements. members:
    of a struct or union. values: of an enumeration. count: elements of an array. by_reference: a class that is passed
    and returned in memory of the caller's (Itanium C++ ABI, 3.1.1). alignment: bytes; 0: that of its members.
    """

    kind: str
    name: str
    size: int = 0
    target: Type | None = None
    members: tuple[Member, ...] = ()
    values: tuple[tuple[int, str], ...] = ()
    count: int = 0
    by_reference: bool = False
    alignment: int = 0


@dataclass(frozen=True)
class Member:
    """A member of a struct: its offset in bytes; of a bit field, how many bits from which on."""

    name: str
    type: Type
    offset: int
    bit: int = 0
    bits: int = 0


@dataclass(frozen=True)
class Piece:
    """Where some bytes of a value lie as a function begins.

    source: CAPTURE_* of format/schema.toml: an integer register by number, CAPTURE_VECTOR + n, CAPTURE_STACK. offset:
    of the bytes on the stack, above the return address.
    """

    source: int
    bytes: int
    offset: int = 0


@dataclass(frozen=True)
class Parameter:
    """One parameter. pieces: where debug information says that it is; None: where the calling convention says.

    constant: the compiler knows its value, and passes none.
    """

    name: str
    type: Type
    pieces: tuple[Piece, ...] | None = None
    constant: int | None = None


@dataclass(frozen=True)
class Prototype:
    """A function's. is_clone: the compiler made this function of another and may have changed what is passed: only
    what debug information places is known.
    """

    name: str
    parameters: tuple[Parameter, ...]
    result: Type
    variadic: bool = False
    is_clone: bool = False


NOTHING = Type(VOID, "void")


def to_json(kind: Type) -> dict[str, Any]:
    """A type as JSON, without what is empty."""
    out: dict[str, Any] = {"kind": kind.kind, "name": kind.name, "size": kind.size}
    if kind.target is not None:
        out["target"] = to_json(kind.target)
    if kind.members:
        out["members"] = [
            {"name": m.name, "type": to_json(m.type), "offset": m.offset}
            | ({"bit": m.bit, "bits": m.bits} if m.bits else {})
            for m in kind.members
        ]
    if kind.values:
        out["values"] = [list(pair) for pair in kind.values]
    if kind.count:
        out["count"] = kind.count
    return out


def from_json(data: dict[str, Any]) -> Type:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
    target = data.get("target")
    return Type(
        str(data["kind"]),
        str(data["name"]),
        int(data["size"]),
        from_json(target) if target is not None else None,
        tuple(
            Member(str(m["name"]), from_json(m["type"]), int(m["offset"]), int(m.get("bit", 0)), int(m.get("bits", 0)))
            for m in data.get("members", ())
        ),
        tuple((int(value), str(name)) for value, name in data.get("values", ())),
        int(data.get("count", 0)),
    )
