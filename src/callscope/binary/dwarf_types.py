"""Prototypes from DWARF: DWARF 5, chapters 3.3 (subroutines), 4.1 (parameters), 5 (types) and 2.6 (locations).

pyelftools parses the debugging entries; here is what they mean for a call.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.dwarf_expr import DWARFExprParser
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
from elftools.dwarf.locationlists import LocationExpr, LocationParser
from elftools.elf.elffile import ELFFile

from callscope.binary import prototypes as proto
from callscope.binary.pe import read_pe
from callscope.binary.pe_tables import named_sections
from callscope.binary.prototypes import Member, Parameter, Piece, Prototype, Type
from callscope.errors import ImageError
from callscope.format import CAPTURE_STACK, CAPTURE_VECTOR

MOST_NESTING = 6
MOST_MEMBERS = 64
MOST_PARAMETERS = 64
MOST_ENUMERATORS = 1024
# System V ABI for x86-64, figure 3.36: DWARF's register numbers -> the processor's.
_INTEGER = (0, 2, 1, 3, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15)
_FIRST_VECTOR, _VECTORS = 17, 8
_CLONE = re.compile(r"\.(isra|constprop|part|llvm|specialized)\b")
_SIGNED, _UNSIGNED, _BOOLEAN, _FLOAT, _COMPLEX, _CHARS, _UNSIGNED_CHARS = (
    {0x05, 0x0D},
    {0x07, 0x0B},
    {0x02},
    {0x04},
    {0x03},
    {0x06},
    {0x08, 0x10},
)
_CALL_FRAME_CFA = 0x9C
_PASS_BY_REFERENCE, _PASS_BY_VALUE = 4, 5
_TRANSPARENT = {
    "DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type", "DW_TAG_atomic_type",
    "DW_TAG_immutable_type",
}  # fmt: skip
_QUALIFIERS: dict[str, str] = {"DW_TAG_const_type": "const ", "DW_TAG_volatile_type": "volatile "}
_DWARF_SECTIONS = """
    debug_info debug_aranges debug_abbrev debug_frame eh_frame debug_str debug_loc debug_ranges debug_line
    debug_pubtypes debug_pubnames debug_addr debug_str_offsets debug_line_str debug_loclists debug_rnglists debug_sup
    gnu_debugaltlink debug_types
""".split()  # noqa: SIM905
FAILURES = (DWARFError, ELFError, ValueError, KeyError, IndexError, AttributeError, AssertionError, OverflowError,
             TypeError, RecursionError, UnicodeDecodeError, ImageError)  # fmt: skip
"""what damaged DWARF makes pyelftools raise"""


def read_prototypes(path: Path, low: int, wanted: Callable[[int], str | None]) -> dict[int, Prototype]:
    """The prototypes of the functions of the ELF or PE file at `path` by relative address.

    `low`: the address that relative ones count from. `wanted`: the symbol of the function at a relative address, None
    where it is not asked for. What is damaged is left out.
    """
    found: dict[int, Prototype] = {}
    with path.open("rb") as file:
        try:
            dwarf = _dwarf_of_pe(path) if file.read(2) == b"MZ" else _dwarf_of_elf(file)
            if dwarf is None:
                return found
            reader = _Reader(dwarf)
            for unit in dwarf.iter_CUs():
                for address, prototype in reader.functions(unit, low, wanted):
                    found.setdefault(address, prototype)
        except FAILURES:
            return found
    return found


def _dwarf_of_elf(file: BinaryIO) -> Any:
    elf = ELFFile(file)
    return elf.get_dwarf_info(follow_links=False) if elf.has_dwarf_info() else None


def _dwarf_of_pe(path: Path) -> Any:
    """The DWARF that GCC leaves in Windows programs."""
    image = read_pe(path)
    sections = named_sections(image.data, image.tables)
    if ".debug_info" not in sections:
        return None
    return dwarf_of_sections(sections)


def dwarf_of_sections(sections: Mapping[str, bytes | memoryview]) -> DWARFInfo:
    """DWARF in sections by their names, unpacked."""
    given: dict[str, Any] = {}
    for name in _DWARF_SECTIONS:
        data = sections.get(f".{name}")
        described = None
        if data is not None:
            described = DebugSectionDescriptor(io.BytesIO(bytes(data)), f".{name}", 0, len(data), 0)
        given[f"{name}_sec"] = described
    return DWARFInfo(config=DwarfConfig(True, "x64", 8), **given)


class _Reader:
    def __init__(self, dwarf: Any) -> None:
        self._locations = LocationParser(dwarf.location_lists())
        self._dwarf = dwarf
        self._types: dict[tuple[int, int], Type] = {}

    def functions(self, unit: Any, low: int, wanted: Callable[[int], str | None]) -> Iterator[tuple[int, Prototype]]:
        """(relative address, prototype) of the functions of a compilation unit."""
        expressions = DWARFExprParser(unit.structs)
        for die in unit.iter_DIEs():
            if die.tag != "DW_TAG_subprogram":
                continue
            try:
                entry = self._entry(unit, die)
                if entry is None or (symbol := wanted(entry - low)) is None:
                    continue
                yield entry - low, self._prototype(unit, die, entry, symbol, expressions)
            except FAILURES:
                continue

    def _entry(self, unit: Any, die: Any) -> int | None:
        """The address of a function's first instruction; None where it has none of its own."""
        attributes = die.attributes
        if "DW_AT_low_pc" in attributes:
            return int(attributes["DW_AT_low_pc"].value)
        if "DW_AT_ranges" in attributes:
            ranges = self._dwarf.range_lists()
            value = attributes["DW_AT_ranges"].value
            listed = ranges.get_range_list_at_offset(value, cu=unit) if ranges is not None else []
            top = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
            base = int(top.value) if top is not None else 0
            for item in listed:
                if hasattr(item, "begin_offset"):
                    return int(item.begin_offset) + (0 if getattr(item, "is_absolute", False) else base)
                base = int(item.base_address)
        return None

    def _prototype(self, unit: Any, die: Any, entry: int, symbol: str, expressions: Any) -> Prototype:
        origin = _origin(die)
        parameters: list[Parameter] = []
        variadic = False
        for child in die.iter_children():
            if child.tag == "DW_TAG_formal_parameter" and len(parameters) < MOST_PARAMETERS:
                parameters.append(self._parameter(unit, child, entry, expressions))
            elif child.tag == "DW_TAG_unspecified_parameters":
                variadic = True
        variadic |= any(child.tag == "DW_TAG_unspecified_parameters" for child in origin.iter_children())
        name = _attribute(die, "DW_AT_name")
        result = self._type_of(die)
        return Prototype(
            name.value.decode("utf-8", "replace") if name is not None else symbol,
            tuple(parameters),
            result,
            variadic,
            bool(_CLONE.search(symbol)),
        )

    def _parameter(self, unit: Any, die: Any, entry: int, expressions: Any) -> Parameter:
        name = _attribute(die, "DW_AT_name")
        text = name.value.decode("utf-8", "replace") if name is not None else ""
        pieces, constant = None, None
        kind = self._type_of(die)
        if "DW_AT_const_value" in die.attributes:
            value = die.attributes["DW_AT_const_value"].value
            constant = value if isinstance(value, int) else None
        elif "DW_AT_location" in die.attributes:
            pieces, constant = self._place(unit, die, entry, expressions, kind.size)
        return Parameter(text, kind, pieces, constant)

    def _place(
        self, unit: Any, die: Any, entry: int, expressions: Any, size: int
    ) -> tuple[tuple[Piece, ...] | None, int | None]:
        """Where a value is at a function's first instruction, or the constant it is; nothing where that is not said."""
        attribute, version = die.attributes["DW_AT_location"], unit["version"]
        if not self._locations.attribute_has_location(attribute, version):
            return None, None
        parsed: Any = self._locations.parse_from_attribute(attribute, version, die)
        if isinstance(parsed, LocationExpr):
            expression = parsed.loc_expr
        else:
            top = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
            base = int(top.value) if top is not None else 0
            expression = None
            for item in parsed:
                if not hasattr(item, "begin_offset"):
                    base = int(getattr(item, "base_address", base))
                    continue
                start = int(item.begin_offset) + (0 if getattr(item, "is_absolute", False) else base)
                end = int(item.end_offset) + (0 if getattr(item, "is_absolute", False) else base)
                if start <= entry < end:
                    expression = item.loc_expr
                    break
            if expression is None:
                return None, None
        frame = die.get_parent().attributes.get("DW_AT_frame_base")
        is_from_cfa = frame is not None and list(frame.value) == [_CALL_FRAME_CFA]
        return _pieces(expressions.parse_expr(expression), size, is_from_cfa)

    def _type_of(self, die: Any, depth: int = 0) -> Type:
        holder = die
        for _ in range(4):
            if "DW_AT_type" in holder.attributes:
                return self._type(holder.get_DIE_from_attribute("DW_AT_type"), depth)
            following = _next(holder)
            if following is None:
                return proto.NOTHING
            holder = following
        return proto.NOTHING

    def _type(self, die: Any, depth: int) -> Type:
        key = (die.offset, min(depth, MOST_NESTING))
        known = self._types.get(key)
        if known is None:
            known = self._types[key] = self._read_type(die, depth)
        return known

    def _read_type(self, die: Any, depth: int) -> Type:
        name = _text(die)
        tag = die.tag
        size = _number(die, "DW_AT_byte_size")
        if depth > MOST_NESTING * 4:
            return Type(proto.UNKNOWN, name, size)
        if tag in _TRANSPARENT:
            inner = self._type_of(die, depth + 1)
            # Of a pointer, `const` says that it stays itself, which a value does not show.
            shown = name or ("" if inner.kind == proto.POINTER else _QUALIFIERS.get(tag, "")) + inner.name
            shown = "std::string" if name == "string" and inner.kind in (proto.STRING, proto.STRING_LIBCXX) else shown
            return _renamed(inner, shown)
        if tag == "DW_TAG_base_type":
            return Type(_base_kind(_number(die, "DW_AT_encoding")), name, size)
        if tag in ("DW_TAG_pointer_type", "DW_TAG_reference_type", "DW_TAG_rvalue_reference_type"):
            sign = {"DW_TAG_pointer_type": "*", "DW_TAG_reference_type": "&"}.get(tag, "&&")
            target = self._target(die, depth + 1)
            if sign == "*" and target.kind in proto.CHARACTERS and target.size == 1:
                return Type(proto.TEXT, f"{target.name}*", 8)
            return Type(proto.POINTER if sign == "*" else proto.REFERENCE, f"{target.name}{sign}", 8, target)
        if tag == "DW_TAG_ptr_to_member_type":
            whole = _number(die, "DW_AT_byte_size") or (16 if self._is_routine(die) else 8)
            members = tuple(Member(n, Type(proto.INTEGER, "long", 8), o) for n, o in (("ptr", 0), ("adj", 8)))
            return Type(proto.STRUCT, name or "pointer to member", whole, members=members[: whole // 8])
        if tag == "DW_TAG_unspecified_type":
            return Type(proto.POINTER, name or "decltype(nullptr)", 8, proto.NOTHING)
        if tag == "DW_TAG_enumeration_type":
            values = [
                (int(_number(child, "DW_AT_const_value")), _text(child))
                for child in die.iter_children()
                if child.tag == "DW_TAG_enumerator"
            ]
            return Type(proto.ENUM, name, size, values=tuple(values[:MOST_ENUMERATORS]))
        if tag == "DW_TAG_array_type":
            return self._array(die, depth)
        if tag in ("DW_TAG_structure_type", "DW_TAG_class_type", "DW_TAG_union_type"):
            return self._record(die, name, size, depth)
        if tag == "DW_TAG_subroutine_type":
            return Type(proto.VOID, "function")
        return Type(proto.UNKNOWN, name or tag, size)

    def _is_routine(self, die: Any) -> bool:
        return (
            "DW_AT_type" in die.attributes and die.get_DIE_from_attribute("DW_AT_type").tag == "DW_TAG_subroutine_type"
        )

    def _target(self, die: Any, depth: int) -> Type:
        """What a pointer leads to: its name and size, and members only where they make a string of it."""
        target = self._type_of(die, max(depth, MOST_NESTING))
        return target if target.kind not in (proto.STRUCT, proto.UNION) else Type(target.kind, target.name, target.size)

    def _array(self, die: Any, depth: int) -> Type:
        element = self._type_of(die, depth + 1)
        count = 1
        for child in die.iter_children():
            if child.tag == "DW_TAG_subrange_type":
                upper = child.attributes.get("DW_AT_upper_bound")
                number = child.attributes.get("DW_AT_count")
                if number is not None and isinstance(number.value, int):
                    count *= number.value
                elif upper is not None and isinstance(upper.value, int):
                    count *= upper.value + 1
                else:
                    count = 0
        vector = "DW_AT_GNU_vector" in die.attributes
        kind = proto.FLOAT if vector and element.kind == proto.FLOAT else proto.ARRAY
        name = f"{element.name}[{count}]"
        if vector:
            return Type("vector", name, element.size * count, element, count=count)
        return Type(kind, name, element.size * count, element, count=count)

    def _record(self, die: Any, name: str, size: int, depth: int) -> Type:
        kind = proto.UNION if die.tag == "DW_TAG_union_type" else proto.STRUCT
        if name.startswith("basic_string<char,") and size:
            library = _scope(die)
            if "__cxx11" in library:
                return Type(proto.STRING, "std::string", size, by_reference=True)
            if "__1" in library or "__ndk1" in library:
                return Type(proto.STRING_LIBCXX, "std::string", size, by_reference=True)
        convention = _number(die, "DW_AT_calling_convention")
        by_reference = convention == _PASS_BY_REFERENCE
        members: list[Member] = []
        if depth < MOST_NESTING or size <= 16:
            for child in die.iter_children():
                if child.tag == "DW_TAG_inheritance" and "DW_AT_virtuality" in child.attributes:
                    by_reference = True
                if child.tag not in ("DW_TAG_member", "DW_TAG_inheritance") or len(members) >= MOST_MEMBERS:
                    by_reference |= convention != _PASS_BY_VALUE and _makes_nontrivial(child, name)
                    continue
                if "DW_AT_external" in child.attributes or "DW_AT_declaration" in child.attributes:
                    continue  # static
                members.append(self._member(child, depth))
        by_reference |= convention != _PASS_BY_VALUE and any(m.type.by_reference for m in members)
        return Type(kind, name or f"{kind} {{...}}", size, members=tuple(members), by_reference=by_reference,
                    alignment=_number(die, "DW_AT_alignment"))  # fmt: skip

    def _member(self, die: Any, depth: int) -> Member:
        kind = self._type_of(die, depth + 1)
        offset = die.attributes.get("DW_AT_data_member_location")
        where = offset.value if offset is not None and isinstance(offset.value, int) else 0
        bits = _number(die, "DW_AT_bit_size")
        name = _text(die) or kind.name
        if not bits:
            return Member(name, kind, where)
        first = _number(die, "DW_AT_data_bit_offset")
        if "DW_AT_bit_offset" in die.attributes:  # DWARF 3: counted from the other end of the storage unit
            unit = _number(die, "DW_AT_byte_size") or kind.size
            first = where * 8 + unit * 8 - bits - _number(die, "DW_AT_bit_offset")
        return Member(name, kind, first // 8, first % 8, bits)


def _pieces(operations: list[Any], size: int, is_from_cfa: bool) -> tuple[tuple[Piece, ...] | None, int | None]:
    """The registers or stack bytes that a location expression names, or the constant that it is.

    is_from_cfa: the frame base is the canonical frame address, and not a register that is set up later.
    """
    pieces: list[Piece] = []
    pending: Piece | None = None
    for number, operation in enumerate(operations):
        name, arguments = operation.op_name, operation.args
        if re.fullmatch(r"DW_OP_reg(\d+|x)", name):
            register = arguments[0] if name == "DW_OP_regx" else int(name[9:])
            pending = _register(register, size)
            if pending is None:
                return None, None
        elif name == "DW_OP_fbreg" and is_from_cfa and arguments[0] >= 0:
            pending = Piece(CAPTURE_STACK, size, arguments[0])
        elif name == "DW_OP_piece":
            if pending is None:
                return None, None
            pieces.append(Piece(pending.source, arguments[0], pending.offset))
            pending = None
        elif name.startswith("DW_OP_lit") or re.match(r"DW_OP_const", name):
            following = operations[number + 1].op_name if number + 1 < len(operations) else ""
            if number == 0 and following == "DW_OP_stack_value":
                return None, int(name[9:]) if name.startswith("DW_OP_lit") else int(arguments[0])
            return None, None
        else:
            return None, None
    if pending is not None:
        pieces.append(pending)
    return (tuple(pieces), None) if pieces else (None, None)


def _register(number: int, size: int) -> Piece | None:
    if 0 <= number < len(_INTEGER):
        return Piece(_INTEGER[number], min(size, 8) or 8)
    if _FIRST_VECTOR <= number < _FIRST_VECTOR + _VECTORS:
        return Piece(CAPTURE_VECTOR + number - _FIRST_VECTOR, min(size, 16) or 8)
    return None


def _base_kind(encoding: int) -> str:
    for kinds, kind in (
        (_CHARS, proto.CHARACTER), (_UNSIGNED_CHARS, proto.UNSIGNED_CHARACTER),
        (_SIGNED, proto.INTEGER), (_UNSIGNED, proto.UNSIGNED), (_BOOLEAN, proto.BOOL),
        (_FLOAT, proto.FLOAT), (_COMPLEX, proto.COMPLEX),
    ):  # fmt: skip
        if encoding in kinds:
            return kind
    return proto.UNKNOWN


def _makes_nontrivial(child: Any, class_name: str) -> bool:
    """Whether a member function makes its class one that is passed by reference: a destructor or a copy or move
    constructor of its own, or anything virtual.
    """
    if child.tag != "DW_TAG_subprogram" or "DW_AT_deleted" in child.attributes:
        return False
    if "DW_AT_virtuality" in child.attributes:
        return True
    name = _text(child)
    if "DW_AT_artificial" in child.attributes or "DW_AT_defaulted" in child.attributes:
        return False
    return name.startswith("~")


def _renamed(kind: Type, name: str) -> Type:
    return Type(
        kind.kind,
        name,
        kind.size,
        kind.target,
        kind.members,
        kind.values,
        kind.count,
        kind.by_reference,
        kind.alignment,
    )


def _next(die: Any) -> Any:
    for name in ("DW_AT_abstract_origin", "DW_AT_specification"):
        if name in die.attributes:
            return die.get_DIE_from_attribute(name)
    return None


def _origin(die: Any) -> Any:
    for _ in range(4):
        following = _next(die)
        if following is None:
            break
        die = following
    return die


def _attribute(die: Any, name: str) -> Any:
    for _ in range(4):
        if name in die.attributes:
            return die.attributes[name]
        following = _next(die)
        if following is None:
            return None
        die = following
    return None


def _text(die: Any) -> str:
    attribute = _attribute(die, "DW_AT_name")
    value = attribute.value if attribute is not None else b""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _number(die: Any, name: str) -> int:
    attribute = die.attributes.get(name)
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else 0


def _scope(die: Any) -> str:
    """The namespaces around an entry, outermost last."""
    names = []
    parent = die.get_parent()
    while parent is not None and parent.tag == "DW_TAG_namespace":
        names.append(_text(parent))
        parent = parent.get_parent()
    return " ".join(names)
