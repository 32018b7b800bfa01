"""A real program's trace in formats of other tools, read by their code or definitions: sums equal the report's."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from callscope.cli.main import main
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import tool_environment

INCLUDE = Path(__file__).resolve().parents[2] / "native/include"


def run(cache: Path, *arguments: object) -> str:
    """What a callscope command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "callscope", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=tool_environment(cache),
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, plan_cache: Path) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    flags = ["-g", "-O2", "-pthread", f"-I{INCLUDE}"]
    program = compile_program([TARGETS / "exported.c"], directory / "exported", flags)
    run(plan_cache, "record", "--args", "-o", directory / "exported.trace", program)
    return directory / "exported.trace"


@pytest.fixture(scope="module")
def report(trace: Path, plan_cache: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads(run(plan_cache, "report", "--format", "json", trace))
    return {row["function"]: row for row in rows}


@pytest.fixture(scope="module")
def markers(trace: Path, plan_cache: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(plan_cache, "info", "--format", "json", trace))["markers"]
    assert len(found) == 4
    return found


def exported(trace: Path, cache: Path, target: str, file: Path) -> Path:
    run(cache, "export", trace, "--to", target, "-o", file)
    return file


class Slices:
    """Sums up calls from their entries and exits, a stack a track."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.stretches: Counter[str] = Counter()
        self._open: dict[object, list[list[Any]]] = {}

    def enter(self, track: object, name: str, time: int) -> None:
        self._open.setdefault(track, []).append([name, time, 0])

    def leave(self, track: object, time: int) -> str:
        stack = self._open[track]
        name, begin, inner = stack.pop()
        assert time >= begin
        self.calls[name] += 1
        self.stretches[name] += 1
        self.own[name] += time - begin - inner
        if all(other[0] != name for other in stack):
            self.total[name] += time - begin
        if stack:
            stack[-1][2] += time - begin
            self.stretches[stack[-1][0]] += 1
        return str(name)

    def check(self, report: dict[str, dict[str, Any]]) -> None:
        assert not any(self._open.values())
        assert self.calls == {name: row["calls"] for name, row in report.items()}
        for name, row in report.items():  # own time is rounded to nanoseconds: there once a call, here once a stretch
            assert abs(self.own[name] - row["self_ns"]) <= self.stretches[name]
        tail_calls = {"jumper"}  # a timeline shows what it jumped to behind it
        assert {name: self.total[name] for name in report.keys() - tail_calls} == {
            name: row["total_ns"] for name, row in report.items() if name not in tail_calls
        }


def test_perfetto(
    trace: Path, plan_cache: Path, report: dict[str, Any], markers: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Read with Perfetto's own message definitions."""
    proto = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="perfetto is not installed")
    whole = proto.Trace()
    whole.ParseFromString(exported(trace, plan_cache, "perfetto", tmp_path / "a.pftrace").read_bytes())
    assert {packet.trusted_packet_sequence_id for packet in whole.packet} == {1}
    assert whole.packet[0].sequence_flags == proto.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    assert not has_unknown(whole.packet[0]) and not any(has_unknown(packet.track_event) for packet in whole.packet)
    processes: dict[int, Any] = {}
    tracks: dict[int, Any] = {}
    names: dict[int, str] = {}
    words: dict[int, str] = {}
    places: dict[int, tuple[str, int]] = {}
    slices = Slices()
    instants: list[tuple[str, str, int]] = []
    flows: dict[int, list[tuple[str, int]]] = {}
    annotated: dict[str, list[dict[str, Any]]] = {}
    last: dict[int, int] = {}
    for packet in whole.packet:
        if packet.HasField("interned_data"):
            names |= {entry.iid: entry.name.decode() if isinstance(entry.name, bytes) else entry.name
                      for entry in packet.interned_data.event_names}  # fmt: skip
            words |= {entry.iid: entry.name for entry in packet.interned_data.debug_annotation_names}
            places |= {
                entry.iid: (entry.file_name, entry.line_number) for entry in packet.interned_data.source_locations
            }
        if packet.HasField("track_descriptor"):
            described = packet.track_descriptor
            assert described.uuid not in tracks.keys() | processes.keys()
            if described.HasField("thread"):
                assert described.parent_uuid in processes
                tracks[described.uuid] = described.thread
            else:
                processes[described.uuid] = described.process
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        tid = tracks[event.track_uuid].tid
        for flow in event.flow_ids:
            flows.setdefault(flow, []).insert(0, ("from", tid))
        for flow in event.terminating_flow_ids:
            flows.setdefault(flow, []).append(("to", tid))
        if event.type == proto.TrackEvent.TYPE_INSTANT:
            instants.append((event.categories[0], event.name, packet.timestamp))
            continue
        assert packet.sequence_flags == proto.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        assert packet.timestamp >= last.get(event.track_uuid, 0)
        last[event.track_uuid] = packet.timestamp
        values = {words[a.name_iid]: getattr(a, a.WhichOneof("value")) for a in event.debug_annotations}
        if event.type == proto.TrackEvent.TYPE_SLICE_BEGIN:
            name = names[event.name_iid].rpartition("!")[2]
            file, line = places.get(event.source_location_iid, (None, None))
            assert (file, line) == (report[name]["file"], report[name]["line"])
            slices.enter(event.track_uuid, name, packet.timestamp)
        else:
            assert event.type == proto.TrackEvent.TYPE_SLICE_END
            name = slices.leave(event.track_uuid, packet.timestamp)
        annotated.setdefault(name, []).append(values)
    slices.check(report)
    assert [process.process_name.endswith("exported") for process in processes.values()] == [True]
    assert len(tracks) == 5
    noted = [(text, time) for kind, text, time in instants if kind == "marker"]
    assert noted == [(marker["text"], marker["time_ns"]) for marker in markers]
    main = next(thread.tid for thread in tracks.values() if thread.tid == thread.pid)
    assert sum(kind == "thread" for kind, _, _ in instants) == 4
    assert all([side for side, _ in ends] == ["from", "to"] for ends in flows.values())
    made = [(ends[0][1], ends[1][1]) for ends in flows.values()]
    outer = {child for parent, child in made if parent == main}
    assert len(made) == 4 and len(outer) == 2
    assert {parent for parent, _ in made} == {main} | outer
    (given, result) = annotated["half"]
    assert given == {"value": "5.0", "name": '"five"', "place": given["place"]}
    assert result == {"result": "2.5"}
    assert {"number": 12} in annotated["fib"] and {"result": 0} in annotated["leaf"]


def has_unknown(message: Any) -> bool:
    from google.protobuf.unknown_fields import UnknownFieldSet

    return len(UnknownFieldSet(message)) > 0


def table(value: dict[str, Any], columns: str) -> list[dict[str, Any]]:
    """The rows of one of the profiler's tables, which has these columns and no others."""
    names = columns.split()
    assert set(value) == {*names, "length"}
    assert {len(value[name]) for name in names} == {value["length"]}
    return [dict(zip(names, row, strict=True)) for row in zip(*(value[name] for name in names), strict=True)]


def test_firefox(
    trace: Path, plan_cache: Path, report: dict[str, Any], markers: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Read strictly, as version 60 of the processed profile format has it."""
    packed = exported(trace, plan_cache, "firefox", tmp_path / "a.json.gz").read_bytes()
    profile = json.loads(gzip.decompress(packed))
    assert profile.keys() == {"meta", "libs", "threads", "shared"}
    meta, shared = profile["meta"], profile["shared"]
    assert meta["preprocessedProfileVersion"] == 60 and meta["symbolicated"] is True
    assert [category["name"] for category in meta["categories"]] == ["Other", "exported"]
    assert all(category["subcategories"] == ["Other"] for category in meta["categories"])
    assert [lib["name"] for lib in profile["libs"]] == ["exported"] and profile["libs"][0]["path"].startswith("/")
    texts = shared.pop("stringArray")
    assert len(set(texts)) == len(texts)
    resources = table(shared.pop("resourceTable"), "type name host lib")
    sources = table(shared.pop("sources"), "id filename")
    functions = table(shared.pop("funcTable"), "name isJS relevantForJS resource source lineNumber columnNumber")
    frames = table(
        shared.pop("frameTable"),
        "address inlineDepth category subcategory func nativeSymbol innerWindowID line column",
    )
    stacks = table(shared.pop("stackTable"), "frame prefix")
    assert table(shared.pop("nativeSymbols"), "libIndex address name functionSize") == []
    assert shared == {}
    assert [texts[resource["name"]] for resource in resources] == ["exported"]
    assert all(stack["prefix"] is None or stack["prefix"] < at for at, stack in enumerate(stacks))

    def name_of(stack: int) -> str:
        frame = frames[stacks[stack]["frame"]]
        function = functions[frame["func"]]
        name: str = texts[function["name"]]
        assert frame["address"] == report[name]["address"] and function["lineNumber"] == report[name]["line"]
        file = None if function["source"] is None else texts[sources[function["source"]]["filename"]]
        assert file == report[name]["file"] and meta["categories"][frame["category"]]["name"] == "exported"
        return name

    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    stretches: Counter[str] = Counter()
    noted: list[tuple[str, int]] = []
    assert len({thread["tid"] for thread in profile["threads"]}) == 5
    for thread in profile["threads"]:
        samples = thread["samples"]
        assert samples.pop("weightType") == "tracing-ms"
        rows = table(samples, "stack time weight")
        for row, following in pairwise(rows):
            assert round((following["time"] - row["time"]) * 1e6) == round(row["weight"] * 1e6) > 0
        assert rows[-1]["stack"] is None
        for row in rows:
            weight, stack = round(row["weight"] * 1e6), row["stack"]
            if stack is not None:
                own[name_of(stack)] += weight
                stretches[name_of(stack)] += 1
            names = set()
            while stack is not None:
                names.add(name_of(stack))
                stack = stacks[stack]["prefix"]
            total.update(dict.fromkeys(names, weight))
        for marker in table(thread["markers"], "data name startTime endTime phase category"):
            assert (marker["phase"], marker["data"]["type"], texts[marker["name"]]) == (0, "Marker", "Marker")
            noted.append((marker["data"]["text"], round(marker["startTime"] * 1e6)))
    assert sorted(noted) == sorted((marker["text"], marker["time_ns"]) for marker in markers)
    for name, row in report.items():
        assert abs(own[name] - row["self_ns"]) <= stretches[name]
        if name not in ("jumper", "frame_dummy"):  # what they jumped to stands below them
            assert total[name] == row["total_ns"]


def uftrace(*arguments: object) -> list[str]:
    """What uftrace prints, line by line."""
    if shutil.which("uftrace") is None:
        pytest.skip("uftrace is not installed")
    done = subprocess.run(["uftrace", *map(str, arguments)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_uftrace(trace: Path, plan_cache: Path, report: dict[str, Any], tmp_path: Path) -> None:
    """Read by uftrace."""
    directory = exported(trace, plan_cache, "uftrace", tmp_path / "a.uftrace")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o600}
    slices = Slices()
    for event in json.loads("\n".join(uftrace("dump", "--chrome", "-d", directory)))["traceEvents"]:
        time, thread = round(event["ts"] * 1000), event.get("tid", event["pid"])
        if event["ph"] == "B":
            slices.enter(thread, event["name"], time)
        elif event["ph"] == "E":
            assert slices.leave(thread, time) == event["name"]
    slices.check(report)
    rows = [line.split() for line in uftrace("report", "-d", directory)[2:]]
    assert {row[-1]: int(row[-2]) for row in rows} == {name: row["calls"] for name, row in report.items()}
    assert any("backtrace #0: hit 2" in line for line in uftrace("graph", "-d", directory, "outer"))
    lines = uftrace("replay", "--srcline", "-d", directory)
    assert any(f"main() {{ /* {report['main']['file']}:{report['main']['line']} */" in line for line in lines)


def test_uftrace_takes_many_processes(tmp_path: Path, plan_cache: Path) -> None:
    trace = tmp_path / "bash.trace"
    run(plan_cache, "record", "-o", trace, "bash", "-c", "echo $(echo a; echo b); (exec bash -c 'echo c')")
    report = {row["function"]: row for row in json.loads(run(plan_cache, "report", "--format", "json", trace))}
    directory = exported(trace, plan_cache, "uftrace", tmp_path / "bash.uftrace")
    rows = [line.split() for line in uftrace("report", "-d", directory)[2:]]
    assert {row[5]: int(row[4]) for row in rows} == {name: row["calls"] for name, row in report.items()}
    threads = json.loads(run(plan_cache, "info", "--threads", "--format", "json", trace))
    assert len(list(directory.glob("sid-*.map"))) == 4 and len(threads) == 4


def test_a_directory_replaces_only_what_was_exported(
    trace: Path, plan_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    arguments = ["export", str(trace), "--to", "uftrace", "-o"]
    for more in ([], ["--force"]):
        assert main([*arguments, str(tmp_path / "mine"), *more]) == 2
        assert "mine exists" in capsys.readouterr().err
    assert main([*arguments, "-"]) == 2
    assert "is a directory" in capsys.readouterr().err
    target = tmp_path / "a.uftrace"
    assert main([*arguments, str(target)]) == 0
    assert main([*arguments, str(target)]) == 2
    assert main([*arguments, str(target), "--force"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.uftrace", "mine"]
    assert main([*arguments, str(tmp_path / "none/a")]) == 1
