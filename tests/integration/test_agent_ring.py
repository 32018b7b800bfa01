"""The agent as a flight recorder: whose chunks are taken, and what their last owners leave in them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from callscope import format as records
from tests.builders.agent_session import CHUNK_CALLS, Session, calls
from tests.builders.compilers import have

pytestmark = pytest.mark.skipif(not have("gcc", "nm", "readelf"), reason="needs gcc and binutils")


def test_the_last_events_are_kept(build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]) -> None:
    program = build("agent_threads", "work")
    with session(program, chunks=4, features=records.FEATURE_KEEP_LAST) as traced:
        traced.run(program[0], "many", str(20 * CHUNK_CALLS))
    (events,) = traced.events().values()
    assert 2 * 2 * CHUNK_CALLS < len(events) <= 3 * 2 * CHUNK_CALLS
    kinds = [event.kind for event in events]
    assert kinds[-1] == "exit" and kinds[:-1].count("entry") in range(len(kinds) // 2 - 1, len(kinds) // 2 + 2)
    assert not traced.header()["lost"]


def test_threads_that_come_and_go_share_the_last_chunks(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "work")
    with session(program, chunks=9, features=records.FEATURE_KEEP_LAST) as traced:
        traced.run(program[0], "churn", "200")
    assert not traced.header()["lost"]
    found = traced.events()
    assert len(found) <= 8 and max(found) == 200
    assert all(calls(events) == 10 for events in found.values())


def test_no_chunk_is_taken_from_a_live_thread(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    program = build("agent_threads", "work")
    with session(program, chunks=4, features=records.FEATURE_KEEP_LAST) as traced:
        traced.run(program[0], "together", "200")
    for events in traced.events().values():
        kinds = [event.kind for event in events]
        assert kinds == ["entry", "exit"] * (len(kinds) // 2)


def test_a_chunk_that_others_used_while_its_claimer_slept_is_wiped(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    """As a thread finds it that claimed chunk 1 first and took it last: the ring went round meanwhile."""
    program = build("agent_processes", "work")
    traced = session(program, chunks=2, features=records.FEATURE_KEEP_LAST)
    header = np.zeros(1, records.CHUNK_HEADER)
    header["magic"], header["flags"], header["used"] = records.CHUNK_MAGIC, 4, traced.chunk_bytes
    stale = np.full((traced.chunk_bytes - header.itemsize) // 4, 0x10000000 | records.EVENT_ENTRY, np.uint32)
    with (traced.directory / "events").open("r+b") as file:
        file.seek(traced.chunk_bytes)
        file.write(header.tobytes() + stale.tobytes())
    with traced:
        traced.run(program[0], "plain")
    (events,) = traced.events().values()
    assert calls(events) == 5


def test_a_chunk_taken_from_an_ended_thread_is_not_closed_for_it(
    build: Callable[..., tuple[Path, Path]], session: Callable[..., Session]
) -> None:
    """The second of three threads takes the only chunk when the first has ended, of which the third takes notice."""
    program = build("agent_threads", "work")
    times = CHUNK_CALLS // 2
    with session(program, chunks=2, features=records.FEATURE_KEEP_LAST) as traced:
        traced.run(program[0], "relay", str(times))
    ((thread, events),) = traced.events().items()
    assert thread == 2
    kinds = [event.kind for event in events]
    assert kinds == ["entry", "exit"] * (len(kinds) // 2)
    assert len(kinds) > times
    assert traced.header()["lost"] > 2 * times
