"""Attaching to Linux programs that run, again and again: they notice nothing, and have their own code afterwards."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callscope.errors import RecordError
from callscope.recording.process import Mapping, Process, read_maps
from callscope.recording.ptrace import Thread
from callscope.recording.running import check_process
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import Outcome, callscope, count_calls, read_calls

CALLS_OF_FIB = 177
"""that one call of work() in tests/targets/attached.c makes"""
DESCRIPTORS = 6
"""that it has with six threads, of which one has three"""
ROUNDS = 3
Running = subprocess.Popen[str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(
        [TARGETS / "attached.c"], tmp_path_factory.mktemp("attach") / "attached", ["-O1", "-pthread"]
    )


@pytest.fixture
def running(program: Path) -> Iterator[Callable[..., Running]]:
    """Starts the program with so many threads, and sees that it ends as it does untraced."""
    started: list[Running] = []

    def start(threads: int = 6) -> Running:
        pipe = subprocess.PIPE
        process = subprocess.Popen([program, str(threads)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        output, errors = process.communicate("\n", 30)
        assert (process.returncode, output, errors) == (0, "1 0\n", "")


def attach(process: Running | int, trace: Path, cache: Path, *words: str) -> Outcome:
    pid = process if isinstance(process, int) else process.pid
    return callscope(["attach", str(pid), "-o", trace, *words], cache)


def changed_code(pid: int) -> list[str]:
    """The mapped files whose code in memory is not that of the file, but for the agent's own."""
    process = Process(pid)
    changed = []
    for mapping in process.maps:
        if "x" not in mapping.protection or not mapping.path.startswith("/") or "libcallscope" in mapping.name:
            continue
        assert "w" not in mapping.protection
        try:
            there = read_mapped(pid, mapping)
            if process.read(mapping.start, len(there)) != there:
                changed.append(mapping.path)
        except OSError:
            assert mapping not in read_maps(pid)  # it was unloaded meanwhile
    process.close()
    return changed


def read_mapped(pid: int, mapping: Mapping) -> bytes:
    """What a file holds that is mapped; also of one that is gone, which is for root alone."""
    whole = Path(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")
    with (whole if os.geteuid() == 0 else Path(mapping.path)).open("rb") as file:
        file.seek(mapping.offset)
        return file.read(mapping.end - mapping.start)


def test_a_program_with_threads_is_recorded_and_goes_on(
    running: Callable[..., Running], plan_cache: Path, tmp_path: Path
) -> None:
    process = running()
    for number in range(ROUNDS):
        trace = tmp_path / str(number)
        words = [["-f", "fib", "-f", "work"], ["-m", "all"], []][number % 3]
        outcome = attach(process, trace, plan_cache, "--duration", "50ms", *words)
        assert outcome.status == 0, outcome.errors
        works = count_calls(trace, "work")
        calls = count_calls(trace, "fib")
        # Calls of work() that had begun before, and those that had not ended when it was detached, each in one thread.
        assert works > 10
        assert (works - 7) * CALLS_OF_FIB <= calls <= (works + 7) * CALLS_OF_FIB
        endings = [ended for thread in read_calls(trace, ("ended_by",)).values() for ended in thread["ended_by"]]
        assert len(endings) > calls
        assert changed_code(process.pid) == []
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) == DESCRIPTORS


def test_left_alone_it_goes_on_writing_until_it_is_detached(
    running: Callable[..., Running], program: Path, plan_cache: Path, tmp_path: Path
) -> None:
    process = running()
    outcome = attach(process, tmp_path / "a", plan_cache, "--leave")
    assert outcome.status == 0, outcome.errors
    assert str(program) in changed_code(process.pid)
    refused = attach(process, tmp_path / "b", plan_cache)
    assert (refused.status, "recorded already" in refused.errors) == (1, True), refused.errors
    assert not (tmp_path / "b").exists()
    assert callscope(["detach", str(process.pid)], plan_cache).status == 0
    assert changed_code(process.pid) == []
    again = callscope(["detach", str(process.pid)], plan_cache)
    assert (again.status, "not being recorded" in again.errors) == (1, True), again.errors
    assert attach(process, tmp_path / "b", plan_cache, "--duration", "50ms").status == 0
    assert count_calls(tmp_path / "a", "work") > 0
    assert count_calls(tmp_path / "b", "work") > 0


def test_the_end_of_the_program_ends_the_recording(program: Path, plan_cache: Path, tmp_path: Path) -> None:
    with subprocess.Popen([program, "3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        outcome = attach(process, tmp_path / "a", plan_cache, "--leave")
        assert outcome.status == 0, outcome.errors
        output, _ = process.communicate("\n", 30)
        assert (output, process.returncode) == ("1 0\n", 0)
    assert count_calls(tmp_path / "a", "work") > 0


def error_of(outcome: Outcome) -> str:
    """The one line of an error."""
    assert outcome.status in (1, 2)
    lines = outcome.errors.splitlines()
    assert len(lines) == 1, outcome.errors
    return lines[0]


def test_several_processes_of_a_name_are_listed(
    running: Callable[..., Running], program: Path, plan_cache: Path
) -> None:
    first, second = running(1), running(1)
    error = error_of(callscope(["attach", program.name], plan_cache))
    assert "processes: name one by its process id" in error
    assert str(first.pid) in error
    assert str(second.pid) in error


def test_what_cannot_be_attached_to_says_why(tmp_path: Path, plan_cache: Path) -> None:
    def attempt(word: int | str) -> str:
        error = error_of(callscope(["attach", str(word), "-o", tmp_path / "t", "--duration", "10ms"], plan_cache))
        assert not (tmp_path / "t").exists()
        return error

    assert "process" in attempt(4194305)  # that there is none; a Wine that runs says so in its own words
    assert "no" in attempt("no-such-program-anywhere")
    assert "belongs to the kernel" in attempt(2)
    zombie = subprocess.Popen(["true"])
    while Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert "has ended" in attempt(zombie.pid)
    zombie.wait()


def test_a_static_program_is_refused(tmp_path: Path, plan_cache: Path) -> None:
    source = tmp_path / "waits.c"
    source.write_text("#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    program = compile_program([source], tmp_path / "waits", ["-static"])
    with subprocess.Popen([program]) as process:
        assert "statically linked" in error_of(attach(process.pid, tmp_path / "t", plan_cache))
        process.kill()


def test_a_step_over_pushf_leaves_no_trap(tmp_path: Path) -> None:
    """A thread that is led out of the agent by steps takes the flags it pushed meanwhile back afterwards."""
    source = tmp_path / "pushes.c"
    source.write_text('int main(void) { for (;;) __asm__ volatile("pushf; nop; nop; nop; popf; nop"); }\n')
    with subprocess.Popen([compile_program([source], tmp_path / "pushes", [])]) as program:
        for steps in range(1, 40):
            process, thread = Process(program.pid), Thread.seize(program.pid)
            assert thread.stop()
            assert all(thread.step(process) for _ in range(steps))
            thread.release()
            process.close()
        time.sleep(0.05)
        assert program.poll() is None
        program.kill()


NOBODY = 65534


def refusal_to_nobody(pid: int) -> str:
    """What a user without rights is told about a process."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            check_process(pid)
        except RecordError as error:
            os.write(into, str(error).encode())
        finally:
            os._exit(0)
    os.close(into)
    os.waitpid(child, 0)
    with os.fdopen(out) as answer:
        return answer.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_rights_that_are_missing_are_named(tmp_path: Path, plan_cache: Path) -> None:
    source = tmp_path / "hides.c"
    source.write_text(
        "#include <stdlib.h>\n#include <sys/prctl.h>\n#include <unistd.h>\n"
        f"int main(int count, char **arguments) {{ if (count > 1) setresuid({NOBODY}, {NOBODY}, {NOBODY});\n"
        'prctl(PR_SET_DUMPABLE, 0); write(1, "r", 1); for (;;) pause(); }\n'
    )
    program = compile_program([source], tmp_path / "hides", [])
    for words, reason in ([], "belongs to user 0"), (["as nobody"], "PR_SET_DUMPABLE"):
        with subprocess.Popen([program, *words], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"r"
            assert reason in refusal_to_nobody(process.pid)
            if words:  # to root nothing of that is an obstacle
                outcome = attach(process.pid, tmp_path / "t", plan_cache, "--duration", "50ms")
                assert outcome.status == 0, outcome.errors
                assert changed_code(process.pid) == []
            process.kill()
