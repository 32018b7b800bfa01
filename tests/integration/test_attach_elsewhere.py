"""Attaching to programs that cannot open our files, nor we theirs by their paths: deleted and replaced ones, other
users', and those in containers.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import Outcome, callscope, count_calls
from tests.integration.test_attach import CALLS_OF_FIB, changed_code

NOBODY = 65534
CHROOT = "/usr/sbin/chroot"
Words = list[str | Path]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces and other users")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(
        [TARGETS / "attached.c"], tmp_path_factory.mktemp("elsewhere") / "attached", ["-O1", "-pthread"]
    )


def is_gone(program: Path, directory: Path) -> tuple[Words, Callable[[], None]]:
    copy = shutil.copy(program, directory / "gone")
    return [copy], lambda: (directory / "gone").unlink()


def is_replaced(program: Path, directory: Path) -> tuple[Words, Callable[[], None]]:
    """As by an upgrade: another file has its path."""

    def replace() -> None:
        (directory / "replaced").unlink()
        shutil.copy("/bin/true", directory / "replaced")

    return [shutil.copy(program, directory / "replaced")], replace


def is_in_a_container(program: Path, directory: Path) -> tuple[Words, Callable[[], None]]:
    root = root_of(program, directory)
    return ["unshare", "-m", "-p", "-f", f"--mount-proc={root}/proc", CHROOT, root, "/attached"], nothing


def is_in_an_own_mount_namespace(program: Path, directory: Path) -> tuple[Words, Callable[[], None]]:
    """Its file lies where nothing is for others."""
    hidden = directory / "hidden"
    hidden.mkdir()
    script = f"mount -t tmpfs none {hidden} && cp {program} {hidden}/ && exec {hidden}/attached"
    return ["unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-c", f'{script} "$@"', "sh"], nothing


def is_in_another_root(program: Path, directory: Path) -> tuple[Words, Callable[[], None]]:
    """Without /proc."""
    return [CHROOT, root_of(program, directory), "/attached"], nothing


def is_of_another_user(program: Path, directory: Path) -> tuple[Words, Callable[[], None]]:
    return [
        CHROOT, f"--userspec={NOBODY}:{NOBODY}", root_of(program, directory), "/attached",
    ], nothing  # fmt: skip


def nothing() -> None:
    pass


def root_of(program: Path, directory: Path) -> Path:
    """A root directory with the program and its libraries."""
    root = directory / "root"
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            (root / word[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(word).resolve(), root / word[1:])
    (root / "tmp").mkdir()
    (root / "proc").mkdir()
    shutil.copy(program, root / "attached")
    for above in [directory, *list(directory.parents)[:-2]]:
        above.chmod(above.stat().st_mode | 0o011)
    return root


def attach(pid: int, trace: Path, cache: Path) -> Outcome:
    return callscope(["attach", str(pid), "-o", trace, "--duration", "80ms", "-f", "fib", "-f", "work"], cache)


PLACES = [is_gone, is_replaced, is_in_a_container, is_in_an_own_mount_namespace, is_in_another_root, is_of_another_user]


@pytest.mark.parametrize("place", PLACES, ids=[place.__name__ for place in PLACES])
def test_a_program_that(
    place: Callable[[Path, Path], tuple[Words, Callable[[], None]]], program: Path, plan_cache: Path, tmp_path: Path
) -> None:
    command, change = place(program, tmp_path)
    with subprocess.Popen([*command, "6"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        change()
        pid = descendants(process.pid)[-1]
        for number in range(2):
            trace = tmp_path / str(number)
            outcome = attach(pid, trace, plan_cache)
            assert outcome.status == 0, outcome.errors
            assert changed_code(pid) == []
            works, calls = count_calls(trace, "work"), count_calls(trace, "fib")
            assert works > 10
            assert (works - 7) * CALLS_OF_FIB <= calls <= (works + 7) * CALLS_OF_FIB
        output, _ = process.communicate("\n", 30)
        assert (output, process.returncode) == ("1 0\n", 0)


def descendants(pid: int) -> list[int]:
    """A process, its only child, and so on."""
    found = [pid]
    while children := Path(f"/proc/{found[-1]}/task/{found[-1]}/children").read_text().split():
        found.append(int(children[0]))
    return found
