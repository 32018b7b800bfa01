"""Call stacks of real programs: which library, function and line, across loads and unloads, stacks and corruption."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callscope.reports.stacks import Stacks, ends
from callscope.trace.open import open_trace
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import run_traced, tool_environment

Record = Callable[..., Path]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("captures")
    return compile_program([TARGETS / "captures.c"], directory / "captures", ["-O2", "-g", "-pthread"])


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("libraries")
    flags = ["-O2", "-g", "-shared", "-fPIC"]
    return [
        compile_program(
            [TARGETS / "captures_library.c"], directory / f"lib{name}.so", [*flags, f"-DNAME=inside_{name}"]
        )
        for name in ("foo", "bar")
    ]


@pytest.fixture
def record(tmp_path: Path, plan_cache: Path) -> Record:
    def run(*command: str | Path, **recording: Any) -> Path:
        outcome = run_traced(command, tmp_path / "stacks.trace", plan_cache, 240, recording=recording)
        assert outcome.status == 0, outcome.errors
        (tmp_path / "output").write_text(outcome.output)
        assert outcome.trace is not None
        return outcome.trace

    return run


def stacks_of(trace: Path) -> list[tuple[int, list[tuple[str | None, str | None]], str | None]]:
    """(tag, (function, module) from the innermost, why it ends early) of every stack."""
    found = Stacks(open_trace(trace))
    return [
        (one.tag, [(frame.function, frame.module) for frame in group.frames], ends(group))
        for one, group in found.each()
    ]


def names(stack: list[tuple[str | None, str | None]]) -> list[str | None]:
    return [name for name, _ in stack]


def test_libraries_at_the_same_address_are_told_apart(
    program: Path, libraries: list[Path], record: Record, tmp_path: Path
) -> None:
    trace = record(program, "reload", *libraries)
    first, second, third = (int(line, 16) for line in (tmp_path / "output").read_text().split())
    assert first == second != third
    found = {tag: stack for tag, stack, _ in stacks_of(trace)}
    assert [found[tag][:2] for tag in (1, 2, 3)] == [
        [("inside_foo", "libfoo.so"), ("library_entry", "libfoo.so")],
        [("inside_bar", "libbar.so"), ("library_entry", "libbar.so")],
        [("inside_foo", "libfoo.so"), ("library_entry", "libfoo.so")],
    ]
    lines = {
        (Path(frame.file or "").name, frame.line)
        for _, group in Stacks(open_trace(trace)).each()
        for frame in group.frames[:1]
    }
    assert lines == {("captures_library.c", 7)}


def test_threads_that_load_and_unload(program: Path, libraries: list[Path], record: Record) -> None:
    """Eight threads, a thousand times each, while two others capture their own stacks."""
    trace = record(program, "threads", *libraries, "1000", modules=("captures",))
    counts: Counter[str] = Counter()
    at: dict[int, set[str | None]] = {}
    for one, group in Stacks(open_trace(trace)).each():
        assert ends(group) is None
        places = [(f.function, f.module, Path(f.file or "").name, f.line) for f in group.frames[:3]]
        if one.tag == 1:
            assert [place[0] for place in places[:2]] == ["steady", "capture_meanwhile"]
        else:
            name = ("foo", "bar")[one.tag - 1000]
            inside = [("library_entry", f"lib{name}.so", "captures_library.c", 12), ("churn", "captures")]
            inside.insert(0, (f"inside_{name}", f"lib{name}.so", "captures_library.c", 7))
            assert [*places[:2], places[2][:2]] == inside
            at.setdefault(one.addresses[0][0], set()).add(name)
        counts["steady" if one.tag == 1 else "library"] += 1
    assert counts["library"] == 8 * 1000 and counts["steady"] > 0
    assert any(len(names_there) == 2 for names_there in at.values())  # both lay at one address


@pytest.mark.parametrize("depth", [0, 100, 1000])
def test_depth(program: Path, record: Record, depth: int) -> None:
    ((_, stack, why),) = stacks_of(record(program, "deep", str(depth)))
    expected = ["deep"] * (depth + 1) + ["main", "__libc_start_call_main", "__libc_start_main", "_start"]
    got = [name.partition("@")[0] if name else name for name in names(stack)]
    got = [{"__libc_start_main_impl": "__libc_start_main"}.get(name or "", name) for name in got]
    if depth > 500:
        assert got == expected[:512] and why is not None and "deeper" in why
    else:
        assert [name for name in got if name is not None][: depth + 2] == expected[: depth + 2] and why is None
        assert got[-1] == "_start"


def test_signal_handlers_alternate_stacks_coroutines_and_realigned_frames(program: Path, record: Record) -> None:
    found = {tag: (names(stack), why) for tag, stack, why in stacks_of(record(program, "other"))}
    for number in (10, 12):
        stack, why = found[number]
        assert stack[0] == "in_handler" and why is None
        assert stack[stack.index("interrupted") :][1:3] == ["other_stacks", "main"]
    assert found[5][0][:5] == ["deep"] * 4 + ["coroutine"]
    assert found[6][0][:5] == ["deep", "deep", "deep", "realigned", "other_stacks"] and found[6][1] is None


def test_corrupt_stacks_do_no_harm(program: Path, record: Record) -> None:
    found = stacks_of(record(program, "corrupt", "2000"))
    assert len(found) == 2000
    assert all(stack[0][0] in ("corrupt", "main") for _, stack, _ in found)
    assert sum(why is not None for _, _, why in found) > 1000


@pytest.mark.parametrize("seed", [1, 2])
def test_random_calls_are_captured_as_they_are(record: Record, tmp_path: Path, seed: int) -> None:
    """What is taken over from a thread's last stack is what a walk would find, also with captures amidst captures."""
    random = compile_program([TARGETS / "captures_random.c"], tmp_path / "captures_random", ["-O2", "-g"])
    trace = record(random, "8000", str(seed), modules=("none",))
    truth = {int(tag): path for tag, path in (line.split() for line in (tmp_path / "output").read_text().splitlines())}
    ticks = 0
    for tag, stack, why in stacks_of(trace):
        own = "".join(name[0] for name in names(stack) if name and name[1:2] == "_" and name[0] in "abcdef")
        assert why is None
        if tag == 1 << 40:
            ticks += 1
            assert stack[-1][0] == "_start"
        else:
            assert own == truth.pop(tag)
    assert not truth and ticks > 10


def test_at_entries(program: Path, record: Record) -> None:
    found = stacks_of(record(program, "deep", "3", stacks_at=("deep",)))
    entries = [names(stack) for _, stack, _ in found[:-1]]
    assert [stack[: stack.index("main")] for stack in entries] == [["deep"] * n for n in (1, 2, 3, 4)]


def test_every_interval(record: Record, tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(
        "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: sum(range(999))\n"
    )
    found = stacks_of(record("/usr/bin/python3", script, stacks_every_ns=10_000_000, modules=("none",)))
    assert len(found) >= 30
    whole = [stack for _, stack, why in found if why is None and stack[-1][0] in ("_start", "_dl_start", None)]
    assert len(whole) >= 0.95 * len(found)


def test_intervals_below_the_tick(program: Path, record: Record, tmp_path: Path) -> None:
    """A thread that works for a second is captured a thousand times; waits are not cut short, or hardly ever."""
    trace = record(program, "waits", stacks_every_ns=1_000_000, modules=("none",))
    counts = Counter(one.tid for one, _ in Stacks(open_trace(trace)).each())
    assert 500 < max(counts.values()) <= 1100
    assert int((tmp_path / "output").read_text()) <= 1


def test_flame_graphs(program: Path, record: Record, plan_cache: Path, tmp_path: Path) -> None:
    trace = record(program, "deep", "2", stacks_at=("deep",))

    def export(*words: str) -> str:
        command = [sys.executable, "-m", "callscope", "export", str(trace), "--stacks", "-o", "-", *words]
        outcome = subprocess.run(command, env=tool_environment(plan_cache), capture_output=True, text=True)
        assert outcome.returncode in (0, 2)
        return outcome.stdout or outcome.stderr

    counts = [line.rpartition(" ") for line in export("--to", "folded").splitlines()]
    inner = Counter({path[path.index(";main;") + 1 :]: int(count) for path, _, count in counts})
    # One at each entry, and the program's own in the last.
    assert inner == {"main;deep": 1, "main;deep;deep": 1, "main;deep;deep;deep": 2}
    profile = json.loads(export("--to", "speedscope"))
    ((samples, weights),) = [(p["samples"], p["weights"]) for p in profile["profiles"]]
    found = [[profile["shared"]["frames"][i]["name"] for i in sample] for sample in samples]
    assert [stack.count("captures!deep") for stack in found] == [1, 2, 3, 3] and weights == [1] * 4
    assert all(stack[-1] == "captures!deep" for stack in found)
    assert export("--to", "folded", "--process", "1") == ""
    assert "choose one of folded, speedscope" in export("--to", "chrome")


def test_python_captures_itself(record: Record, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text("import callscope\nfor tag in range(5): callscope.capture(tag)\n")
    found = stacks_of(record(sys.executable, script, modules=("none",)))
    assert [tag for tag, _, _ in found] == list(range(5))
    assert all(why is None and len(stack) > 5 for _, stack, why in found)


def test_on_a_signal(record: Record, tmp_path: Path) -> None:
    script = "import os, signal, threading\nlock = threading.Event()\n"
    script += "threads = [threading.Thread(target=lock.wait) for _ in range(3)]\n[t.start() for t in threads]\n"
    script += "os.kill(os.getpid(), signal.SIGUSR2)\nimport time\ntime.sleep(0.2)\nlock.set()\n"
    (tmp_path / "signalled.py").write_text(script)
    trace = open_trace(record("/usr/bin/python3", tmp_path / "signalled.py", modules=("none",), stacks_on="USR2"))
    found = [one for one, group in Stacks(trace).each() if ends(group) is None]
    assert len({one.tid for one in found}) == 4 and {one.tag for one in found} == {12}


def test_another_machine(
    program: Path, libraries: list[Path], record: Record, plan_cache: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "captures-copy"
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o700)
    trace = record(copy, "deep", "2")
    callscope = [sys.executable, "-m", "callscope"]
    environment = tool_environment(plan_cache)
    subprocess.run([*callscope, "bundle", str(trace)], env=environment, check=True, capture_output=True)
    copy.unlink()
    command = [*callscope, "stacks", str(trace), "--format", "json"]
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    (group,) = json.loads(shown.stdout)
    assert [frame["function"] for frame in group["frames"][:4]] == ["deep", "deep", "deep", "main"]
    assert group["frames"][0]["file"].endswith("captures.c") and group["count"] == 1
