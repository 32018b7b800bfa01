"""Random programs that log their own arguments and results: what `record --args` must show of every call."""

from __future__ import annotations

import random
from dataclasses import dataclass

SCALARS = (
    "bool", "char", "signed char", "unsigned char", "short", "unsigned short", "int", "unsigned", "long",
    "unsigned long", "long long", "float", "double", "long double", "Colour", "Wide", "int *", "const char *",
)  # fmt: skip
STRUCTS = {
    "Pair": (("int", "a"), ("int", "b")),
    "Mixed": (("long", "n"), ("double", "x")),
    "Floats": (("float", "x"), ("float", "y"), ("float", "z")),
    "Doubles": (("double", "x"), ("double", "y")),
    "Small": (("char", "c"), ("short", "s")),
    "Triple": (("long", "a"), ("long", "b"), ("long", "c")),
    "FloatInt": (("float", "f"), ("int", "i"), ("float", "g")),
}
CPP_ONLY = ("std::string", "const std::string &", "const int &", "Guarded")
_C_NAMES = {"bool": "bool", "Colour": "enum Colour", "Wide": "enum Wide"}
CALLS = 10_000


@dataclass(frozen=True)
class Program:
    """Source text, and the names of the functions it calls, CALLS times in all and more."""

    source: str
    functions: tuple[str, ...]
    is_cpp: bool


def arguments_program(seed: int, is_cpp: bool, functions: int = 40) -> Program:
    """A program of functions with random signatures. Each writes a line `NAME ARGUMENTS = RESULT` per call to the file
    argv[1], in the form of tests/builders/argument_log.h, and calls nothing that is logged.
    """
    dice = random.Random(seed)
    kinds = [*SCALARS, *STRUCTS, *(CPP_ONLY if is_cpp else ())]
    lines = ['#include "argument_log.h"', ""]
    names, calls = [], []
    for number in range(functions):
        name = f"f{number}"
        names.append(name)
        count = dice.choice((0, 1, 2, 2, 3, 4, 6, 8, 12))
        parameters = [dice.choice(kinds) for _ in range(count)]
        result = dice.choice(["void", *(kind for kind in kinds if "&" not in kind)])
        is_method = is_cpp and dice.random() < 0.2
        variadic = not is_method and count > 0 and dice.random() < 0.1 and parameters[-1] in ("int", "double", "long")
        lines += _function(name, parameters, result, is_cpp, is_method, variadic)
        calls.append(_call(name, parameters, result, is_cpp, is_method, variadic))
    lines += ["int main(int count, char **arguments) {", "    log_open(count > 1 ? arguments[1] : 0);"]
    lines.append(f"    for (int round = 0; round < {CALLS // functions + 1}; round++) {{")
    lines += calls
    lines += ["    }", "    log_close();", "    return 0;", "}", ""]
    return Program("\n".join(lines), tuple(names), is_cpp)


def _type(kind: str, is_cpp: bool) -> str:
    if kind in STRUCTS and not is_cpp:
        return f"struct {kind}"
    return kind if is_cpp else _C_NAMES.get(kind, kind)


def _declare(kind: str, name: str, is_cpp: bool) -> str:
    text = _type(kind, is_cpp)
    return f"{text}{name}" if text.endswith(("*", "&")) else f"{text} {name}"


def _tag(kind: str) -> str:
    """The name of a type in functions of argument_log.h."""
    return (
        kind.replace("const std::string &", "string_reference").replace("const int &", "int_reference")
        .replace("std::string", "string").replace("const char *", "text").replace("int *", "pointer").replace(" ", "_")
    )  # fmt: skip


def _function(
    name: str, parameters: list[str], result: str, is_cpp: bool, is_method: bool, variadic: bool
) -> list[str]:
    declared = ", ".join(_declare(kind, f"p{i}", is_cpp) for i, kind in enumerate(parameters))
    if variadic:
        declared += ", ..."
    head = f"{_type(result, is_cpp)}{'' if result.endswith('*') else ' '}"
    body = [f'    log_begin("{name}");']
    if is_method:
        body.append('    log_pointer("this", (int *)this);')
    body += [f'    log_{_tag(kind)}("p{i}", p{i});' for i, kind in enumerate(parameters)]
    if result == "void":
        body.append("    log_end();")
    else:
        body += [f"    {_declare(result, 'result', is_cpp)} = make_{_tag(result)}();", "    log_result();",
                 f'    log_{_tag(result)}("", result);', "    log_end();", "    return result;"]  # fmt: skip
    if is_method:
        inner = [f"    {line}" for line in body]
        return [
            f"struct Holder_{name} {{",
            "    int field;",
            f"    NOINLINE {head}{name}({declared}) {{",
            *inner,
            "    }",
            "};",
            "",
        ]
    return [f"NOINLINE {head}{name}({declared or ('' if is_cpp else 'void')}) {{", *body, "}", ""]


def _call(name: str, parameters: list[str], result: str, is_cpp: bool, is_method: bool, variadic: bool) -> str:
    given = ", ".join(f"make_{_tag(kind)}()" for kind in parameters) + (", 1, 2.5" if variadic else "")
    use = "" if result == "void" else "keep("
    end = "" if result == "void" else ")"
    if is_method:
        return f"        {{ Holder_{name} holder; holder.field = round; {use}holder.{name}({given}){end}; }}"
    return f"        {use}{name}({given}){end};"
