"""libcalltrace.so in LD_PRELOAD: CallTrace's JSON is there when the program ends, however it ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.builders.compilers import compile_program
from tests.builders.tracing import Outcome, callscope, run_plain, tool_environment

SOURCE = """
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern void calltrace_cleanup(void) __attribute__((weak));
extern int calltrace_init(void) __attribute__((weak));
static inline __attribute__((always_inline)) int twice(int n) { return 2 * n; }
__attribute__((noinline)) int add(int a, int b) { return a + twice(b); }
__attribute__((noinline)) int cause_crash(int *p) { return *p; }
int fibonacci(int n) { return n <= 1 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
__attribute__((noinline)) void *worker(void *data) { return (void *)(long)add(1, 2); }

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    pthread_t thread;
    pthread_create(&thread, 0, worker, 0);
    pthread_join(thread, 0);
    printf("%d %d\\n", add(20, 11), fibonacci(8));
    fflush(stdout);
    if (!strcmp(what, "crash"))
        return cause_crash(0);
    if (!strcmp(what, "_exit"))
        _exit(7);
    if (!strcmp(what, "kill"))
        kill(getpid(), SIGKILL);
    if (!strcmp(what, "exec"))
        execlp("true", "true", (char *)0);
    if (!strcmp(what, "cleanup")) {
        printf("%d\\n", calltrace_init ? calltrace_init() : -1);
        if (calltrace_cleanup)
            calltrace_cleanup();
        FILE *file = fopen(getenv("CALLTRACE_OUTPUT"), "r");
        printf("%s\\n", file ? "written" : "nothing");
    }
    return 3;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("dropin") / "source.c"
    source.write_text(SOURCE)
    flags = ["-rdynamic", "-finstrument-functions", "-g", "-O2", "-pthread"]
    return compile_program([source], source.with_name("program"), flags)


def drop_in(program: Path, cache: Path, *words: str, **variables: str) -> Outcome:
    library = Path(callscope(["lib-path"], cache).output.strip()) / "libcalltrace.so"
    environment = tool_environment(cache) | {"LD_PRELOAD": str(library)}
    environment |= {f"CALLTRACE_{name}": value for name, value in variables.items()}
    return run_plain([program, *words], env=environment, cwd=program.parent)


def nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree["children"]:
        yield from nodes(child)


def calls(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    trees = [thread["call_tree"] for thread in data["threads"] if thread["call_tree"]]
    return [node for tree in trees for node in nodes(tree) if node["function"] == name]


ENDS = {"": 3, "crash": -signal.SIGSEGV, "_exit": 7}


@pytest.mark.parametrize("end", ENDS)
def test_the_file_is_there_when_the_program_ends(end: str, program: Path, tmp_path: Path, plan_cache: Path) -> None:
    output = tmp_path / "trace.json"
    done = drop_in(program, plan_cache, end, OUTPUT=str(output))
    assert (done.output, done.errors, done.status) == ("42 21\n", "", ENDS[end])
    data = json.loads(output.read_text())
    main = next(thread for thread in data["threads"] if thread["is_main_thread"])
    other = next(thread for thread in data["threads"] if not thread["is_main_thread"])
    assert main["call_tree"]["function"] == "main"
    assert other["call_tree"]["function"] == "worker"
    assert other["creation_info"]["parent_thread_id"] == main["thread_id"]
    assert other["creation_info"]["creation_function"] == "main"
    assert len(calls(data, "twice")) == len(calls(data, "add")) == 2
    assert len(calls(data, "fibonacci")) == 67
    assert data["statistics"]["total_threads"] == 2
    if end == "crash":
        crash = data["crash"]
        assert (crash["signal"], crash["signal_name"]) == (11, "SIGSEGV (Segmentation fault)")
        assert crash["thread_id"] == main["thread_id"]
        assert crash["backtrace"][0]["function_name"] == "cause_crash"
        assert calls(data, "cause_crash")[0]["ended_by"] == "running"
    else:
        assert "crash" not in data


@pytest.mark.parametrize("end", ["kill", "exec"])
def test_the_file_comes_after_an_end_that_nobody_sees(
    end: str, program: Path, tmp_path: Path, plan_cache: Path
) -> None:
    output = tmp_path / "trace.json"
    done = drop_in(program, plan_cache, end, OUTPUT=str(output))
    assert done.status == (-signal.SIGKILL if end == "kill" else 0)
    limit = monotonic() + 30
    while not output.exists() and monotonic() < limit:
        sleep(0.05)
    assert len(calls(json.loads(output.read_text()), "fibonacci")) == 67


def test_variables(program: Path, tmp_path: Path, plan_cache: Path) -> None:
    def run(**variables: str) -> tuple[dict[str, Any], str, Outcome]:
        output = tmp_path / "trace.json"
        output.unlink(missing_ok=True)
        done = drop_in(program, plan_cache, OUTPUT=str(output), **variables)
        text = output.read_text() if output.exists() else "{}"
        return json.loads(text), text, done

    data, text, _ = run(CAPTURE_ARGS="1", PRETTY_JSON="0")
    assert text.count("\n") == 1
    first = calls(data, "add")[0]
    assert [(value["name"], value["type"], value["value"]) for value in first["arguments"]] in (
        [("a", "int", 20), ("b", "int", 11)],
        [("a", "int", 1), ("b", "int", 2)],
    )
    assert {node["return_value"]["value"] for node in calls(data, "add")} == {42, 5}
    data, text, _ = run(MAX_DEPTH="3")
    assert text.count("\n") > 100
    assert {node["call_depth"] for node in calls(data, "fibonacci")} == {1, 2}
    assert not calls(data, "add")[0]["arguments"]
    data, _, done = run(ENABLED="0")
    assert (data, done.output, done.status) == ({}, "42 21\n", 3)
    _, _, done = run(DEBUG="1")
    assert f"callscope: wrote {tmp_path / 'trace.json'}" in done.errors
    done = drop_in(program, plan_cache)
    assert calls(json.loads(program.with_name("program.json").read_text()), "main")
    done = drop_in(program, plan_cache, OUTPUT=str(tmp_path / "missing" / "trace.json"))
    assert (done.output, done.status) == ("42 21\n", 3)
    assert "set CALLTRACE_OUTPUT" in done.errors


def test_cleanup_writes_at_once(program: Path, tmp_path: Path, plan_cache: Path) -> None:
    output = tmp_path / "trace.json"
    done = drop_in(program, plan_cache, "cleanup", OUTPUT=str(output))
    assert done.output == "42 21\n0\nwritten\n"
    plain = run_plain([program, "cleanup"], env={"CALLTRACE_OUTPUT": "/nowhere"})
    assert plain.output == "42 21\n-1\nnothing\n"
