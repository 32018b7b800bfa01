"""The recorder's answers to agents."""

import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from callscope import format as records
from callscope.binary.elf import read_build_id
from callscope.errors import PlanError
from callscope.patching.cache import PlanFiles
from callscope.recording.launch import traced_environment
from callscope.recording.options import RecordOptions
from callscope.recording.plans import Answer, Module, Plans, is_untraceable
from callscope.recording.rules import Rules
from callscope.recording.scratch import Scratch
from callscope.recording.server import Server, receive
from callscope.recording.session import Session

SHELL = Path("/bin/sh").resolve()
REPORT = {"image": "", "build_id": "", "functions": 3, "seconds": 0.1} | {
    kind: {"patched": 3, "skipped": []}
    for kind in ("entries", "exits", "tail_jumps", "landing_pads", "calls", "returns")
}


class FakePlanner:
    """Stands in for the plan cache: three functions for every image."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, path: str | Path) -> PlanFiles:
        self.asked.append(str(path))
        assert self.gate.wait(10)
        build_id = read_build_id(path)
        stem = self.directory / build_id.hex()
        header = np.zeros(1, records.FUNCTIONS_HEADER)
        header["magic"], header["function_count"] = records.FUNCTIONS_MAGIC, 3
        header["function_offset"] = header.nbytes
        functions = np.zeros(3, records.FUNCTION)
        functions["rva"], functions["bytes"], functions["owner"] = [16, 32, 48], 16, [0, 1, 1]
        stem.with_suffix(".functions").write_bytes(header.tobytes() + functions.tobytes())
        stem.with_suffix(".json").write_text(json.dumps(REPORT))
        plan, listing, report = (stem.with_suffix(f".{name}") for name in ("plan", "functions", "json"))
        return PlanFiles(plan, listing, report, build_id, function_count=3, seconds=0.1, cached=False)


@pytest.fixture
def planner(tmp_path: Path) -> FakePlanner:
    (tmp_path / "cache").mkdir()
    return FakePlanner(tmp_path / "cache")


@pytest.fixture
def make_plans(tmp_path: Path, planner: FakePlanner) -> Callable[..., Plans]:
    def make(**options: tuple[str, ...]) -> Plans:
        chosen = RecordOptions(("sh",), **options)  # type: ignore[arg-type]
        return Plans(Session(tmp_path / "trace", chosen), Rules.of(chosen), planner)

    return make


def state(tmp_path: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads((tmp_path / "trace" / "session.json").read_text())
    return found


def test_an_image_is_planned_once(tmp_path: Path, planner: FakePlanner, make_plans: Callable[..., Plans]) -> None:
    plans = make_plans()
    copy = tmp_path / "another name"
    shutil.copy(SHELL, copy)
    module = Module(str(SHELL), read_build_id(SHELL), is_main=True)
    planner.gate.clear()
    answers: list[Answer | None] = []
    threads = [threading.Thread(target=lambda: answers.append(plans.answer(module))) for _ in range(4)]
    for thread in threads:
        thread.start()
    planner.gate.set()
    for thread in threads:
        thread.join()
    answers.append(plans.answer(Module(str(copy), b"", is_main=True)))
    assert planner.asked == [str(SHELL)]
    expected = Answer(planner.directory / (read_build_id(SHELL).hex() + ".plan"), 1, 3, None)
    assert answers == [expected] * 5
    (image,) = state(tmp_path)["images"]
    assert image["id_base"] == 1 and image["function_count"] == 3 and image["path"] == str(SHELL)
    assert (tmp_path / "trace" / str(image["functions"])).is_file()


def test_every_image_has_ids_of_its_own(planner: FakePlanner, make_plans: Callable[..., Plans]) -> None:
    plans = make_plans(modules=("all",))
    first = plans.answer(Module(str(SHELL), b"", is_main=True))
    second = plans.answer(Module(str(Path("/bin/ls").resolve()), b"", is_main=False))
    assert first is not None and second is not None
    assert (first.id_base, second.id_base) == (1, 4)
    assert [image.id_base for image in plans.images()] == [1, 4]


def test_modules_nobody_wants_are_not_planned(planner: FakePlanner, make_plans: Callable[..., Plans]) -> None:
    plans = make_plans()
    assert plans.answer(Module(str(SHELL), b"", is_main=False)) is None
    assert planner.asked == []


def test_chosen_functions_become_bits(tmp_path: Path, make_plans: Callable[..., Plans]) -> None:
    answer = make_plans(excludes=("0x10",)).answer(Module(str(SHELL), b"", is_main=True))
    assert answer is not None and answer.chosen is not None
    assert answer.chosen.read_bytes() == bytes([0b110])
    assert answer.chosen.parent == tmp_path / "trace" / "plans"


def test_a_module_without_chosen_functions_is_skipped(make_plans: Callable[..., Plans]) -> None:
    assert make_plans(functions=("0x1",)).answer(Module(str(SHELL), b"", is_main=True)) is None


def test_what_cannot_be_planned_is_rejected_once(tmp_path: Path, make_plans: Callable[..., Plans]) -> None:
    def fail(path: str | Path) -> PlanFiles:
        if str(path) == str(SHELL):
            raise PlanError("no code")
        raise ZeroDivisionError("a bug")

    options = RecordOptions(("sh",), modules=("all",))
    plans = Plans(Session(tmp_path / "trace", options), Rules.of(options), fail)
    listing = str(Path("/bin/ls").resolve())
    for path in (str(SHELL), str(SHELL), listing, "/none/such.so", "/lib/gone.so (deleted)"):
        assert plans.answer(Module(path, b"", is_main=False)) is None
    assert plans.answer(Module(str(SHELL), b"other", is_main=False)) is None
    rejected = {str(entry["path"]): str(entry["reason"]) for entry in state(tmp_path)["rejected"]}
    assert set(rejected) == {str(SHELL), listing, "/none/such.so", "/lib/gone.so (deleted)"}
    assert rejected[str(SHELL)] == "no code"
    assert "a bug" in rejected[listing] and "deleted" in rejected["/lib/gone.so (deleted)"]


def test_a_replaced_file_is_rejected(tmp_path: Path, make_plans: Callable[..., Plans]) -> None:
    assert make_plans().answer(Module(str(SHELL), b"\1" * 20, is_main=True)) is None
    assert "replaced" in str(state(tmp_path)["rejected"][0]["reason"])


@pytest.mark.parametrize(
    "path",
    [
        "",
        "[vdso]",
        "linux-vdso.so.1",
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/ld-musl-x86_64.so.1",
        "/x/libcallscope-agent.so",
    ],
)
def test_modules_that_are_never_traced(path: str) -> None:
    assert is_untraceable(path)


def request(*modules: tuple[str, int]) -> bytes:
    head = np.zeros(1, records.REQUEST)
    head["magic"], head["version"], head["module_count"] = records.REQUEST_MAGIC, records.REQUEST_VERSION, len(modules)
    body = np.zeros(len(modules), records.REQUEST_MODULE)
    for row, (path, flags) in zip(body, modules, strict=True):
        row["path"], row["module_flags"] = path, flags
        row["build_id_bytes"], row["build_id"][:2] = 2, [7, 8]
    return head.tobytes() + body.tobytes()


@pytest.fixture
def client() -> Iterator[Callable[[Server], socket.socket]]:
    made: list[socket.socket] = []

    def connect(server: Server) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(10)
        client.connect(str(server.path))
        made.append(client)
        return client

    yield connect
    for one in made:
        one.close()


Client = Callable[[Server], socket.socket]


def replies(client: socket.socket, count: int) -> list[np.void]:
    data = receive(client, count * records.REPLY.itemsize)
    assert data is not None
    return list(np.frombuffer(data, records.REPLY))


def test_questions_and_answers_cross_the_socket(client: Client) -> None:
    seen: list[Module] = []

    def answer(module: Module) -> Answer | None:
        seen.append(module)
        return Answer(Path("/c/p.plan"), 41, 7, Path("/t/bits")) if module.is_main else None

    with Server(answer) as server:
        agent = client(server)
        for _ in range(2):  # a connection may carry several requests
            agent.sendall(request(("/bin/a", records.MODULE_MAIN), ("/lib/b", 0)))
            first, second = replies(agent, 2)
    assert seen[:2] == [Module("/bin/a", b"\7\10", True), Module("/lib/b", b"\7\10", False)]
    assert (first["status"], first["id_base"], first["function_count"]) == (records.REPLY_PLAN, 41, 7)
    assert (first["plan"], first["chosen"]) == (b"/c/p.plan", b"/t/bits")
    assert second["status"] == records.REPLY_SKIP


def test_an_agent_may_wait_for_each_answer_or_ask_all_first(client: Client) -> None:
    with Server(lambda module: None) as server:
        one_by_one, data = client(server), request(*[("/lib/x", 0)] * 3)
        one_by_one.sendall(data[: records.REQUEST.itemsize])
        for number in range(3):
            start = records.REQUEST.itemsize + number * records.REQUEST_MODULE.itemsize
            one_by_one.sendall(data[start : start + records.REQUEST_MODULE.itemsize])
            assert len(replies(one_by_one, 1)) == 1
        everything = client(server)
        everything.sendall(request(*[("/lib/x", 0)] * 2000))
        assert len(replies(everything, 2000)) == 2000


def test_a_slow_answer_does_not_keep_others_waiting(client: Client) -> None:
    gate = threading.Event()

    def answer(module: Module) -> None:
        if module.path == "/slow":
            gate.wait(10)

    with Server(answer) as server:
        slow, fast = client(server), client(server)
        slow.sendall(request(("/slow", 0)))
        fast.sendall(request(("/fast", 0)))
        replies(fast, 1)
        gate.set()
        replies(slow, 1)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.0\r\n", bytes(16), request()[:4] + bytes(12), request()[:12] + b"\xff" * 4]
)
def test_nonsense_ends_the_connection_only(client: Client, data: bytes) -> None:
    with Server(lambda module: None) as server:
        bad = client(server)
        bad.sendall(data)
        bad.shutdown(socket.SHUT_WR)
        assert bad.recv(1) == b""
        good = client(server)
        good.sendall(request(("/lib/x", 0)))
        replies(good, 1)


def test_the_directory_is_private_and_goes_away() -> None:
    with Server(lambda module: None) as server:
        assert server.directory.stat().st_mode & 0o777 == 0o700
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        waiting.connect(str(server.path))
        time.sleep(0.05)
    assert not server.directory.exists()
    waiting.settimeout(10)
    assert waiting.recv(1) == b""
    waiting.close()


def test_a_long_temporary_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    scratch = Scratch()
    assert len(str(scratch.path)) < 90
    scratch.remove()
    assert not scratch.path.exists()
    assert list(long.iterdir()) == []


def test_what_a_killed_recorder_left_is_removed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as place:
        base = Path(place)
        monkeypatch.setattr("tempfile.tempdir", place)
        alive = Scratch()
        assert alive.path.parent == base
        left, foreign, file, link = (base / name for name in ("callscope-run-1", "callscope-x", "callscope-run-f", "l"))
        left.mkdir()
        (left / "recorder").touch()
        foreign.mkdir()
        file.touch()
        link.symlink_to(foreign)
        link.rename(base / "callscope-run-l")
        Scratch().remove()
        names = {path.name for path in base.iterdir()}
        assert names == {alive.path.name, "callscope-x", "callscope-run-f", "callscope-run-l"}
        alive.remove()


def test_the_program_keeps_its_own_preloaded_libraries() -> None:
    agent, session, recorder = Path("/c/libcallscope-agent.so"), Path("/t"), Path("/s/recorder")
    before = {"A": "b", "LD_PRELOAD": "/x/liba.so /old/libcallscope-agent.so:libb.so", "CALLSCOPE_FOLLOW": "0"}
    after = traced_environment(before, [agent], session, recorder, follow=True)
    assert after == {
        "A": "b",
        "LD_PRELOAD": "/c/libcallscope-agent.so:/x/liba.so:libb.so",
        "CALLSCOPE_SESSION": "/t",
        "CALLSCOPE_RECORDER": "/s/recorder",
    }
    assert traced_environment({}, [agent], session, recorder, follow=False)["CALLSCOPE_FOLLOW"] == "0"
