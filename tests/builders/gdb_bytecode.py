"""Which bytecode instructions an untraced CPython executes: gdb stops at each opcode's machine code and looks.

Works where CPython dispatches by computed goto and has debugging information. Nothing of callscope's is in the process.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from callscope.bytecode.interpreters import Interpreter

_SCRIPT = r"""
import gdb, json, os, re

for line in ("set pagination off", "set confirm off", "set breakpoint pending on", "set startup-with-shell off",
             "handle all nostop noprint pass", "handle SIGTRAP stop nopass"):
    gdb.execute(line)
version = int(os.environ["STEPS_VERSION"])
program = os.environ["STEPS_PROGRAM"]
function = "PyEval_EvalFrameEx" if version < 306 else "_PyEval_EvalFrameDefault"
steps, codes = [], {}
pointer = gdb.lookup_type("char").pointer


def text(value):
    if version < 300:
        return value.cast(gdb.lookup_type("PyStringObject").pointer())["ob_sval"].address.cast(pointer()).string()
    return (value.cast(gdb.lookup_type("PyASCIIObject").pointer()) + 1).cast(pointer()).string()


def code_key(code):
    address = int(code)
    if int(code.cast(gdb.lookup_type("PyObject").pointer())["ob_type"]) != code_type:
        return None  # the frame by which C calls the interpreter
    if address not in codes:
        code = code.cast(gdb.lookup_type("PyCodeObject").pointer())
        own = os.path.basename(text(code["co_filename"])) == program
        codes[address] = (text(code["co_name"]), int(code["co_firstlineno"])) if own else None
    return codes[address]


def saved(label):
    # where the label's code has just stored the instruction's address in the frame (3.11 on)
    for one in gdb.newest_frame().architecture().disassemble(label, count=16):
        if re.match(r"mov +%r\w+,0x38\(%r\w+\)", one["asm"]):
            return one["addr"] + one["length"]
        if one["asm"].startswith(("j", "call", "ret")):
            break
    raise gdb.GdbError("no store at label %#x" % label)


def current_frame():
    if version < 307:
        state = "((PyThreadState *)_PyThreadState_Current%s)" % ("" if version < 300 else "._value")
    elif version < 312:
        state = "((PyThreadState *)_PyRuntime.gilstate.tstate_current._value)"
    else:
        state = "_Py_tss_tstate"
    member = "frame" if version < 311 else "cframe->current_frame" if version < 313 else "current_frame"
    return gdb.parse_and_eval(state + "->" + member)


def switch():
    # where the switch jumps: to the labels' machine code, or to copies of it
    block = gdb.block_for_pc(int(gdb.parse_and_eval("(long)&" + function)))
    while block.function is None:
        block = block.superblock
    lines = gdb.newest_frame().architecture().disassemble(block.start, block.end - 1)
    for number, one in enumerate(lines):
        before = " ".join(line["asm"] for line in lines[max(number - 8, 0):number])
        if re.match(r"(notrack )?jmp +\*%r", one["asm"]) and re.search(r"cmp +\$0x[9a][0-9a-f],", before):
            return one["addr"]
    raise gdb.GdbError("no switch")


class Label(gdb.Breakpoint):
    def stop(self):
        if version < 311:
            frame = current_frame()
            key = code_key(frame["f_code"])
            if key is not None:
                last = int(frame["f_lasti"]) * (2 if version == 310 else 1)
                label = self.opcode
                if version < 300 and label < 0:  # it jumps past the label
                    text_of = frame["f_code"]["co_code"].cast(gdb.lookup_type("PyStringObject").pointer())["ob_sval"]
                    label = -1 - (int(text_of[last]) & 255)
                steps.append((key[0], key[1], last, label, 0))
            return False
        frame = current_frame()
        code = frame["f_code" if version < 313 else "f_executable"]
        key = code_key(code)
        if key is not None:
            code = code.cast(gdb.lookup_type("PyCodeObject").pointer())
            place = int(frame["prev_instr" if version < 313 else "instr_ptr"])
            before, byte = list(bytes(gdb.selected_inferior().read_memory(place - 2, 4)))[::2]
            if byte != self.opcode == before:  # 3.13: YIELD_VALUE stores where it will go on
                place, byte = place - 2, before
            steps.append((key[0], key[1], place - int(code["co_code_adaptive"].address), self.opcode, byte))
        return False


gdb.execute("break getppid")
gdb.execute("run")
gdb.execute("delete")
code_type = int(gdb.parse_and_eval("&PyCode_Type"))
targets = gdb.parse_and_eval("&'%s'::opcode_targets" % function).dereference()
labels = {}
for opcode in range(256):
    labels.setdefault(int(targets[opcode]), []).append(opcode)
unknown = max(labels, key=lambda address: len(labels[address]))
for address, opcodes in labels.items():
    if address != unknown and not (version == 311 and opcodes == [255]):  # DO_TRACING
        Label("*%d" % (address if version < 311 else saved(address))).opcode = opcodes[0]
if version < 311:
    Label("*%d" % switch()).opcode = -1
last = gdb.Breakpoint("getppid")
gdb.execute("continue")
with open(os.environ["STEPS_OUT"], "w") as file:
    json.dump(steps, file)
gdb.execute("kill")
gdb.execute("quit")
"""

Step = tuple[str, int, int, int, int]
"""Name and first line of the code object, offset, opcode whose machine code ran (negative: the switch is about to jump
there; in 2.7 -1 less the opcode), byte that stood in the code (3.11 on)."""


def steps(directory: Path, interpreter: Interpreter, program: Path) -> list[Step]:
    """What is executed of `program` between its two calls of os.getppid()."""
    script, output = directory / "steps.gdb.py", directory / "steps.json"
    script.write_text(_SCRIPT)
    major, minor = interpreter.version
    environment = os.environ | {
        "STEPS_VERSION": str(major * 100 + minor),
        "STEPS_PROGRAM": program.name,
        "STEPS_OUT": str(output),
        "PYTHONHASHSEED": "0",
    }
    command = ["gdb", "-q", "-nx", "-batch", "-x", str(script), "--args", interpreter.path, str(program)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=600)
    if not output.exists() and ("No symbol" in done.stderr or "::opcode_targets" in done.stderr):
        pytest.skip(f"{interpreter.path} has no debugging information")
    assert output.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return [tuple(step) for step in json.loads(output.read_text())]
