"""Writes a random C++ program that logs the true parent of every call: the judge of rebuilt call trees.

    python -m tests.builders.random_program SEED > program.cpp

The same seed gives the same text. A program run as `program TRUTH [LIMIT]` makes about LIMIT calls and appends its log
to the file TRUTH (tests/builders/truth.py reads it); what it prints depends on the seed and LIMIT alone, not on the
compiler. tests/targets/random_runtime.h explains how calls are logged without disturbing tail calls.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tests.builders.random_statements import (
    BIG,
    DOUBLE,
    LEFT,
    LONG,
    MANY,
    RIGHT,
    VARIADIC,
    VOID,
    Function,
    Statements,
    indent,
)  # fmt: skip

FIXED = (
    *("main", "top", "thread_root", "guard_gone", "error_gone", "on_signal", "s_root", "s_step", "co_root", "co_step"),
    *("at_exit_call", "constructor_call", "deep", "even", "odd", "s_jump"),
)
SIGNAL_FUNCTIONS = frozenset({"s_root", "s_step", "s_jump"})
FRESH_STACK_FUNCTIONS = frozenset({"on_signal", "s_root", "co_root"})
COROUTINE_FUNCTIONS = frozenset({"co_root", "co_step"})
UNTRACED_TAIL_FUNCTIONS = frozenset({"sorts"})

SIGNATURES = {
    VOID: "void {}(int par, int d)",
    LONG: "long {}(int par, int d)",
    MANY: "int {}(int par, int d, int a, int b, long c, int e, int g, long h, short i)",
    DOUBLE: "double {}(double u, int par, float v, int d, double w)",
    BIG: "Big {}(Big b, int d, long c)",
    VARIADIC: "long {}(int par, int d, int count, ...)",
}
STARTS = {
    VOID: "d * 3",
    LONG: "d * 5",
    MANY: "a + 2 * b + 3 * c + 4 * e + 5 * g + 6 * h + 7 * i",
    DOUBLE: "(long)(u + v * 2 + w * 3)",
    BIG: "b.a[0] + b.a[4] * 2 + c",
    VARIADIC: "count",
    LEFT: "d + bias",
    RIGHT: "d * 2 + bias",
}
RESULTS = {
    VOID: "",
    LONG: " x",
    MANY: " (int)(x & 0xffff)",
    DOUBLE: " (double)(x & 0xffffff)",
    BIG: " b",
    VARIADIC: " x",
    LEFT: " x",
    RIGHT: " x",
}


@dataclass(frozen=True)
class Program:
    """A generated program: its text, and the names of its logged functions in the order of their numbers."""

    seed: int
    source: str
    names: tuple[str, ...]
    tiny: frozenset[str]
    """Functions of a few bytes, which a tracer may be unable to patch."""


class _Writer(Statements):
    def __init__(self, seed: int) -> None:
        super().__init__(seed, FIXED)

    def ending(self, function: Function) -> list[str]:
        lines = ["add(x);"] if function.value == "x" else []
        result = RESULTS[function.shape]
        if function.shape == BIG:
            lines += ["b.a[2] = x;", "b.parent = me;"]
        if function.kind == "guarded":
            return [*lines, "finish(me, FINISHED);", f"return{result};"]
        if function.kind == "tail":
            tail = self.tail_call(function)
            if tail and self.chance(0.3):
                other = self.tail_call(function) or tail
                lines += ["if (more(d) && (x & 1)) {", "    finish(me, TAILED);", f"    return {other};", "}"]
            if tail:
                lines += ["if (more(d)) {", "    finish(me, TAILED);", f"    return {tail};", "}"]
        return [*lines, "finish(me, RETURNED);", f"return{result};"]

    def tail_call(self, function: Function) -> str | None:
        shape = function.shape
        if shape in (VOID, LONG) and self.chance(0.4):
            return f"table{shape}[rnd() % TABLE{shape}](me, d - 1)"
        if shape == LEFT:
            return f"rights[rnd() % {self.classes}]->right(me, d - 1)"
        if shape == RIGHT:
            return f"lefts[rnd() % {self.classes}]->left(me, d - 1)"
        target = self.of_shape(shape, function)
        if target is None:
            return None
        arguments = {
            VOID: "me, d - 1",
            LONG: "me, d - 1",
            MANY: "me, d - 1, b, a, h, 3, e, c + 1, 9",
            DOUBLE: "w, me, 2.5f, d - 1, u",
            BIG: "b, d - 1, c + 1",
            VARIADIC: "me, d - 1, 0",
        }
        return f"{target.name}({arguments[shape]})"

    def body(self, function: Function) -> list[str]:
        parent = "b.parent" if function.shape == BIG else "par"
        lines = [f"int me = log_call({function.number}, {parent});"]
        if function.kind == "setjmp":
            lines += ["volatile int slot = self->jumps;", "if (slot < JUMPS) {", "    self->jumps = slot + 1;"]
            lines += ["    if (setjmp(self->buffers[slot]) == 0) {", *indent(indent(self.block(function, 0, 2, 4)))]
            lines += ["    } else {", "        self->jumps = slot;"]
            lines += [*indent(indent(self.block(function, 1, 1, 2))), "    }"]
            return [*lines, "    self->jumps = slot;", "}", *self.ending(function)]
        lines += [f"unsigned long x = (unsigned long)({STARTS[function.shape]}) + {function.number};"]
        if function.shape == BIG:
            lines += ["b.parent = me;"]
        if function.kind == "guarded":
            lines += ["Guard outer(me, d - 2);"]
        if function.shape == VARIADIC:
            lines += ["va_list list;", "va_start(list, count);", "for (int i = 0; i < count; i++) {"]
            lines += ["    x += va_arg(list, long);", "    x += (long)va_arg(list, double);", "}", "va_end(list);"]
        if function.kind == "early":
            lines += [f"if (rnd() % {self.some(2, 6)} == 0) {{", "    finish(me, RETURNED);"]
            lines += [f"    return{RESULTS[function.shape]};", "}"]
        return [*lines, *self.block(function, -1, 2, 4), *self.ending(function)]

    def declare_functions(self) -> None:
        shapes = [VOID] * 16 + [LONG] * 9 + [MANY] * 4 + [DOUBLE] * 3 + [BIG] * 3 + [VARIADIC] * 2
        for shape in shapes:
            name, number = self.name("f")
            kind = self.random.choices(("plain", "tail", "guarded", "early"), (5, 4, 2, 2))[0]
            if shape == VOID and self.chance(0.25):
                kind = "setjmp"
            self.functions.append(Function(name, number, shape, kind, value="d" if kind == "setjmp" else "x"))
        for _ in range(self.classes):
            for shape in (LEFT, RIGHT):
                name, number = self.name("v")
                self.functions.append(Function(name, number, shape, self.random.choice(("plain", "tail", "guarded"))))

    def declare_tiny(self) -> None:
        barrier = 'asm volatile("" : : : "memory");'
        shapes = [
            ("void {}()", "", "{}()"),
            ("int {}(int a)", "return a;", "{}({{}})"),
            ("int {}(int a)", "return 0 * a;", "{}({{}})"),
            ("int {}(int a)", f"return a + {self.some(1, 99)};", "{}({{}})"),
            ("int {}(const int *a)", "return *a;", "{}(&d)"),
            ("int {}(int a)", f"return a ^ {self.some(1000, 99999)};", "{}({{}})"),
            ("long {}(long a, long b)", "return a * b;", "{}({{}}, 7)"),
            ("bool {}(int a)", "return a > 5;", "{}({{}})"),
        ]
        for signature, body, call in shapes:
            name, _ = self.name("t")
            self.definitions += [f"static SINGLE {signature.format(name)} {{ {barrier} {body} }}"]
            self.tiny.append((name, call.format(name)))
            self.tiny_names.add(name)

    def declare_thunks(self) -> None:
        """Functions that only jump on: 2 to 7 bytes. Their callers log them."""
        begin = "int k = log_call({number}, {me}); finish(k, TAILED); "
        for target in [f for f in self.functions if f.shape == VOID][:3]:
            name, _ = self.name("w")
            self.definitions += [f"static SINGLE void {name}(int par, int d) {{ {target.name}(par, d); }}"]
            self.thunks.append((name, begin + f"{name}(k, {{d}});"))
            self.tiny_names.add(name)
        name, _ = self.name("w")
        self.definitions += [f"static SINGLE void {name}(int par, int d, void (*f)(int, int)) {{ f(par, d); }}"]
        self.thunks.append((name, "void (*f)(int, int) = table0[rnd() % TABLE0]; " + begin + f"{name}(k, {{d}}, f);"))
        self.tiny_names.add(name)
        name, _ = self.name("w")
        slot = self.some(0, 3)
        self.definitions += [f"static SINGLE long {name}(int par, int d) {{ return table1[{slot}](par, d); }}"]
        self.thunks.append((name, begin + f"add({name}(k, {{d}}));"))
        self.tiny_names.add(name)
        self.names.append("sorts")
        self.definitions += [
            "static SINGLE void sorts(int *a, size_t n, int (*f)(const void *, const void *, void *), void *c) {",
            "    qsort_r(a, n, sizeof *a, f, c);",
            "}",
        ]

    def comparator(self, name: str, number: int) -> list[str]:
        function = Function(name, number, VOID, "comparator", value="d", has_lambda=True)
        lines = ["const int *context = (const int *)arg;", f"int me = log_call({number}, context[0]), d = context[1];"]
        if self.chance(0.7):
            lines += ["if (rnd() % 3 == 0) {", *indent(self.block(function, 1, 1, 1)), "}"]
        lines += ["finish(me, RETURNED);", "return (*(const int *)a & 63) - (*(const int *)b & 63);"]
        return [f"static int {name}(const void *a, const void *b, void *arg) {{", *indent(lines), "}"]

    def signature(self, function: Function) -> str:
        return SIGNATURES[function.shape].format(function.name)

    def write(self) -> Program:
        self.declare_functions()
        self.declare_tiny()
        self.declare_thunks()
        for _ in range(3):
            self.comparators.append(self.name("q")[0])
        plain = [f for f in self.functions if f.shape not in (LEFT, RIGHT)]
        for index, function in enumerate(f for f in self.functions if f.shape in (LEFT, RIGHT)):
            side = "left" if function.shape == LEFT else "right"
            signature = f"NOINLINE long Class{index // 2}::{side}(int par, int d)"
            function.lines = [signature + " {", *indent(self.body(function)), "}", ""]
        static = {f.name: self.chance(0.7) for f in plain}
        for function in plain:
            start = ("static " if static[function.name] else "") + "NOINLINE " + self.signature(function)
            function.lines = [start + " {", *indent(self.body(function)), "}", ""]
        order = list(self.functions)
        self.random.shuffle(order)
        tables = {shape: [f.name for f in plain if f.shape == shape] for shape in (VOID, LONG)}
        compares = [line for name in self.comparators for line in self.comparator(name, self.names.index(name))]
        lines = [f"// Written by tests/builders/random_program.py, seed {self.seed}."]
        lines += ['#include "random_runtime.h"', ""]
        lines += ["enum { UNSEEN = 4 }; // a tail call of an untraced function, which has not returned yet", ""]
        lines += [f"enum {{ SEED = {self.seed}, LIMIT = 20000, THREADS = {self.threads} }};"]
        lines += [f"enum {{ TABLE0 = {len(tables[VOID])}, TABLE1 = {len(tables[LONG])} }};"]
        lines += [f"static const bool WITH_TIMER = {int(self.with_timer)}, WITH_EXIT = {int(self.with_exit)};", ""]
        lines += self.class_lines()
        lines += ['extern "C" {']
        lines += [("static " if static[f.name] else "") + f"NOINLINE {self.signature(f)};" for f in plain]
        lines += [f"static int {name}(const void *a, const void *b, void *arg);" for name in self.comparators]
        lines += ["}", ""]
        lines += [f"static void (*volatile table0[TABLE0])(int, int) = {{{', '.join(tables[VOID])}}};"]
        lines += [f"static long (*table1[TABLE1])(int, int) = {{{', '.join(tables[LONG])}}};", ""]
        lines += ['#include "random_fixed.h"', "", 'extern "C" {', *self.definitions, "", *compares, ""]
        methods = [f for f in order if f.shape in (LEFT, RIGHT)]
        for function in order:
            if function not in methods:
                lines += function.lines
        lines += ["}", ""]
        for function in methods:
            lines += function.lines
        return Program(self.seed, "\n".join(lines), tuple(self.names), frozenset(self.tiny_names))

    def class_lines(self) -> list[str]:
        """Two bases, so that calls through the second go through a thunk that adjusts `this`."""
        methods = [f for f in self.functions if f.shape in (LEFT, RIGHT)]
        lines = ["struct Left {", "    virtual long left(int par, int d) = 0;", "    long bias = 3;", "};"]
        lines += ["struct Right {", "    virtual long right(int par, int d) = 0;", "    long shift = 4;", "};"]
        for number in range(self.classes):
            left, right = methods[2 * number], methods[2 * number + 1]
            lines += [f"struct Class{number} : Left, Right {{"]
            lines += [f'    long left(int par, int d) override __asm__("{left.name}");']
            lines += [f'    long right(int par, int d) override __asm__("{right.name}");', "};"]
        names = [f"object{number}" for number in range(self.classes)]
        lines += [f"static Class{number} object{number};" for number in range(self.classes)]
        pointers = ", ".join("&" + name for name in names)
        lines += [f"static Left *lefts[] = {{{pointers}}};", f"static Right *rights[] = {{{pointers}}};", ""]
        return lines


def random_program(seed: int) -> Program:
    """The program of a seed."""
    return _Writer(seed).write()


if __name__ == "__main__":
    sys.stdout.write(random_program(int(sys.argv[1])).source)
