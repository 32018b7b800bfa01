"""Programs are looked at before they are started."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from callscope.errors import CallscopeError, ImageError, RecordError
from callscope.recording import preflight
from callscope.recording.preflight import check_program, find_program, read_shebang

SHELL = Path("/bin/sh").resolve()
PT_INTERP = 3
E_MACHINE, E_CLASS, E_PHOFF, E_PHNUM = 18, 4, 32, 56


@pytest.fixture
def program(tmp_path: Path) -> Callable[[bytes | str], str]:
    def make(content: bytes | str, mode: int = 0o755) -> str:
        path = tmp_path / "program"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return str(path)

    return make


def interpreter_header(data: bytes) -> int:
    offset, count = struct.unpack_from("<Q", data, E_PHOFF)[0], struct.unpack_from("<H", data, E_PHNUM)[0]
    return next(at for at in range(offset, offset + count * 56, 56) if data[at] == PT_INTERP)


def changed(place: int, value: bytes) -> bytes:
    data = bytearray(SHELL.read_bytes())
    data[place : place + len(value)] = value
    return bytes(data)


def refusal(*command: str, **environment: str) -> str:
    with pytest.raises(CallscopeError) as caught:
        check_program(command, environment or os.environ)
    message = str(caught.value)
    assert "\n" not in message and not message.endswith(".")
    return message


def test_a_program_is_found_on_the_path() -> None:
    target = check_program(("sh",), {"PATH": "/nonexistent:/bin"})
    assert target.path == "/bin/sh"
    assert target.image.path.resolve() == SHELL
    assert target.expected == ()


def test_a_script_leads_to_its_interpreter(program: Callable[[str], str]) -> None:
    target = check_program((program("#!/bin/sh -e\necho\n"),))
    assert target.image.path.resolve() == SHELL


def test_env_leads_to_the_program_it_will_start(program: Callable[[str], str]) -> None:
    target = check_program((program("#!/usr/bin/env -S LANG=C sh -e\n"),), {"PATH": "/bin"})
    assert target.image.path.name == "env"
    assert [path.resolve() for path in target.expected] == [SHELL]
    assert check_program((program("#!/usr/bin/env nothing-of-that-name\n"),), {"PATH": "/bin"}).expected == ()


def test_missing_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "on the PATH" in refusal("no-such-program-anywhere")
    assert "there is no program" in refusal("./no-such-program")
    assert "cannot look at" in refusal("/bin/sh/x")
    assert "cannot look at" in refusal("./" + "a" * 5000)
    assert "on the PATH" in refusal("a" * 5000)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch(0o755)
    assert "./here" in refusal("here", PATH="/bin")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "symbolic link to nothing" in refusal("./dangling")


def test_what_cannot_be_executed(tmp_path: Path, program: Callable[..., str]) -> None:
    assert "is a directory" in refusal(str(tmp_path))
    assert "not executable" in refusal(program("#!/bin/sh\n", 0o644))
    assert "not a regular file" in refusal("/dev/null")
    assert "text without a #! line" in refusal(program("echo hello\n"))
    assert "is empty" in refusal(program(b""))
    assert "not an ELF file" in refusal(program(b"\0\1\2\3"))


def test_a_program_on_the_path_without_its_executable_bit(tmp_path: Path, program: Callable[..., str]) -> None:
    program("#!/bin/sh\n", 0o644)
    assert "not executable" in refusal("program", PATH=str(tmp_path))


def test_scripts_that_cannot_run(tmp_path: Path, program: Callable[[str], str]) -> None:
    assert "which does not exist" in refusal(program("#!/no/such/interpreter\n"))
    assert "names no interpreter" in refusal(program("#!\n"))
    path = tmp_path / "program"
    assert "too deep" in refusal(program(f"#!{path}\n"))


def test_other_kinds_of_programs(program: Callable[[bytes], str]) -> None:
    assert "32-bit" in refusal(program(changed(E_CLASS, b"\x01")))
    assert "AArch64" in refusal(program(changed(E_MACHINE, struct.pack("<H", 183))))
    assert "statically linked" in refusal(
        program(changed(interpreter_header(SHELL.read_bytes()), struct.pack("<I", 0)))
    )
    assert "a DOS program" in refusal(program(b"MZ\x90\0" + bytes(200)))
    assert "truncated" in refusal(program(SHELL.read_bytes()[:4096]))


def test_a_missing_loader(program: Callable[[bytes], str]) -> None:
    data = SHELL.read_bytes()
    place = struct.unpack_from("<Q", data, interpreter_header(data) + 8)[0]
    assert "needs the loader" in refusal(program(changed(place, b"/lib64/ld-none")))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of other users")
def test_setuid_and_setgid(tmp_path: Path, program: Callable[[bytes], str]) -> None:
    path = program(SHELL.read_bytes())
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        pytest.skip("the temporary directory ignores setuid")
    os.chown(path, 12345, 12345)
    Path(path).chmod(0o4755)
    assert "is setuid" in refusal(path)
    Path(path).chmod(0o2755)
    assert "is setgid" in refusal(path)
    Path(path).chmod(0o755)
    check_program((path,))
    os.chown(path, 0, 0)
    Path(path).chmod(0o6755)
    check_program((path,))  # no change of rights for root


def test_file_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"\1")
    with pytest.raises(ImageError, match="file capabilities"):
        preflight.check_image(str(SHELL))


def test_names_with_a_slash_are_not_looked_up() -> None:
    assert find_program("./sh", {"PATH": "/bin"}) == "./sh"
    with pytest.raises(RecordError):
        find_program("sh", {"PATH": ""})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#!/bin/sh", ("/bin/sh",)),
        ("#! /bin/sh -e -x \nrest", ("/bin/sh", "-e -x")),
        ("#!\t/bin/sh\t\n", ("/bin/sh",)),
        ("echo #!/bin/sh", None),
    ],
)
def test_first_lines(program: Callable[[str], str], line: str, words: tuple[str, ...] | None) -> None:
    assert read_shebang(program(line)) == words
