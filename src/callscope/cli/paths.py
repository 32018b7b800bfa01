"""`callscope lib-path`, `include-path` and `cmake-path`: where what other programs need of this installation is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from callscope.errors import NativeError
from callscope.native import DROPIN_NAME, LIBRARY_DIRECTORY, library_path
from callscope.patching.cache import cache_directory

RECORDER_NAME = "libcalltrace.recorder"


@click.command()
def lib_path() -> None:
    """Print the directory of libcalltrace.so, for LD_PRELOAD.

    CALLTRACE_OUTPUT=trace.json LD_PRELOAD=$(callscope lib-path)/libcalltrace.so ./program
    """
    click.echo(library_directory())


@click.command()
def include_path() -> None:
    """Print the directory of callscope.h, for the compiler.

    cc -I$(callscope include-path) program.c
    """
    click.echo(part("include"))


@click.command()
def cmake_path() -> None:
    """Print the directory where CMake's find_package(callscope) looks.

    cmake -B build -DCMAKE_PREFIX_PATH=$(callscope cmake-path)

    The files for pkg-config lie beside it:

    PKG_CONFIG_PATH=$(callscope cmake-path)/../pkgconfig pkg-config --cflags callscope
    """
    library_directory()  # what CMake tells of must work
    click.echo(part("cmake"))


def part(name: str) -> Path:
    """A directory of the installation. Raises NativeError."""
    path = LIBRARY_DIRECTORY / name
    if not path.is_dir():
        raise NativeError(f"{name} is missing from {LIBRARY_DIRECTORY}: reinstall callscope")
    return path


def library_directory() -> Path:
    """Where libcalltrace.so and, beside it, the file that names its recorder are; written if need be.

    An installation that this user may not write to has links to it in the cache. Raises NativeError.
    """
    library = library_path(DROPIN_NAME)
    package = Path(__file__).resolve().parents[2]
    text = f"{sys.executable}\n{package}\n"
    for directory in (library.parent, cache_directory() / "lib"):
        place = directory / RECORDER_NAME
        try:
            if place.is_file() and place.read_text() == text:
                return directory
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if directory != library.parent:
                link = directory / DROPIN_NAME
                link.unlink(missing_ok=True)
                link.symlink_to(library)
            partial = place.with_name(f"{place.name}.{os.getpid()}")
            partial.write_text(text)
            partial.replace(place)
            return directory
        except OSError:
            continue
    raise NativeError(f"neither {library.parent} nor {cache_directory()} can be written: set CALLSCOPE_CACHE")
