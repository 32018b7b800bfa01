"""The statements of random programs (tests/builders/random_program.py): calls, and ways to leave or disturb them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

MAX_NESTING = 3
VOID, LONG, MANY, DOUBLE, BIG, VARIADIC, LEFT, RIGHT = range(8)


@dataclass
class Function:
    """A logged function; `value` is the variable its statements compute with."""

    name: str
    number: int
    shape: int
    kind: str
    lines: list[str] = field(default_factory=list)
    value: str = "x"
    has_lambda: bool = False


def indent(lines: Iterable[str]) -> list[str]:
    """The lines, one level deeper."""
    return ["    " + line for line in lines]


class Statements:
    """Makes statements, given the functions to call; each gives lines of C++ that see `me` and `d`.

    All but the functions that call setjmp have a variable `x` too.
    """

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.names = list(names)
        self.tiny: list[tuple[str, str]] = []  # name, how it is called with an argument
        self.tiny_names: set[str] = set()
        self.definitions: list[str] = []
        self.functions: list[Function] = []
        self.comparators: list[str] = []
        self.thunks: list[tuple[str, str]] = []  # name, call text with {me} and {d}
        self.classes = 3
        pick = self.random.random
        self.with_signals, self.with_coroutines = pick() < 0.7, pick() < 0.6
        self.with_fork, self.with_timer, self.with_exit = pick() < 0.4, pick() < 0.5, pick() < 0.5
        self.threads = self.random.choice((0, 0, 1, 2, 3))
        statements: dict[Callable[[Function, int], list[str]], float] = {
            self.plain_call: 8,
            self.tiny_call: 3,
            self.arithmetic: 2,
            self.loop: 2,
            self.branch: 3,
            self.cold: 2,
            self.try_block: 3,
            self.guard_block: 2,
            self.switch: 1,
            self.alloca_block: 1,
            self.sort: 0.7,
            self.lambda_call: 1,
            self.computed_goto: 0.6,
            self.raise_error: 1.2,
            self.jump: 0.8,
            self.deep_call: 0.3,
            self.raise_signal: 0.4 if self.with_signals else 0,
            self.coroutine: 1 if self.with_coroutines else 0,
            self.fork: 0.5 if self.with_fork else 0,
        }
        self.statements = list(statements)
        self.weights = [weight * self.random.uniform(0.5, 1.5) for weight in statements.values()]

    # Names and choices

    def name(self, prefix: str) -> tuple[str, int]:
        number = len(self.names)
        self.names.append(f"{prefix}{number:03d}")
        return self.names[-1], number

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def some(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def of_shape(self, shape: int, but: Function | None = None) -> Function | None:
        found = [f for f in self.functions if f.shape == shape and f is not but]
        return self.random.choice(found) if found else None

    # Statements: each gives lines of C++ that see `me`, `d` and, unless the function calls setjmp, `x`

    def sink(self, function: Function, expression: str) -> str:
        return f"x += {expression};" if function.value == "x" else f"add({expression});"

    def block(self, function: Function, nesting: int, low: int = 1, high: int = 2) -> list[str]:
        lines: list[str] = []
        for _ in range(self.some(low, high)):
            lines += self.statement(function, nesting + 1)
        return lines

    def statement(self, function: Function, nesting: int) -> list[str]:
        if nesting >= MAX_NESTING:
            return self.random.choice((self.plain_call, self.plain_call, self.tiny_call))(function, nesting)
        return self.random.choices(self.statements, self.weights)[0](function, nesting)

    def call(self, function: Function, target: Function, less: int) -> str:
        """A call of `target` as a statement."""
        d, value = f"d - {less}", function.value
        if target.shape == VOID:
            return f"{target.name}(me, {d});"
        if target.shape == LONG:
            return self.sink(function, f"{target.name}(me, {d})")
        if target.shape == MANY:
            last = self.random.choice((f"{value} & 7", "6", "d"))
            return self.sink(function, f"{target.name}(me, {d}, 1, d, 3, 4, {self.some(1, 3)}, {last}, 7)")
        if target.shape == DOUBLE:
            return self.sink(function, f"(long){target.name}(({value} & 0xffff) * 0.5, me, 1.5f, {d}, 2.25)")
        if target.shape == BIG:
            big = f"Big{{{{(long){value}, 1, 2, 3, d}}, me}}"
            return self.sink(function, f"{target.name}({big}, {d}, {self.some(1, 9)}).a[2]")
        if target.shape == VARIADIC:
            return self.sink(function, f"{target.name}(me, {d}, 3, 10L, 2.5, 30L, 4.5, 50L, 6.5)")
        side = "left" if target.shape == LEFT else "right"
        return self.sink(function, f"{side}s[rnd() % {self.classes}]->{side}(me, {d})")

    def plain_call(self, function: Function, nesting: int) -> list[str]:
        less = self.random.choice((1, 1, 1, 2))
        choice = self.random.random()
        if choice < 0.2:
            text = f"table0[rnd() % TABLE0](me, d - {less});"
        elif choice < 0.35:
            text = self.sink(function, f"table1[rnd() % TABLE1](me, d - {less})")
        elif choice < 0.5 and self.thunks:
            name, call = self.random.choice(self.thunks)
            text = "{ " + call.format(me="me", d=f"d - {less}", number=self.names.index(name)) + " }"
        else:
            text = self.call(function, self.random.choice(self.functions), less)
        return ["if (more(d))", "    " + text]

    def tiny_call(self, function: Function, nesting: int) -> list[str]:
        name, call = self.random.choice(self.tiny)
        argument = f"(int){function.value}"
        lines = [f"int k = log_call({self.names.index(name)}, me);"]
        lines.append(self.sink(function, call.format(argument)) if "{}" in call else call + ";")
        return ["{", *indent([*lines, "finish(k, RETURNED);"]), "}"]

    def arithmetic(self, function: Function, nesting: int) -> list[str]:
        if function.value != "x":
            return [f"add(rnd() & {self.some(1, 255)});"]
        array = ["unsigned long a[6];", "for (int i = 0; i < 6; i++)", "    a[i] = x * i;"]
        array += ['asm volatile("" : : "r"(a) : "memory");', "x = a[x & 3] + a[5];"]
        return self.random.choice(
            (
                [f"x = (x ^ {self.some(1, 9999)}) * {self.some(3, 99)};", "OPAQUE(x);"],
                [f"x += (long)((double)(x & 0xfff) * {self.some(1, 9)}.5);"],
                [f"x = x > {self.some(1, 999)} ? x - d : x + {self.some(1, 99)};"],
                ["{", *indent(array), "}"],
            )
        )

    def loop(self, function: Function, nesting: int) -> list[str]:
        head = f"for (unsigned i = 0, n = rnd() % {self.some(2, 4)}; i < n && more(d); i++) {{"
        return [head, *indent(self.block(function, nesting, 1, 1)), "}"]

    def branch(self, function: Function, nesting: int) -> list[str]:
        lines = [f"if (rnd() % {self.some(2, 5)} == 0) {{", *indent(self.block(function, nesting))]
        if self.chance(0.4):
            lines += ["} else {", *indent(self.block(function, nesting))]
        return [*lines, "}"]

    def cold(self, function: Function, nesting: int) -> list[str]:
        lines = self.block(function, nesting, 1, 2)
        return [f"if (RARE(rnd() % {self.some(8, 30)} == 0)) {{", *indent(lines), "}"]

    def try_block(self, function: Function, nesting: int) -> list[str]:
        # No jump leaves a handler: the exception would stay the last one caught, and die in another function's name.
        enter, leave = ["self->jumps = jumps;", "self->floor = jumps;"], ["self->floor = floor;"]
        handler = [*enter, "e.parent = me;", "add(e.value);"]
        if self.chance(0.5):
            handler += self.block(function, nesting, 1, 1)
        if self.chance(0.3):
            handler += [f"if (rnd() % {self.some(2, 4)} == 0)", "    throw;"]
        other = [*enter, "add(o.value);"]
        if self.chance(0.3):
            other += ["throw Error(me, o.value);"]
        lines = ["int jumps = self->jumps, floor = self->floor;", "try {", *indent(self.block(function, nesting))]
        which = self.random.random()
        if which < 0.8:
            lines += ["} catch (Error &e) {", *indent([*handler, *leave])]
        if which > 0.6:
            lines += ["} catch (Other &o) {", *indent([*other, *leave])]
        return ["{", *indent([*lines, "}"]), "}"]

    def guard_block(self, function: Function, nesting: int) -> list[str]:
        if function.kind == "setjmp":
            return self.plain_call(function, nesting)
        return ["{", *indent(["Guard guard(me, d - 2);", *self.block(function, nesting)]), "}"]

    def switch(self, function: Function, nesting: int) -> list[str]:
        cases = self.some(5, 9)
        lines = [f"switch (rnd() % {cases}) {{"]
        for case in range(cases - 1):
            body = self.statement(function, MAX_NESTING - 1 if self.chance(0.4) else MAX_NESTING)
            if self.chance(0.4):
                body = [f"add({self.some(1, 99)});"]
            lines += [f"case {case}: {{", *indent(body), "    break;", "}"]
        return [*lines, "default:", f"    add({self.some(1, 99)});", "}"]

    def alloca_block(self, function: Function, nesting: int) -> list[str]:
        if function.kind == "setjmp":
            return self.tiny_call(function, nesting)
        lines = ["long n = 2 + rnd() % 40;", "long *p = (long *)alloca(n * sizeof *p);"]
        lines += ["p[0] = p[n - 1] = n;", "OPAQUE(p);"]
        return ["{", *indent([*lines, *self.block(function, nesting), "add(p[0] + p[n - 1]);"]), "}"]

    def sort(self, function: Function, nesting: int) -> list[str]:
        compare = self.random.choice(self.comparators)
        count = self.some(3, 5)
        lines = [f"int a[{count}];", f"for (int i = 0; i < {count}; i++)", "    a[i] = (int)(rnd() & 1023);"]
        lines += ["if (more(d)) {"]
        if self.chance(0.3):
            number = self.names.index("sorts")
            lines += [
                f"    int k = log_call({number}, me), context[2] = {{k, d - 2}};",
                "    finish(k, UNSEEN);",
                f"    sorts(a, {count}, {compare}, context);",
                "    finish(k, FINISHED);",
            ]
        else:
            lines += ["    int context[2] = {me, d - 2};"]
            lines += [f"    qsort_r(a, {count}, sizeof *a, {compare}, context);"]
        return ["{", *indent([*lines, "}", f"add(a[{self.some(0, count - 1)}]);"]), "}"]

    def lambda_call(self, function: Function, nesting: int) -> list[str]:
        if function.has_lambda or function.shape in (LEFT, RIGHT) or function.kind == "setjmp":
            return self.plain_call(function, nesting)
        function.has_lambda = True
        number = len(self.names)
        self.names.append(f"{function.name}.lambda")
        capture = self.chance(0.5)
        inner = Function(function.name, number, VOID, "lambda", value="d", has_lambda=True)
        body = self.block(inner, MAX_NESTING - 1, 1, 2)
        use = ["x += d;"] if capture else []
        lines = [f"auto f = [{'&x' if capture else ''}](int par, int d) __attribute__((noinline)) {{"]
        lines += [f"    int me = log_call({number}, par);", *indent([*use, *body]), "    finish(me, RETURNED);", "};"]
        if capture:
            lines += ["f(me, d - 1);"]
        else:
            lines += ["void (*p)(int, int) = f;", "OPAQUE(p);", "p(me, d - 1);"]
        return ["if (more(d)) {", *indent(lines), "}"]

    def computed_goto(self, function: Function, nesting: int) -> list[str]:
        if function.kind == "setjmp" or nesting > 0:
            return self.branch(function, nesting)
        tag = f"l{self.some(0, 10**9)}"
        labels = [f"{tag}_{i}" for i in range(3)]
        lines = [f"static void *const labels[] = {{{', '.join('&&' + label for label in labels)}}};"]
        lines += ["goto *labels[rnd() % 3];"]
        for label in labels:
            lines += [f"{label}:", *self.plain_call(function, nesting)]
            if self.chance(0.5):
                lines += ["if (rnd() % 3 == 0)", "    goto *labels[rnd() % 3];"]
        return ["{", *indent(lines), "}"]

    def raise_error(self, function: Function, nesting: int) -> list[str]:
        thrown = f"Error(me, d + {self.some(1, 99)})" if self.chance(0.75) else f"Other{{{self.some(1, 99)}}}"
        return [f"if (RARE(rnd() % {self.some(6, 25)} == 0))", f"    throw {thrown};"]

    def jump(self, function: Function, nesting: int) -> list[str]:
        test = f"rnd() % {self.some(4, 12)} == 0 && self->jumps > self->floor"
        return [f"if (RARE({test}))", "    longjmp(self->buffers[self->jumps - 1], 1);"]

    def deep_call(self, function: Function, nesting: int) -> list[str]:
        how = self.random.choice(("deep(me, (int)(rnd() % 60))", "even(me, rnd() % 40)", "odd(me, rnd() % 40)"))
        return ["if (more(d) && rnd() % 8 == 0)", "    " + self.sink(function, how)]

    def raise_signal(self, function: Function, nesting: int) -> list[str]:
        lines = ["int before = self->handler_parent;", "self->handler_parent = me;", "send_signal(SIGUSR1);"]
        return ["if (more(d) && rnd() % 4 == 0) {", *indent([*lines, "self->handler_parent = before;"]), "}"]

    def coroutine(self, function: Function, nesting: int) -> list[str]:
        return ["if (rnd() % 3 == 0)", "    coroutine_resume((int)(rnd() % COROUTINES), me, co_root);"]

    def fork(self, function: Function, nesting: int) -> list[str]:
        test = "self->main && self->forks < 2 && rnd() % 200 == 0"
        return [f"if (RARE({test})) {{", "    self->forks++;", "    fork_here();", "}"]
