"""Finding Wine, and the questions of agents that come as files."""

import time
from pathlib import Path

import numpy as np
import pytest

from callscope import format as records
from callscope.errors import RecordError
from callscope.recording import wine
from callscope.recording.mailbox import Mailbox, read_question
from callscope.recording.plans import Answer, Module


def test_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wine, "DEBIAN_LOADER", tmp_path / "wine64")
    with pytest.raises(RecordError, match="apt install wine64"):
        wine.find_wine({"PATH": str(tmp_path)})


def test_wine_is_found_on_the_path_or_where_debian_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loader = tmp_path / "wine64"
    loader.touch(0o755)
    assert wine.find_wine({"PATH": str(tmp_path)}) == str(loader)
    monkeypatch.setattr(wine, "DEBIAN_LOADER", loader)
    assert wine.find_wine({"PATH": "/nowhere"}) == str(loader)


def question(paths: list[str]) -> bytes:
    request = np.zeros(1, records.REQUEST)
    request["magic"], request["version"] = records.REQUEST_MAGIC, records.REQUEST_VERSION
    request["module_count"] = len(paths)
    modules = np.zeros(len(paths), records.REQUEST_MODULE)
    modules["path"] = [path.encode() for path in paths]
    return request.tobytes() + modules.tobytes()


def test_questions_are_answered_whole(tmp_path: Path) -> None:
    asked = []

    def answer(module: Module) -> Answer | None:
        asked.append(module.path)
        return Answer(tmp_path / "plan", 5, 9, None) if module.path == "/b.exe" else None

    with Mailbox(answer) as box:
        (box.directory / "1-1.ask").write_bytes(question(["/a.dll", "/b.exe"]))
        reply = box.directory / "1-1.reply"
        deadline = time.monotonic() + 20
        while not reply.exists():
            assert time.monotonic() < deadline, "no answer"
        found = np.frombuffer(reply.read_bytes(), records.REPLY)
    assert asked == ["/a.dll", "/b.exe"]
    assert found["status"].tolist() == [records.REPLY_SKIP, records.REPLY_PLAN]
    assert (int(found["id_base"][1]), bytes(found["plan"][1])) == (5, str(tmp_path / "plan").encode())
    assert not box.directory.exists()


@pytest.mark.parametrize("cut", [0, 3, 16, 200])
def test_unfinished_and_foreign_questions_wait(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "1-1.ask"
    path.write_bytes(question(["/a.dll"])[:cut])
    assert read_question(path) is None
    path.write_bytes(bytes(4) + question(["/a.dll"])[4:])
    assert read_question(path) is None
