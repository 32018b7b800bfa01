"""Programs that run for long and are kept busy meanwhile, with all their answers checked: `live_*`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.builders.compilers import TARGETS, compile_program

PYTHON = TARGETS / "python"
CONNECTIONS = 8
_PIPE = subprocess.PIPE
_PATIENCE = 60
"""seconds that a program may take to begin or to end"""


@dataclass(frozen=True)
class Live:
    """A busy program. pid: of the process to attach to. finish: ends all and checks that all was well."""

    pid: int
    finish: Callable[[], None]


def _start(*words: str | Path | int, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([str(word) for word in words], stdin=_PIPE, stdout=_PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _await_port(port: int) -> None:
    for _ in range(_PATIENCE * 20):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nobody listens at port {port}")


def _check_load(load: subprocess.Popen[str]) -> None:
    output, _ = load.communicate("", _PATIENCE)
    asked, failures, words = output.split(maxsplit=2)
    assert failures == "0", words
    assert int(asked) > 0


def _loaded(kind: str, port: int, pid: int, end: Callable[[], None]) -> Live:
    _await_port(port)
    load = _start(sys.executable, PYTHON / "live_load.py", kind, port, CONNECTIONS)

    def finish() -> None:
        assert Path(f"/proc/{pid}").exists(), "it has ended"
        _check_load(load)
        end()

    return Live(pid, finish)


def _server(kind: str, words: list[str | Path]) -> Live:
    """A server that prints its port and ends with its input."""
    server = _start(*words)
    port = int(_line(server))

    def end() -> None:
        output, _ = server.communicate("", _PATIENCE)
        assert (output, server.returncode) == ("ended\n", 0)

    return _loaded(kind, port, server.pid, end)


def _python(directory: Path) -> Live:
    return _server("http", ["python3", PYTHON / "live_http.py"])


def _node(directory: Path) -> Live:
    return _server("http", ["node", TARGETS / "live_http.js"])


def _redis(directory: Path) -> Live:
    port = _free_port()
    server = _start("redis-server", "--port", port, "--save", "", "--dir", directory, "--logfile", directory / "log")

    def end() -> None:
        server.send_signal(signal.SIGTERM)
        assert server.wait(_PATIENCE) == 0

    return _loaded("redis", port, server.pid, end)


_NGINX = """
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/errors warn;
{user}
events {{ worker_connections 64; }}
http {{
  access_log off;
  {bodies}
  server {{ listen 127.0.0.1:{port}; root {directory}; keepalive_requests 1000000; }}
}}
"""


def _nginx(directory: Path) -> Live:
    """Attached to is the worker, which belongs to another user when root runs the tests."""
    port = _free_port()
    bodies = "\n".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "file").write_bytes(bytes(range(256)) * 64)
    user = "user www-data;" if os.geteuid() == 0 else ""
    for above in [directory, *list(directory.parents)[:-2]]:  # the worker reads the file
        above.chmod(above.stat().st_mode | 0o011)
    (directory / "conf").write_text(_NGINX.format(directory=directory, port=port, user=user, bodies=bodies))
    server = _start("nginx", "-p", directory, "-c", directory / "conf")
    _await_port(port)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    (worker,) = children.read_text().split()

    def end() -> None:
        server.send_signal(signal.SIGQUIT)
        assert server.wait(_PATIENCE) == 0
        assert "alert" not in (directory / "errors").read_text()

    return _loaded("file", port, int(worker), end)


def _threads(directory: Path) -> Live:
    program = compile_program([TARGETS / "live_threads.cpp"], directory / "threads", ["-O1", "-g", "-pthread"])
    process = _start(program, 200)
    assert _line(process) == "ready"

    def finish() -> None:
        output, _ = process.communicate("", _PATIENCE)
        assert (output, process.returncode) == ("1 0\n", 0)

    return Live(process.pid, finish)


def _gdb(directory: Path) -> Live:
    source = directory / "debugged.c"
    source.write_text(
        "int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }\nint main(void) { return fib(3) != 2; }\n"
    )
    program = compile_program([source], directory / "debugged", ["-g", "-O0"])
    driver = _start(sys.executable, PYTHON / "live_gdb.py", program)
    pid = int(_line(driver))
    time.sleep(1)  # it reads files

    def finish() -> None:
        assert Path(f"/proc/{pid}").exists(), "it has ended"
        _check_load(driver)

    return Live(pid, finish)


PROGRAMS: dict[str, Callable[[Path], Live]] = {
    "python3": _python,
    "node": _node,
    "redis-server": _redis,
    "nginx": _nginx,
    "threads": _threads,
    "gdb": _gdb,
}

NEEDS = {name: (name,) for name in PROGRAMS} | {"threads": ("g++",)}
"""What has to be installed."""


@contextmanager
def live(name: str, directory: Path) -> Iterator[Live]:
    """One of `PROGRAMS`, busy within the block and checked at its end."""
    program = PROGRAMS[name](directory)
    try:
        yield program
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(program.pid, signal.SIGKILL)
        raise
    program.finish()
