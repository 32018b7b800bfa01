"""Where a command's answer goes: terminal with colour and pager, pipe, file; text or JSON.

@output_options
def command(..., output: Output) -> None:
    output.write_lines(lines)        # or write_json, write_json_array, write_json_lines when output.json
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click

from callscope.cli.progress import progress_bar
from callscope.errors import CallscopeError, UsageError
from callscope.reports.text import Style

__all__ = ["Output", "output_options", "progress_bar"]

_GZIP_LEVEL = 6
_MADE_HERE = ".callscope"
_PAGER = "less"
_LESS = "FRX"
"""Options for less when the user has set none: quit if it fits, pass colours on, leave the text on the screen."""


class Output:
    """The answer's destination, and the format asked for."""

    def __init__(
        self, format: str = "text", file: Path | None = None, force: bool = False, compressed: bool = False
    ) -> None:
        """Standard output, or a new file. `force`: an existing file may be replaced. `compressed`: the file by gzip.

        Raises UsageError when the file exists, unless forced, CallscopeError when it has no directory.
        """
        self.format = format
        self._file = file
        self._force = force
        self._compressed = compressed
        if file is not None and not force and os.path.lexists(file):
            raise UsageError(f"{file} exists: choose another name, or replace it with --force")
        if file is not None and not file.parent.is_dir():
            raise CallscopeError(f"cannot write to {file}: there is no such directory; write elsewhere")

    @property
    def json(self) -> bool:
        """Whether JSON was asked for."""
        return self.format == "json"

    @property
    def terminal(self) -> bool:
        """Whether the answer is for a person at a terminal."""
        return self._file is None and sys.stdout.isatty()

    @property
    def style(self) -> Style:
        """How text should look there."""
        if not self.terminal:
            return Style()
        colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return Style(colour, max(shutil.get_terminal_size().columns, 40))

    def write_lines(self, lines: Iterable[str]) -> None:
        """Write lines of text, each as soon as it is there."""
        with self._open() as write:
            for line in lines:
                write(f"{line}\n")

    def write_bytes(self, pieces: Iterable[bytes]) -> None:
        """Write a binary file, each piece as soon as it is there."""
        with self._open(binary=True) as write:
            for piece in pieces:
                write(piece)

    def write_json(self, value: Any) -> None:
        """Write one JSON value, indented."""
        self.write_lines(map(escape_json, json.dumps(value, indent=2, ensure_ascii=False).split("\n")))

    def write_json_array(self, values: Iterable[Mapping[str, Any] | str]) -> None:
        """Write a JSON array, an element a line; elements that are strings are JSON already."""
        with self._open() as write:
            before = "[\n"
            for value in values:
                write(before + escape_json(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
                before = ",\n"
            write("[]\n" if before == "[\n" else "\n]\n")

    def write_json_lines(self, values: Iterable[str]) -> None:
        """Write JSON objects, one a line."""
        self.write_lines(map(escape_json, values))

    @contextlib.contextmanager
    def _open(self, binary: bool = False) -> Iterator[Callable[[Any], Any]]:
        """The function that writes text, or bytes. A reader who has gone away ends the work quietly: exit status 0."""
        try:
            if self._file is not None:
                with _new_file(self._file, self._force, binary, self._compressed) as file:
                    yield file.write
            elif binary:
                yield sys.stdout.buffer.write
                sys.stdout.buffer.flush()
            elif self.terminal and os.environ.get("TERM") != "dumb":
                with _Pager() as pager:
                    yield pager.write
            else:
                if hasattr(sys.stdout, "reconfigure"):
                    sys.stdout.reconfigure(errors="backslashreplace")
                yield sys.stdout.write
                sys.stdout.flush()
        except BrokenPipeError:
            with contextlib.suppress(OSError):  # what is still buffered has nowhere to go
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except OSError as error:
            place = self._file or "standard output"
            raise CallscopeError(f"cannot write to {place}: {error.strerror or error}; write elsewhere") from None


def output_options_of(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command --format with these choices, --output and --force, and the argument `output`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--format",
            "output_format",
            type=click.Choice(formats),
            default=formats[0],
            show_default=True,
            help="Text for people, or JSON for programs.",
        )
        @click.option(
            "-o", "--output", "output_file", type=click.Path(path_type=Path), metavar="FILE",
            help="Write to a new file, readable only by you; - is standard output.",
        )  # fmt: skip
        @click.option("--force", is_flag=True, help="Replace FILE if it exists.")
        @functools.wraps(command)
        def wrapped(*args: Any, output_format: str, output_file: Path | None, force: bool, **options: Any) -> Any:
            file = None if output_file is None or str(output_file) == "-" else output_file
            return command(*args, output=Output(output_format, file, force), **options)

        return wrapped

    return decorate


output_options = output_options_of("text", "json")


def escape_json(text: str) -> str:
    """JSON with everything that is not printable escaped: it may be shown on a terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)


@contextlib.contextmanager
def _new_file(path: Path, force: bool, binary: bool, compressed: bool) -> Iterator[IO[Any]]:
    """A file with mode 0600 that appears under its name when it is complete; a device or a pipe is written as it is."""
    if force and path.exists() and not path.is_file():
        with path.open("wb") as raw, _encoded(raw, binary, compressed) as file:
            yield file
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as raw, _encoded(raw, binary, compressed) as file:
            yield file
        if force or not _linked(partial, path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(path: Path, force: bool) -> Iterator[Path]:
    """A directory with mode 0700 to be filled, which appears under its name when it is complete.

    `force`: it may replace one that was made so. Raises UsageError when there is something of that name.
    """
    replaced = force and (path / _MADE_HERE).is_file()
    if os.path.lexists(path) and not replaced:
        advice = "choose another name" + ("" if force else ", or replace what was exported with --force")
        raise UsageError(f"{path} exists{' and was not exported' if force else ''}: {advice}")
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
    except OSError as error:
        raise CallscopeError(f"cannot write to {path}: {error.strerror or error}; write elsewhere") from None
    try:
        yield partial
        (partial / _MADE_HERE).touch(0o600)
        if replaced:
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        raise CallscopeError(f"cannot write to {path}: {error.strerror or error}; write elsewhere") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _encoded(raw: IO[bytes], binary: bool, compressed: bool) -> Iterator[IO[Any]]:
    """What writes bytes, or text in UTF-8, to a binary file, through gzip where it is to be compressed."""
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, raw)) if compressed else raw
        if binary:
            yield file
            return
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace")
        try:
            yield text
        finally:
            text.flush()
            text.detach()


def _linked(partial: Path, path: Path) -> bool:
    """Whether the file got its name without replacing another: False where the file system has no hard links.

    Raises UsageError when there is a file of that name by now.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
        raise UsageError(f"{path} exists by now: choose another name, or replace it with --force") from None
    except OSError:
        return False
    return True


class _Pager:
    """Writes to the terminal, and through the user's pager once there is more than a screen."""

    def __init__(self) -> None:
        self._room = shutil.get_terminal_size().lines - 1
        self._held: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def write(self, text: str) -> None:
        """Write some lines. Raises BrokenPipeError when the pager has ended."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(text)
            return
        self._held.append(text)
        self._room -= text.count("\n")
        if self._room < 0:
            self._process = start_pager()
            self._flush()
            if self._process is None:
                self._room = sys.maxsize

    def __enter__(self) -> _Pager:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._flush()
        if self._process is None:
            return
        assert self._process.stdin is not None
        with _interrupts_ignored():  # Ctrl-C is the pager's now
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()

    def _flush(self) -> None:
        target = sys.stdout if self._process is None else self._process.stdin
        assert target is not None
        held, self._held = self._held, []
        target.write("".join(held))
        if self._process is None:
            target.flush()


def start_pager() -> subprocess.Popen[str] | None:
    """The user's pager, reading from a pipe; None when there is none, or it is called `cat` or nothing."""
    command = os.environ.get("PAGER", _PAGER if shutil.which(_PAGER) else "more")
    if command.strip() in ("", "cat") or not shutil.which(command.split()[0]):
        return None
    environment = {"LESS": _LESS, **os.environ}
    return subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
        env=environment,
    )


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
