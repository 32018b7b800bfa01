"""Where longjmp can resume, held against what the linker's symbols and objdump say."""

import re
import subprocess
from pathlib import Path

import pytest

from callscope.binary.cfi import frame_table
from callscope.binary.edges import scan
from callscope.binary.elf import read_image
from callscope.binary.functions import find_functions
from callscope.patching.barriers import code_bounds
from tests.builders.compilers import compile_program

SOURCE = """
#include <setjmp.h>
#include <stdio.h>
static jmp_buf a;
static sigjmp_buf b;
__attribute__((noinline)) int first(void) { return setjmp(a) ? 1 : puts("first"); }
__attribute__((noinline)) int second(void) { return sigsetjmp(b, 1) ? 1 : puts("second"); }
int main(void) { return first() + second() > 100; }
"""


@pytest.mark.parametrize("flags", [[], ["-fno-plt"], ["-no-pie", "-fcf-protection=none"]], ids=str)
@pytest.mark.parametrize("stripped", [False, True])
def test_every_call_that_returns_twice_is_found(flags: list[str], stripped: bool, tmp_path: Path) -> None:
    source = tmp_path / "jumps.c"
    source.write_text(SOURCE)
    binary = compile_program([source], tmp_path / "jumps", ["-O1", *flags])
    listing = subprocess.run(["objdump", "-d", str(binary)], check=True, capture_output=True, text=True).stdout
    slots = subprocess.run(["objdump", "-R", str(binary)], check=True, capture_output=True, text=True).stdout
    setjmp_slots = {int(address, 16) for address in re.findall(r"^([0-9a-f]+) \S+ +\S*setjmp", slots, re.M)}
    calls = re.findall(r"^ +[0-9a-f]+:.*call.*(?:<(\S+)>).*\n +([0-9a-f]+):", listing, re.M)
    by_slot = re.findall(r"call +\*0x[0-9a-f]+\(%rip\) +# ([0-9a-f]+) .*\n +([0-9a-f]+):", listing)
    expected = {int(after, 16) for name, after in calls if "setjmp" in name}
    expected |= {int(after, 16) for slot, after in by_slot if int(slot, 16) in setjmp_slots}
    assert len(expected) >= 2
    if stripped:
        subprocess.run(["strip", str(binary)], check=True)
    image = read_image(binary)
    functions = find_functions(image, frames=frame_table(image))
    edges = scan(image, 0, functions.rva.tolist(), functions.size.tolist(), *code_bounds(image))
    assert {int(address) + image.base for address in edges.second_returns} == expected
