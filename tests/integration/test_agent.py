"""The agent inside real processes, with plans made by hand: every call of `work` is there, once, in the right process.

The planner and the recorder have no part in this; what is wrong here is the agent's.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from callscope import format as records
from callscope.patching.planfile import header_checksum
from tests.builders.agent_session import CHUNK_CALLS, Session, calls
from tests.builders.compilers import have
from tests.builders.disks import small_disk
from tests.builders.small_plan import small_plan

pytestmark = [
    pytest.mark.skipif(not have("gcc", "nm", "readelf"), reason="needs gcc and binutils"),
]

Traced = Callable[..., Session]


def by_process(session: Session) -> dict[int, int]:
    """Process number -> calls of `work`."""
    process = {r.thread: r.process for r in session.journal(records.JOURNAL_THREAD_START)}
    found: Counter[int] = Counter()
    for thread, events in session.events().items():
        found[process[thread]] += calls(events)
    return dict(found)


def causes(session: Session) -> list[tuple[int, int]]:
    """Parent and cause of the processes, in order of their numbers."""
    starts = sorted(session.journal(records.JOURNAL_PROCESS_START), key=lambda record: record.process)
    assert [record.process for record in starts] == list(range(1, len(starts) + 1))
    return [(record.payload["parent_process"], record.payload["cause"]) for record in starts]


LAUNCH, EXEC, FORK = (0, records.CAUSE_LAUNCH), records.CAUSE_EXEC, records.CAUSE_FORK


@pytest.mark.parametrize(
    ("scene", "expected", "tree"),
    [
        ("plain", {1: 5}, [LAUNCH]),
        ("fork", {1: 11, 2: 20}, [LAUNCH, (1, FORK)]),
        ("raw-fork", {1: 11, 2: 20}, [LAUNCH, (1, FORK)]),
        ("thread-fork", {1: 11, 2: 20}, [LAUNCH, (1, FORK)]),
        ("vfork", {1: 23}, [LAUNCH]),
        ("vfork-first", {1: 10}, [LAUNCH]),
        ("spawn", {1: 10, 2: 5}, [LAUNCH, (1, records.CAUSE_LAUNCH)]),
        ("exec", {1: 12, 2: 5}, [LAUNCH, (1, EXEC)]),
        ("fork-exec", {1: 10, 2: 2, 3: 5}, [LAUNCH, (1, FORK), (2, EXEC)]),
        ("fork-thread", {1: 10, 2: 420}, [LAUNCH, (1, FORK)]),
        ("daemon", {2: 20}, [LAUNCH, (1, FORK)]),
        ("abort", {1: 1000}, [LAUNCH]),
        ("kill", {1: 1000}, [LAUNCH]),
    ],
)
def test_every_process_has_its_calls(
    build: Callable[..., tuple[Path, Path]],
    session: Callable[..., Session],
    scene: str,
    expected: dict[int, int],
    tree: list[tuple[int, int]],
) -> None:
    program = build("agent_processes", "work")
    with session(program) as traced:
        done = traced.run(program[0], scene, check=False)
    assert done.returncode == {"abort": -signal.SIGABRT, "kill": -signal.SIGKILL}.get(scene, 0)
    assert by_process(traced) == expected
    assert causes(traced) == tree
    assert traced.header()["lost"] == (6 if scene == "vfork-first" else 0)  # a child without a number of its own


def test_generations_that_fork_before_their_first_call(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_processes", "work")
    with session(program) as traced:
        traced.run(program[0], "chain")
    assert sorted(by_process(traced).values()) == [1] * 6 + [6]


def test_forks_while_other_threads_register_and_record(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_processes", "work")
    with session(program) as traced:
        traced.run(program[0], "fork-load")
    found = by_process(traced)
    assert [found[process] for process in range(2, 102)] == [5] * 100


def test_a_process_that_ends_well_says_so(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_processes", "work")
    with session(program) as traced:
        traced.run(program[0], "plain")
        traced.run(program[0], "kill", check=False)
    assert [record.process for record in traced.journal(records.JOURNAL_PROCESS_END)] == [1]


def test_200_threads_at_a_time(build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]) -> None:
    program = build("agent_threads", "work")
    with session(program) as traced:
        traced.run(program[0], "together", "200")
    counts = sorted(calls(events) for events in traced.events().values())
    assert counts == [100 + i for i in range(200)]


def test_threads_one_after_another_share_memory_and_end(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "work")
    with session(program) as traced:
        traced.run(program[0], "churn", "300")
    assert sorted(calls(events) for events in traced.events().values()) == [10] * 300
    ended = traced.journal(records.JOURNAL_THREAD_END)
    assert len({record.thread for record in ended}) == len(ended) == 300
    starts = traced.journal(records.JOURNAL_THREAD_START)
    names = {record.thread: record.rest for record in starts}
    assert len(names) == 300
    assert all(name.startswith(b"worker") for name in names.values())
    created = traced.journal(records.JOURNAL_THREAD_CREATED)
    assert {record.thread for record in created} == set(names)


def test_signals_on_another_stack_in_the_middle_of_the_hot_path(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "work")
    with session(program) as traced:
        done = traced.run(program[0], "signals", "150")
    (events,) = traced.events().values()
    assert calls(events) == int(done.stdout)
    assert len({event.sp >> 16 for event in events}) >= 2


def test_asynchronous_cancellation_anywhere(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "work")
    with session(program) as traced:
        traced.run(program[0], "cancel", "100")
    assert len(traced.journal(records.JOURNAL_THREAD_START)) == 100


def test_times_never_go_back_and_are_of_this_run(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "work")
    with session(program) as traced:
        traced.run(program[0], "many", "1000")
    (events,) = traced.events().values()
    times = np.array([event.tsc for event in events])
    assert (np.diff(times) >= 0).all()
    start, end = traced.journal(records.JOURNAL_PROCESS_START)[0], traced.journal(records.JOURNAL_PROCESS_END)[0]
    assert start.tsc < times[0] < times[-1] < end.tsc


def test_without_clock_all_times_are_zero(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "work")
    with session(program, features=records.FEATURE_NO_CLOCK) as traced:
        traced.run(program[0], "many", "1000")
    (events,) = traced.events().values()
    assert calls(events) == 1000
    assert {event.tsc & 0xFFFFFFFF for event in events} == {0}


@pytest.mark.parametrize("features", [0, records.FEATURE_NO_CLOCK])
def test_depth_limit(build: Callable[..., tuple[Path, Path]], session: Callable[..., Session], features: int) -> None:
    program = build("agent_threads", "deep", "work")
    with session(program, max_depth=5, features=features) as traced:
        traced.run(program[0], "deep", "50")
    (events,) = traced.events().values()
    assert [event.kind for event in events] == ["entry"] * 5 + ["exit"] * 5


def test_depth_limit_with_frames_left_by_longjmp(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "deep", "leave")
    with session(program, max_depth=2) as traced:
        traced.run(program[0], "jumps", "1000")
    (events,) = traced.events().values()
    kinds = [(event.kind, event.function) for event in events]
    assert kinds == [("entry", 2)] * 1000 + [("entry", 1)] * 2 + [("exit", -1)] * 2


def test_depth_limit_counts_every_stack_for_itself(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "deep")
    with session(program, max_depth=3) as traced:
        traced.run(program[0], "coroutines", "100")
    (events,) = traced.events().values()
    assert [event.kind for event in events] == (["entry"] * 3 + ["exit"] * 3) * 200


def test_chunks_follow_one_another(build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]) -> None:
    program = build("agent_threads", "work")
    times = 5 * CHUNK_CALLS
    with session(program) as traced:
        traced.run(program[0], "many", str(times))
    (events,) = traced.events().values()
    assert calls(events) == times
    assert [event.kind for event in events[:4]] == ["entry", "exit", "entry", "exit"]


def test_recording_stops_where_the_file_ends(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "work")
    times = 5 * CHUNK_CALLS
    with session(program, chunks=3) as traced:
        traced.run(program[0], "many", str(times))
    (events,) = traced.events().values()
    assert 3 * CHUNK_CALLS < len(events) < 2 * times
    assert traced.header()["stopped"] == records.STOP_DISK and traced.header()["stopped_tsc"] > events[-1].tsc


def test_libraries_that_come_and_go(build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]) -> None:
    program = build("agent_modules", "work")
    library = build("agent_library", "library_work", shared=True, delta=-0x4000000)
    with session(program, library) as traced:
        traced.run(program[0], "load", library[0])
    loads = [r for r in traced.journal(records.JOURNAL_MODULE_LOAD) if b"agent_library" in r.rest]
    unloads = traced.journal(records.JOURNAL_MODULE_UNLOAD)
    assert len(loads) == len(unloads) == 50
    assert all(load.payload["patch_count"] == 2 for load in loads)
    (events,) = traced.events().values()
    assert calls(events, function=Session.id_base(1)) == 150  # constructor, use, destructor
    lives = [(load.tsc, unload.tsc) for load, unload in zip(loads, unloads, strict=True)]
    for (start, end), calls_of_one in zip(lives, np.array([e.tsc for e in events]).reshape(50, 6), strict=True):
        assert start < calls_of_one[0] and calls_of_one[-1] < end


def test_library_in_another_namespace(build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]) -> None:
    program = build("agent_modules", "work")
    library = build("agent_library", "library_work", shared=True, delta=-0x4000000)
    with session(program, library) as traced:
        traced.run(program[0], "load-elsewhere", library[0])
    if not any(b"agent_library" in record.rest for record in traced.journal(records.JOURNAL_MODULE_LOAD)):
        pytest.skip("this loader does not list other namespaces (glibc before 2.35)")
    (events,) = traced.events().values()
    assert calls(events, function=Session.id_base(1)) == 3


@pytest.mark.parametrize("scene", ["no-descriptors", "sandbox", "lock-memory", "chroot"])
def test_programs_that_take_things_away(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session], scene: str
) -> None:
    program = build("agent_modules", "work")
    times = 3 * CHUNK_CALLS
    with session(program) as traced:
        done = traced.run(program[0], scene, str(times), check=False)
    if done.returncode == 77:
        pytest.skip("not permitted here")
    assert done.returncode == 0
    (events,) = traced.events().values()
    assert calls(events) == times


def test_limited_address_space(build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]) -> None:
    program = build("agent_modules", "work")
    with session(program, chunks=65536) as traced:
        traced.run(program[0], "limited", "1000")
    assert by_process(traced)[2] == 1000
    assert any(b"address space" in record.rest for record in traced.journal(records.JOURNAL_NOTE))


@pytest.mark.parametrize("state", ["missing", "closed", "hangs up"])
def test_program_runs_untraced_when_the_recorder_is_gone(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session], state: str
) -> None:
    program = build("agent_threads", "work")
    traced = session(program)
    if state == "closed":
        with traced:
            pass
    if state == "hangs up":
        traced.plans = {}
        traced.hang_up = True
        with traced:
            traced.run(program[0], "many", "10")
    else:
        traced.run(program[0], "many", "10")
    assert not traced.events()
    assert len(traced.journal(records.JOURNAL_NOTE)) == 1
    assert len(traced.journal(records.JOURNAL_MODULE_LOAD)) >= 3


def test_program_runs_without_a_session(build: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    program, _ = build("agent_threads", "work")
    for directory in ("relative", str(tmp_path / "nothing"), str(tmp_path)):
        environment = Session.preload() | {"CALLSCOPE_SESSION": directory}
        subprocess.run([program, "many", "10"], env=os.environ | environment, check=True)


@pytest.mark.parametrize("damage", ["magic", "version", "patch_count", "region_bytes", "image_span", "text_offset"])
def test_damaged_plans_are_refused(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session], damage: str, tmp_path: Path
) -> None:
    program, plan = build("agent_threads", "work")
    data = bytearray(plan.read_bytes())
    header = np.frombuffer(data, records.PLAN_HEADER, 1)
    header[damage][0] = int(header[damage][0]) * 3 + 12345
    header["checksum"] = header_checksum(header)
    broken = tmp_path / "broken.plan"
    broken.write_bytes(data)
    with session((program, broken)) as traced:
        traced.run(program, "many", "10")
    assert not traced.events()
    assert len(traced.journal(records.JOURNAL_NOTE)) == 1


def test_every_prefix_and_many_mutations_of_a_plan(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session], tmp_path: Path
) -> None:
    """Header and tables damaged at random: the program may be traced or not, but it runs as ever."""
    program, plan = build("agent_threads", "work")
    good = plan.read_bytes()
    random = np.random.default_rng(5)
    header = records.PLAN_HEADER.itemsize
    region = int(np.frombuffer(good, records.PLAN_HEADER, 1)["region_offset"][0])
    broken = tmp_path / "broken.plan"
    with session((program, broken)) as traced:
        for trial in range(60):
            data = bytearray(good)
            if trial < 20:
                del data[int(random.integers(0, region)) :]
            else:
                for _ in range(1 + trial % 3):
                    data[int(random.integers(8, header))] ^= 1 << int(random.integers(8))
            broken.write_bytes(data)
            traced.run(program, "many", "10")


def test_changed_text_is_left_alone(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session], tmp_path: Path
) -> None:
    """A patch whose old bytes are not there: its function stays as it is, the others are traced."""
    program, plan = build("agent_threads", "deep", "work")
    data = bytearray(plan.read_bytes())
    header = np.frombuffer(data, records.PLAN_HEADER, 1)[0]
    patches = np.frombuffer(data, records.PATCH, int(header["patch_count"]), int(header["patch_offset"]))
    changed = tmp_path / "changed.plan"
    patches["old"][np.flatnonzero(patches["function"] == 0)[0], 0] ^= 0xFF
    changed.write_bytes(data)
    with session((program, changed)) as traced:
        traced.run(program, "deep", "10")
        traced.run(program, "many", "10")
    load = traced.journal(records.JOURNAL_MODULE_LOAD)[0].payload
    assert (load["patch_count"], load["patch_refused"]) == (2, 1)
    (events,) = traced.events().values()
    assert calls(events, function=2) == 10


def test_chosen_functions_only(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session], tmp_path: Path
) -> None:
    program = build("agent_threads", "deep", "work")
    chosen = tmp_path / "chosen"
    chosen.write_bytes(b"\x01")
    with session(program, chosen=chosen) as traced:
        traced.run(program[0], "many", "10")
        traced.run(program[0], "deep", "9")
    (events,) = traced.events().values()
    assert calls(events, function=1) == 10


def test_trampolines_elsewhere_when_their_place_is_taken(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session], tmp_path: Path
) -> None:
    program, _ = build("agent_threads", "work")
    plan = small_plan(program, ["work"], tmp_path / "taken.plan", delta=0x1000).path  # over the program itself
    with session((program, plan)) as traced:
        traced.run(program, "many", "10")
    load = traced.journal(records.JOURNAL_MODULE_LOAD)[0].payload
    assert not load["base"] <= load["region"] < load["base"] + load["span"]
    (events,) = traced.events().values()
    assert calls(events) == 10


def test_full_disk_stops_the_recording_and_nothing_else(
    build: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    program = build("agent_threads", "work")
    with small_disk(tmp_path / "disk", "3m") as disk:
        traced = Session(disk / "trace", dict([program]))
        times = 30 * CHUNK_CALLS
        with traced:
            traced.run(program[0], "many", str(times))
        (events,) = traced.events().values()
        assert 2 * CHUNK_CALLS < len(events) < 2 * times
        assert traced.header()["stopped"] == records.STOP_DISK
        assert traced.header()["lost"] < 4, "what is not recorded any more goes past the agent"


def test_children_are_left_alone_when_asked(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_modules", "work")
    with session(program) as traced:
        done = traced.run(program[0], "environment", variables={"CALLSCOPE_FOLLOW": "0"})
        followed = traced.run(program[0], "environment")
        preload = f"/nowhere.so:{Session.preload()['LD_PRELOAD']}"
        other = traced.run(program[0], "environment", variables={"CALLSCOPE_FOLLOW": "0", "LD_PRELOAD": preload})
    assert "CALLSCOPE" not in done.stdout and "LD_PRELOAD" not in done.stdout
    assert "CALLSCOPE_SESSION" in followed.stdout
    assert "LD_PRELOAD=/nowhere.so\n" in other.stdout
    assert done.stdout.splitlines() == [
        x for x in followed.stdout.splitlines() if "CALLSCOPE" not in x and "LD_PR" not in x
    ]
