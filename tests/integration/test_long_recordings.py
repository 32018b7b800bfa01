"""Long recordings: finished events are compressed while the program runs, and read as if they were not; limits hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import callscope
from callscope import format as records
from callscope.errors import TraceError, UsageError
from callscope.packing import pack, unpack
from callscope.recording import archive as archive_module
from callscope.recording.compact import compact
from callscope.recording.directory import hold, read_header
from callscope.recording.options import RecordOptions
from callscope.recording.pack import Packer
from callscope.recording.session import Session
from callscope.trace.open import open_trace
from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.disks import small_disk
from tests.builders.tracing import tool_environment

MAIN = [sys.executable, "-m", "callscope"]
MIB = 1 << 20
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("churn") / "churn"
    return compile_program([TARGETS / "churn.c"], output, ["-O1", "-pthread"], "gcc" if have("gcc") else "zig")


@pytest.fixture
def run(tmp_path: Path, plan_cache: Path) -> Run:
    """Runs callscope in the test's directory."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [*MAIN, *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path, env=tool_environment(plan_cache), capture_output=True, text=True, timeout=100
        )

    return call


@pytest.fixture(scope="module")
def recorded(churn: Path, tmp_path_factory: pytest.TempPathFactory, plan_cache: Path) -> Path:
    """A trace of several chunks and threads."""
    trace = tmp_path_factory.mktemp("recorded") / "t.trace"
    command = [*MAIN, "record", "-q", "-o", str(trace), str(churn), "paced", "2"]
    assert subprocess.run(command, env=tool_environment(plan_cache), timeout=100).returncode == 5
    return trace


READERS = (["report"], ["tree", "--depth", "4", "--limit", "300"], ["calls", "--format", "json"], ["graph"],
           ["stacks"], ["export", "--to", "folded", "-o", "-"], ["info", "--threads"])  # fmt: skip


def answers(run: Run, trace: Path) -> list[str]:
    """What every reader says of a trace."""
    done = [run(word, trace, *rest) for word, *rest in READERS]
    assert all(answer.returncode in (0, 1) for answer in done)
    return [answer.stdout + answer.stderr for answer in done]


def test_a_compact_trace_says_the_same(recorded: Path, run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "t.trace"
    shutil.copytree(recorded, trace)
    before, size = answers(run, trace), disk(trace / "events")
    done = run("compact", trace)
    assert done.returncode == 0 and "MiB before" in done.stderr, done.stderr
    assert disk(trace / "events") + disk(trace / "packed") < size / 4
    assert answers(run, trace) == before
    assert (trace / "packed").stat().st_mode & 0o777 == 0o600
    index = open_trace(trace).events.chunks
    assert len(index) and index["packed"].all()
    again = run("compact", trace)
    assert again.returncode == 0 and (trace / "packed").stat().st_size < size / 4
    assert run("report", trace).stdout == before[0]


def disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_trace_cut_off_while_it_was_compressed_says_the_same(recorded: Path, run: Run, tmp_path: Path) -> None:
    """As when the power fails: packed already, and not yet taken out of the events."""
    trace = tmp_path / "t.trace"
    shutil.copytree(recorded, trace)
    before = run("report", trace).stdout
    events = (trace / "events").read_bytes()
    compact(trace)
    (trace / "events").write_bytes(events)
    opened = open_trace(trace)
    assert not opened.events.chunks["packed"].any() and not opened.warnings
    assert run("report", trace).stdout == before


def test_what_is_being_recorded_is_not_compressed(recorded: Path, tmp_path: Path) -> None:
    guard = hold(recorded)
    try:
        with pytest.raises(UsageError, match="is being recorded"):
            compact(recorded)
    finally:
        os.close(guard)
    with pytest.raises(UsageError, match="is no trace"):
        compact(tmp_path)


def test_events_are_packed_while_the_program_runs(churn: Path, run: Run, tmp_path: Path, plan_cache: Path) -> None:
    """With the archive told to begin at 4 MB, as it does at 256."""
    code = (
        "import sys\nfrom callscope.recording import archive\nfrom callscope.cli.main import main\n"
        "archive.BEGIN = 4 << 20\nsys.exit(main())"
    )
    trace = tmp_path / "t.trace"
    words = [sys.executable, "-c", code, "record", "-o", str(trace), str(churn), "paced", "20"]
    done = subprocess.run(words, env=tool_environment(plan_cache), capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("done\n", 5)
    bursts = 20 * 10 * 500
    with callscope.open(trace) as tables:
        counts = dict(tables.sql("SELECT function, count(*) FROM calls GROUP BY function").fetchall())
    assert (counts["burst"], counts["work"]) == (bursts, 10 * bursts)
    assert f"t.trace: {sum(counts.values()):,} calls" in done.stderr
    opened = open_trace(trace)
    packed = opened.events.chunks["packed"] > 0
    assert packed.sum() > len(packed) / 3 and not opened.warnings
    assert disk(trace / "events") < (len(packed) - packed.sum() + 40) * MIB


def test_recording_stops_at_its_size(churn: Path, run: Run, tmp_path: Path) -> None:
    done = run("record", "--max-size", "4M", "--no-compress", "-o", "t", churn, "paced", "15")
    assert (done.stdout, done.returncode) == ("done\n", 5)
    assert "recording stopped after" in done.stderr and "--max-size was reached; the program went on" in done.stderr
    assert disk(tmp_path / "t" / "events") <= 5 * MIB
    assert read_header(tmp_path / "t" / "events")["stopped"] == records.STOP_SIZE
    info = json.loads(run("info", "t", "--format", "json").stdout)
    assert any("the size that --max-size allows" in warning for warning in info["warnings"])
    assert info["calls"] > 100_000


def test_more_fits_into_a_size_when_it_is_packed(tmp_path: Path) -> None:
    """Agents may claim as many chunks as there is room for besides what was packed."""
    session = Session(tmp_path / "t", RecordOptions(("true",), max_size=8 * MIB))
    assert read_header(session.events)["allowed"] == 9
    header = np.zeros((), records.CHUNK_HEADER)
    header["magic"], header["process"], header["thread"], header["used"] = records.CHUNK_MAGIC, 1, 1, MIB
    start = records.EVENTS_HEADER.fields["next_chunk"][1]  # type: ignore[index]
    with session.events.open("r+b") as file:
        for number in range(1, 9):
            header["sequence"], header["flags"] = number, number == 8  # a thread still writes to the last
            file.seek(number * MIB)
            file.write(header.tobytes() + bytes([number] * (MIB - header.nbytes)))
        file.seek(start)
        file.write((9).to_bytes(8, "little"))
    archive = archive_module.Archive(session.directory, 8 * MIB)
    with archive:
        deadline = time.monotonic() + 30
        while disk(session.events) > 2 * MIB and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
    archive.close()
    session.release()
    assert archive.packed == {1, 2, 3, 4, 5, 6, 7} and disk(session.events) <= MIB + 8192
    assert 8 + 6 <= read_header(session.events)["allowed"] <= 8 + 8
    opened = open_trace(session.directory)
    buffer = np.zeros(MIB, np.uint8)
    with opened.events.open() as reader:
        for chunk in opened.events.chunks:
            assert reader.read(chunk, buffer) == MIB - header.nbytes
            assert (buffer[: MIB - header.nbytes] == chunk["sequence"]).all()


def test_a_full_disk_ends_the_recording_alone(churn: Path, run: Run, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as small:
        filler = small / "filler"
        done = run("record", "-o", small / "t", "sh", "-c", f"head -c 12m /dev/zero > {filler}; exec {churn} paced 10")
        assert (done.stdout, done.returncode) == ("done\n", 5), done.stderr
        assert "the disk was full; the program went on" in done.stderr
        shutil.copytree(small / "t", tmp_path / "copy")
    info = json.loads(run("info", "copy", "--format", "json").stdout)
    assert info["calls"] > 100_000
    assert any("the disk was full" in warning for warning in info["warnings"])


def test_words_are_put_apart_and_together() -> None:
    generator = np.random.default_rng(3)
    for size in (0, 1, 7, 8, 9, 64, 100_001):
        events = generator.integers(0, 256, size, np.uint8)
        packed, checksum = pack(b"head", events)
        found = unpack(b"head", packed, size, checksum)
        assert found is not None and found.tobytes() == events.tobytes()
        for damaged in ((b"heap", size, checksum), (b"head", size, checksum ^ 1), (b"head", size + 1, checksum)):
            assert unpack(damaged[0], packed, *damaged[1:]) is None
        assert not size or unpack(b"head", packed, size - 1, checksum) is None


def test_a_bomb_takes_no_more_than_it_says(tmp_path: Path, recorded: Path) -> None:
    bomb = pa.Codec("zstd").compress(bytes(1 << 28), asbytes=True)
    header = np.zeros((), records.CHUNK_HEADER)
    header["magic"], header["process"], header["thread"], header["used"] = records.CHUNK_MAGIC, 1, 1, 0
    trace = tmp_path / "t"
    for event_bytes in (1000, (1 << 32) - 1, MIB - 64):
        shutil.rmtree(trace, ignore_errors=True)
        shutil.copytree(recorded, trace)
        record = np.zeros((), records.PACKED_CHUNK)
        record["magic"], record["bytes"], record["event_bytes"] = records.PACKED_CHUNK_MAGIC, len(bomb), event_bytes
        record["checksum"] = zlib.crc32(bomb, zlib.crc32(header.tobytes()))
        Packer(trace / "packed").close()
        with (trace / "packed").open("ab") as file:
            file.write(record.tobytes() + header.tobytes() + bomb)
        opened = open_trace(trace)
        buffer = np.zeros(opened.events.chunk_bytes, np.uint8)
        with opened.events.open() as reader:
            bad = [chunk for chunk in opened.events.chunks if chunk["packed"]]
            assert all(reader.read(chunk, buffer) == 0 for chunk in bad)
        assert any("damaged" in warning for warning in opened.warnings)


@pytest.fixture(scope="module")
def compacted(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed trace of few chunks, to be damaged."""
    trace = tmp_path_factory.mktemp("compacted") / "t.trace"
    shutil.copytree(recorded, trace)
    with (trace / "events").open("r+b") as file:
        file.truncate(3 * MIB)
    compact(trace)
    return trace


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6), st.floats(0.01, 1), st.booleans()
)
def test_damaged_packed_files_are_read_as_far_as_they_go(
    compacted: Path, changes: list[tuple[float, int]], kept: float, at_start: bool
) -> None:
    path = compacted / "packed"
    whole = path.read_bytes()
    data = bytearray(whole[: max(int(len(whole) * kept), 1)])
    for place, value in changes:
        data[int(place * (min(len(data), 300) if at_start else len(data)) * 0.999)] = value
    try:
        path.write_bytes(data)
        opened = open_trace(compacted)
        buffer = np.zeros(opened.events.chunk_bytes, np.uint8)
        with opened.events.open() as reader:
            for chunk in opened.events.chunks:
                assert 0 <= reader.read(chunk, buffer) <= opened.events.chunk_bytes - records.CHUNK_HEADER.itemsize
    except TraceError:
        pass
    finally:
        path.write_bytes(whole)


def test_the_archive_leaves_what_it_cannot_free(tmp_path: Path) -> None:
    with archive_module.Archive(tmp_path):
        pass
    (tmp_path / "events").write_bytes(b"short")
    with archive_module.Archive(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["events"]
