"""Prototypes from C declarations: a header that a user gives, and the well-known functions of C libraries.

pycparser parses; here are the types' sizes in the System V ABI for x86-64, figure 3.1.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pycparser import c_ast
from pycparser.c_parser import CParser, ParseError

from callscope.binary import prototypes as proto
from callscope.binary.prototypes import Member, Parameter, Prototype, Type
from callscope.errors import PlanError

_SIZES = {"char": 1, "short": 2, "int": 4, "long": 8, "long long": 8, "float": 4, "double": 8, "long double": 16}
# Names that headers use without defining them here.
_TYPEDEFS = """
typedef unsigned long size_t; typedef long ssize_t; typedef long ptrdiff_t; typedef long intptr_t;
typedef unsigned long uintptr_t; typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t;
typedef unsigned short uint16_t; typedef int int32_t; typedef unsigned int uint32_t; typedef long int64_t;
typedef unsigned long uint64_t; typedef int pid_t; typedef unsigned int uid_t; typedef unsigned int gid_t;
typedef unsigned int mode_t; typedef long off_t; typedef long time_t; typedef int clockid_t;
typedef unsigned int socklen_t;
typedef unsigned long pthread_t; typedef struct FILE FILE; typedef struct DIR DIR; typedef char *va_list;
typedef _Bool bool; typedef int wchar_t; typedef unsigned long nfds_t; typedef unsigned long sigset_t;
"""
_NOISE = re.compile(
    r"//[^\n]*|/\*.*?\*/|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*|__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)|__extension__"
    r"|__asm__\s*\([^()]*\)|\b(?:__restrict|restrict|__inline|inline|_Noreturn|__THROW|__wur)\b",
    re.DOTALL | re.MULTILINE,
)
_MOST_BYTES = 1 << 22


def read_declarations(path: Path) -> dict[str, Prototype]:
    """Name -> prototype of every function that a file of C declarations declares.

    Preprocessor lines are ignored, as are attributes. Raises PlanError for what is no C.
    """
    try:
        text = path.read_bytes()[:_MOST_BYTES].decode("utf-8", "replace")
    except OSError as error:
        raise PlanError(f"cannot read the prototypes in {path}: {error.strerror}") from None
    return parse_declarations(text, str(path))


@cache
def known_prototypes() -> dict[str, Prototype]:
    """Those of functions that C libraries for Linux have."""
    return parse_declarations((files("callscope") / "data/libc.h").read_text(), "libc.h")


def parse_declarations(text: str, name: str) -> dict[str, Prototype]:
    """The prototypes in C text; `name` is for messages. Raises PlanError."""
    plain = _NOISE.sub(lambda match: "\n" * match[0].count("\n"), text)
    plain = re.sub(r'extern\s+"C"\s*\{?', "", plain)
    try:
        tree = CParser().parse(f'{_TYPEDEFS}#line 1 "{name}"\n{plain}', name)
    except (ParseError, RecursionError, AssertionError, AttributeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or "nested too deeply"
        raise PlanError(f"{name} is not a file of C declarations ({reason}): give plain declarations") from None
    return _Reader().read(tree)


class _Reader:
    def __init__(self) -> None:
        self._typedefs: dict[str, Type] = {}
        self._tags: dict[str, Type] = {}

    def read(self, tree: Any) -> dict[str, Prototype]:
        found: dict[str, Prototype] = {}
        for item in tree.ext:
            declared = item.decl if isinstance(item, c_ast.FuncDef) else item
            if isinstance(declared, c_ast.Typedef):
                self._typedefs[declared.name] = _named(self._type(declared.type), declared.name)
            elif isinstance(declared, c_ast.Decl) and isinstance(declared.type, c_ast.FuncDecl):
                found[declared.name] = self._prototype(declared.name, declared.type)
            elif isinstance(declared, c_ast.Decl):
                self._type(declared.type)
        return found

    def _prototype(self, name: str, function: Any) -> Prototype:
        parameters = []
        variadic = False
        for number, item in enumerate(function.args.params if function.args is not None else ()):
            if isinstance(item, c_ast.EllipsisParam):
                variadic = True
                continue
            kind = self._type(item.type)
            if kind.kind == proto.VOID:
                continue
            if kind.kind == proto.ARRAY and kind.target is not None:
                kind = _pointer(kind.target)
            parameters.append(Parameter(getattr(item, "name", None) or f"arg{number}", kind))
        return Prototype(name, tuple(parameters), self._type(function.type), variadic)

    def _type(self, node: Any) -> Type:
        if isinstance(node, c_ast.PtrDecl):
            return _pointer(self._type(node.type))
        if isinstance(node, c_ast.ArrayDecl):
            element = self._type(node.type)
            count = _constant(node.dim)
            return Type(proto.ARRAY, f"{element.name}[{count}]", element.size * count, element, count=count)
        if isinstance(node, c_ast.FuncDecl):
            return Type(proto.VOID, "function")
        if isinstance(node, c_ast.TypeDecl):
            inner = self._type(node.type)
            return _named(inner, f"const {inner.name}") if "const" in node.quals else inner
        if isinstance(node, c_ast.IdentifierType):
            return self._identifier(node.names)
        if isinstance(node, c_ast.Enum):
            return self._enumeration(node)
        if isinstance(node, (c_ast.Struct, c_ast.Union)):
            return self._record(node)
        return Type(proto.UNKNOWN, "?")

    def _identifier(self, names: list[str]) -> Type:
        shown = " ".join(names)
        if len(names) == 1 and names[0] in self._typedefs:
            return self._typedefs[names[0]]
        if shown == "void":
            return proto.NOTHING
        if shown in ("_Bool", "bool"):
            return Type(proto.BOOL, "bool", 1)
        words = [word for word in names if word not in ("signed", "unsigned")]
        if "int" in words and len(words) > 1:
            words.remove("int")
        base = " ".join(sorted(words, key=lambda word: word != "long")) or "int"
        size = _SIZES.get(base)
        if size is None:
            return Type(proto.UNKNOWN, shown)
        if base in ("float", "double", "long double"):
            return Type(proto.FLOAT, shown, size)
        if base == "char":
            return Type(proto.UNSIGNED_CHARACTER if "unsigned" in names else proto.CHARACTER, shown, 1)
        return Type(proto.UNSIGNED if "unsigned" in names else proto.INTEGER, shown, size)

    def _enumeration(self, node: Any) -> Type:
        key = f"enum {node.name}"
        if node.values is None:
            return self._tags.get(key) or Type(proto.ENUM, key, 4)
        values, following = [], 0
        for item in node.values.enumerators:
            following = _constant(item.value) if item.value is not None else following
            values.append((following, item.name))
            following += 1
        kind = Type(proto.ENUM, key if node.name else "enum", 4, values=tuple(values))
        if node.name:
            self._tags[key] = kind
        return kind

    def _record(self, node: Any) -> Type:
        is_union = isinstance(node, c_ast.Union)
        word = "union" if is_union else "struct"
        key = f"{word} {node.name}"
        kind = proto.UNION if is_union else proto.STRUCT
        if node.decls is None:
            return self._tags.get(key) or Type(kind, key)
        members, offset, widest = [], 0, 1
        for item in node.decls:
            member = self._type(item.type)
            alignment = _alignment(member)
            widest = max(widest, alignment)
            at = 0 if is_union else -(-offset // alignment) * alignment
            members.append(Member(getattr(item, "name", None) or "", member, at))
            offset = max(offset, at + member.size)
        made = Type(kind, key if node.name else word, -(-offset // widest) * widest, members=tuple(members))
        if node.name:
            self._tags[key] = made
        return made


def _alignment(kind: Type) -> int:
    if kind.members:
        return max(_alignment(member.type) for member in kind.members)
    if kind.target is not None and kind.kind == proto.ARRAY:
        return _alignment(kind.target)
    return max(kind.size, 1)


def _pointer(target: Type) -> Type:
    if target.kind in proto.CHARACTERS:
        return Type(proto.TEXT, f"{target.name}*", 8)
    return Type(proto.POINTER, f"{target.name}*", 8, Type(target.kind, target.name, target.size))


def _named(kind: Type, name: str) -> Type:
    return Type(kind.kind, name, kind.size, kind.target, kind.members, kind.values, kind.count)


def _constant(node: Any) -> int:
    """The value of a constant expression, as far as it is a number; else 0."""
    if isinstance(node, c_ast.UnaryOp) and node.op == "-":
        return -_constant(node.expr)
    if isinstance(node, c_ast.Constant):
        try:
            return min(int(node.value.rstrip("uUlL"), 0), 1 << 20)
        except ValueError:
            return 0
    return 0
