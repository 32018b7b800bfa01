"""What the build put beside the package, and what it may ask of a machine."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from callscope import __version__
from callscope.binary.elf import read_image
from callscope.binary.pe import read_pe
from callscope.native import AGENT_NAME, KERNEL_NAME, LAUNCHER_NAME, WINDOWS_AGENT_NAME, library_path

ROOT = Path(__file__).resolve().parents[2]
DT_FLAGS_1 = 0x6FFFFFFB
DF_1_INITFIRST = 0x20
NEWEST_GLIBC = (2, 17)


@pytest.mark.parametrize("name", [AGENT_NAME, KERNEL_NAME])
def test_libraries_run_where_the_wheel_says(name: str) -> None:
    data = library_path(name).read_bytes()
    versions = {(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", data)}
    assert max(versions, default=(0, 0)) <= NEWEST_GLIBC
    assert 'build_data["tag"] = "py3-none-manylinux_2_17_x86_64"' in (ROOT / "hatch_build.py").read_text()


def test_the_agent_needs_no_library_and_starts_first() -> None:
    image = read_image(library_path(AGENT_NAME))
    assert image.needed == ()
    assert image.dynamic.tags[DT_FLAGS_1] & DF_1_INITFIRST


def test_windows_parts_need_nothing_but_the_system() -> None:
    needed = {name: {entry.library.lower() for entry in read_pe(library_path(name)).imports}
              for name in (WINDOWS_AGENT_NAME, LAUNCHER_NAME)}  # fmt: skip
    assert needed == {WINDOWS_AGENT_NAME: {"ntdll.dll", "kernel32.dll"}, LAUNCHER_NAME: {"kernel32.dll"}}


def test_the_files_of_cmake_and_pkg_config_have_the_version_of_the_package() -> None:
    lib = library_path(AGENT_NAME).parent
    files = [*lib.glob("pkgconfig/*.pc"), lib / "cmake/callscope/callscope-config-version.cmake"]
    assert len(files) == 3
    for path in files:
        said = re.findall(r'^(?:Version: |set\(PACKAGE_VERSION ")([^")\n]+)', path.read_text(), re.MULTILINE)
        assert said == [__version__]


def test_the_compiler_gets_a_cache_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = runpy.run_path(str(ROOT / "native/build.py"))["compiler_environment"]
    for name in ("ZIG_GLOBAL_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    for home in (None, str(tmp_path / "file")):
        if home:
            monkeypatch.setenv("HOME", home)
        with environment() as variables:
            directory = Path(variables["ZIG_GLOBAL_CACHE_DIR"])
            assert directory.is_dir()
        assert not directory.exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    with environment() as variables:
        assert "ZIG_GLOBAL_CACHE_DIR" not in variables


def test_the_compiler_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = [*project["build-system"]["requires"], *project["project"]["optional-dependencies"]["dev"]]
    assert [pin for pin in pins if pin.startswith("ziglang")] == ["ziglang==0.17.0"] * 2


def test_source_distributions_hold_what_the_build_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"/src", "/native", "/format", "/hatch_build.py", "/README.md", "/LICENSE"} <= set(included)
