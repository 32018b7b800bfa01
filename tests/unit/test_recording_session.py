"""The trace directory, and what is never replaced to make it."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from callscope import format as records
from callscope.errors import RecordError, UsageError
from callscope.recording import files as files_module
from callscope.recording.count import count_events
from callscope.recording.directory import default_directory, is_trace, read_header
from callscope.recording.journal import summarise_journal
from callscope.recording.options import RecordOptions
from callscope.recording.session import Session
from callscope.recording.survivors import find_survivors

OPTIONS = RecordOptions(("git", "log"))
MIB = 1 << 20


def make(path: Path, options: RecordOptions = OPTIONS) -> Session:
    session = Session(path, options)
    session.release()
    return session


def test_a_new_trace_describes_itself(tmp_path: Path) -> None:
    session = make(tmp_path / "new" / "git.trace", RecordOptions(("git", "log", "\udcff"), modules=("all",)))
    state = json.loads((session.directory / "session.json").read_text())
    assert state["format"] == "callscope-trace" and state["status"] == "recording"
    assert state["command"] == ["git", "log", "\udcff"]
    assert state["options"]["modules"] == ["all"] and "command" not in state["options"]
    assert set(state["clock"]["start"]) == {"tsc", "monotonic_ns", "realtime_ns"}
    assert state["images"] == state["rejected"] == []
    assert stat.S_IMODE(session.directory.stat().st_mode) == 0o700
    for name in ("session.json", "events", "journal"):
        assert stat.S_IMODE((session.directory / name).stat().st_mode) == 0o600


def test_the_files_are_sparse_and_have_headers(tmp_path: Path) -> None:
    session = make(tmp_path / "t", RecordOptions(("git",), clock="none", max_depth=7))
    header = read_header(session.events)
    assert (
        header["magic"] == records.EVENTS_MAGIC
        and header["features"] == records.FEATURE_NO_CLOCK | records.FEATURE_SCRIPTS
    )
    assert header["chunk_limit"] * records.CHUNK_BYTES == session.events.stat().st_size
    assert header["max_depth"] == 7 and header["next_chunk"] == 1 and header["next_process"] == 0
    journal = np.fromfile(session.directory / "journal", records.JOURNAL_HEADER, 1)[0]
    assert journal["magic"] == records.JOURNAL_MAGIC and journal["tail"] == records.JOURNAL_HEADER_BYTES
    assert sum(path.stat().st_blocks for path in session.directory.iterdir()) * 512 < MIB


def test_a_flight_recorder_is_as_large_as_asked(tmp_path: Path) -> None:
    session = make(tmp_path / "t", RecordOptions(("git",), keep_last=8 * MIB - 1))
    header = read_header(session.events)
    assert header["features"] == records.FEATURE_KEEP_LAST | records.FEATURE_SCRIPTS
    assert header["chunk_bytes"] == 256 << 10
    assert header["chunk_limit"] == 8 * 4 + 1  # chunks and the header


def test_a_file_system_with_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truncate = os.ftruncate

    def limited(descriptor: int, size: int) -> None:
        if size > 100 * MIB:
            raise OSError(27, "File too large")
        truncate(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", limited)
    monkeypatch.setattr(files_module, "LARGEST_EVENTS", 300 * MIB)
    monkeypatch.setattr(records, "JOURNAL_BYTES", MIB)
    assert read_header(make(tmp_path / "t").events)["chunk_limit"] == 75


def test_no_room_is_an_error_and_not_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "LARGEST_EVENTS", 0)
    with pytest.raises(RecordError, match="cannot make the trace"):
        make(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_the_earlier_trace_is_kept_once(tmp_path: Path) -> None:
    for number in range(3):
        session = make(tmp_path / "git.trace", RecordOptions(("git", str(number))))
    assert session.state["command"] == ["git", "2"]
    old = json.loads((tmp_path / "git.trace.old" / "session.json").read_text())
    assert old["command"] == ["git", "1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["git.trace", "git.trace.old"]


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    make(tmp_path / "t")
    assert not (tmp_path / "t.old").exists()


@pytest.mark.parametrize("name", ["t", "t.old"])
def test_what_is_no_trace_is_not_replaced(tmp_path: Path, name: str) -> None:
    make(tmp_path / "t")
    precious = tmp_path / name
    if name == "t":
        (tmp_path / "t").rename(tmp_path / "elsewhere")
    precious.mkdir()
    (precious / "thesis").write_text("precious")
    with pytest.raises(UsageError, match="is no trace"):
        make(tmp_path / "t")
    assert (precious / "thesis").read_text() == "precious"


def test_files_and_links_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    make(tmp_path / "t")
    (tmp_path / "link").symlink_to(tmp_path / "t")
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="is no trace"):
            make(tmp_path / name)


def test_a_trace_being_recorded_is_not_replaced(tmp_path: Path) -> None:
    first = Session(tmp_path / "t", OPTIONS)
    with pytest.raises(UsageError, match="being recorded"):
        Session(tmp_path / "t", OPTIONS)
    first.release()
    make(tmp_path / "t")


def test_a_trace_without_its_description_is_still_one(tmp_path: Path) -> None:
    session = make(tmp_path / "t")
    (session.directory / "session.json").unlink()
    assert is_trace(session.directory)
    (session.directory / "events").write_bytes(b"short")
    assert not is_trace(session.directory)


def test_the_end_is_written_and_the_files_are_cut(tmp_path: Path) -> None:
    session = make(tmp_path / "t")
    session.finish(3, trim=True)
    state = json.loads((session.directory / "session.json").read_text())
    assert state["status"] == "complete" and state["exit_status"] == 3
    assert state["clock"]["end"]["tsc"] > state["clock"]["start"]["tsc"]
    assert session.events.stat().st_size == records.CHUNK_BYTES
    assert (session.directory / "journal").stat().st_size == records.JOURNAL_HEADER_BYTES


def test_files_in_use_are_not_cut(tmp_path: Path) -> None:
    session = make(tmp_path / "t")
    size = session.events.stat().st_size
    session.finish(0, trim=False)
    assert session.events.stat().st_size == size


def test_the_default_name() -> None:
    assert default_directory(("/usr/bin/git", "log")) == Path("git.trace")


def fill_chunk(session: Session, number: int, words: list[int], used: int | None = None) -> None:
    header = np.zeros(1, records.CHUNK_HEADER)
    header["magic"] = records.CHUNK_MAGIC
    events = np.array(words, np.uint32).tobytes()
    header["used"] = header.nbytes + len(events) if used is None else used
    with session.events.open("r+b") as file:
        file.seek(number * records.CHUNK_BYTES)
        file.write(header.tobytes() + events)


def set_header(session: Session, **values: int) -> None:
    header = np.fromfile(session.events, records.EVENTS_HEADER, 1)
    for name, value in values.items():
        header[name] = value
    with session.events.open("r+b") as file:
        file.write(header.tobytes())


ENTRY, EXIT, TAIL, CONTROL, EXTENDED, LANDING = 1, 2, 3, 4, 5, 6


def test_events_are_counted(tmp_path: Path) -> None:
    session = make(tmp_path / "t")
    fill_chunk(session, 1, [0, ENTRY, 9, 9, 0, 0, 0, EXIT, 0, CONTROL, 0, ENTRY, 0, 9, 0, TAIL, 0, LANDING])
    fill_chunk(session, 2, [7, EXTENDED | 3 << 3, 9, 1, 9, 1, 0, ENTRY, 9, 9], used=0)
    set_header(session, next_chunk=3, next_thread=2, lost=5)
    counts = count_events(session.events)
    assert (counts.calls, counts.events, counts.lost, counts.threads) == (2, 5, 5, 2)
    assert counts.exact and not counts.wrapped


def test_torn_chunks_do_not_disturb_the_count(tmp_path: Path) -> None:
    session = make(tmp_path / "t")
    fill_chunk(session, 1, [0, EXIT, 0, ENTRY])  # an ENTRY cut in half
    fill_chunk(session, 2, [0, EXIT, 0, EXTENDED])  # a record of no size
    fill_chunk(session, 3, [0, EXIT, 0, EXTENDED | 1 << 31])  # and of too much
    fill_chunk(session, 4, [0, EXIT], used=1 << 63)
    set_header(session, next_chunk=1 << 40)
    session.events.open("r+b").truncate(6 * records.CHUNK_BYTES - 1)
    assert count_events(session.events).events == 4


def journal_record(kind: int, payload: bytes) -> bytes:
    payload += bytes(-len(payload) % 8)
    head = np.zeros(1, records.JOURNAL_RECORD)
    head["size"], head["kind"] = head.nbytes + len(payload), kind
    return head.tobytes() + payload


def text_payload(text: bytes) -> bytes:
    head = np.zeros(1, records.TEXT_PAYLOAD)
    head["text_bytes"] = len(text)
    return head.tobytes() + text


def test_the_journal_is_summed_up_around_its_holes(tmp_path: Path) -> None:
    module = np.zeros(1, records.MODULE_LOAD)
    module["patch_refused"], module["path_bytes"], module["module_flags"] = 3, 4, records.MODULE_TRACED
    data = (
        journal_record(records.JOURNAL_PROCESS_START, bytes(records.PROCESS_START.itemsize))
        + bytes(24)
        + journal_record(records.JOURNAL_NOTE, text_payload(b"no room"))
        + journal_record(records.JOURNAL_NOTE, text_payload(b"no room"))
        + journal_record(records.JOURNAL_MODULE_LOAD, module.tobytes() + b"/a/b")
        + journal_record(records.JOURNAL_NOTE, b"")
        + np.array([1 << 30, 0], np.uint32).tobytes()
        + journal_record(records.JOURNAL_PROCESS_START, bytes(records.PROCESS_START.itemsize))
    )
    header = np.zeros(1, records.JOURNAL_HEADER)
    header["tail"] = records.JOURNAL_HEADER_BYTES + len(data)
    path = tmp_path / "journal"
    path.write_bytes(header.tobytes().ljust(records.JOURNAL_HEADER_BYTES, b"\0") + data)
    summary = summarise_journal(path)
    assert summary.processes == 2
    assert summary.notes == ["no room"]
    assert summary.refused == {"/a/b": 3} and summary.untraced == []
    path.write_bytes(b"short")
    assert summarise_journal(path).processes == 0


def test_nobody_survives_without_the_file(tmp_path: Path) -> None:
    assert find_survivors(make(tmp_path / "t").events) == []
