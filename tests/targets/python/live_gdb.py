"""Has gdb do the same again and again until its input ends, and checks that it always answers the same.

live_gdb.py PROGRAM: starts gdb for it, prints gdb's process id, and at the end how often it answered and what was
wrong. PROGRAM has functions `main` and `fib`.
"""

import re
import subprocess
import sys
import threading

COMMANDS = [
    "-break-insert fib", "-exec-run", "-stack-list-frames",
    "-data-list-register-values x 6 7 16", "-exec-finish",
    "-data-disassemble -s fib -e fib+20 -- 0", '-interpreter-exec console "info functions fib"',
    "-stack-list-arguments 1", "-data-evaluate-expression fib(12)", "-break-delete", "-exec-continue",
]  # fmt: skip
ended = threading.Event()


def ask(gdb, command):
    """What gdb answers, up to the point where it is ready for more."""
    if gdb.poll() is not None:
        ended.set()
        return [f"gdb has ended with {gdb.returncode}"]
    gdb.stdin.write(command + "\n")
    gdb.stdin.flush()
    lines, running = [], command.startswith("-exec")
    while True:
        line = gdb.stdout.readline()
        if not line:
            return [*lines, f"gdb has ended with {gdb.wait()}"]
        if line.startswith("*stopped"):
            running = False
        if line.startswith("^error"):
            running = False
        if line.startswith(("^", "*stopped", "~")):
            lines.append(line.strip())
        if line.startswith("(gdb)") and not running and any(kept.startswith("^") for kept in lines):
            return lines


def normal(lines):
    """Without what differs from run to run."""
    text = "\n".join(lines)
    return re.sub(r'(number|bkptno|id|process|Breakpoint) ?=?"?\d+"?|thread-groups=\S+|core="\d+"|times=\S+', "", text)


gdb = subprocess.Popen(
    ["gdb", "-q", "-nx", "--interpreter=mi2", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
print(gdb.pid, flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
answer_all = lambda: [normal(ask(gdb, command)) for command in COMMANDS]
answer_all()  # the first time it reads files
first, rounds, failures = answer_all(), 0, []
while not ended.is_set():
    failures += [both for both in zip(first, answer_all()) if both[0] != both[1]]
    rounds += 1
gdb.stdin.close()
status = gdb.wait()
if status:
    failures.append(("status", status))
print(rounds, len(failures), failures[:2])
