"""Plans kept between runs, by build-id.

A key is the image's build-id, or a hash of its bytes, and the planner's version: when planning changes, PLANNER_VERSION
must, and old plans are simply not found.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callscope import format as fmt
from callscope.binary.open import read_build_id
from callscope.errors import ImageError, PlanError
from callscope.patching.report import PlanReport
from callscope.patching.scope import FUNCTIONS, Scope

PLANNER_VERSION = 16
ARGUMENTS_SUFFIX = ".arguments"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PlanFiles:
    """Where an image's plan lies. `seconds`: how long `load_or_plan` took; `cached`: nothing had to be planned."""

    plan: Path
    functions: Path
    report: Path
    build_id: bytes
    function_count: int
    seconds: float
    cached: bool

    @property
    def arguments(self) -> Path | None:
        """The layouts of what is captured of arguments, by function index, as JSON; None when nothing is."""
        path = self.plan.with_suffix(ARGUMENTS_SUFFIX)
        return path if path.is_file() else None

    def read_report(self) -> PlanReport:
        """The coverage report. Raises PlanError when the file is damaged."""
        try:
            return PlanReport.from_json(json.loads(self.report.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{self.report} is damaged ({error}): delete it and plan again") from error


def cache_directory() -> Path:
    """$CALLSCOPE_CACHE, else callscope below $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("CALLSCOPE_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "callscope"


def load_or_plan(
    path: str | Path,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    fresh: bool = False,
    scope: Scope = FUNCTIONS,
) -> PlanFiles:
    """The plan of an image for `scope`, from the cache (unless `fresh`) or made now with up to `jobs` processes.

    `progress` is as for `plan_image`. Raises ImageError or PlanError, saying why there is no plan.
    """
    begin = time.perf_counter()
    path = Path(path)
    build_id = read_build_id(path)
    key = f"{build_id.hex() or content_hash(path)}-v{PLANNER_VERSION}{scope.suffix}"
    if scope.arguments is not None:
        status = path.stat()  # what debug information it holds is not in the build-id
        key += f"-{status.st_size:x}-{status.st_mtime_ns:x}"
    directory = plans_directory()
    files = {suffix: directory / f"{key}.{suffix}" for suffix in ("plan", "functions", "json")}
    kept = not fresh and all(file.is_file() for file in files.values())
    count = _function_count(files["functions"]) if kept else None
    cached = count is not None
    if count is None:
        from callscope.patching.planfile import functions_bytes, plan_bytes
        from callscope.patching.planner import plan_image
        from callscope.patching.report import make_report

        plan = plan_image(path, jobs, progress, scope)
        write_whole(files["functions"], functions_bytes(plan))
        if plan.text.captures:
            layouts = {str(index): capture.layout for index, capture in plan.text.captures.items() if capture.layout}
            write_whole(files["plan"].with_suffix(ARGUMENTS_SUFFIX), json.dumps(layouts).encode())
        write_whole(files["json"], json.dumps(make_report(plan).to_json()).encode())
        write_whole(files["plan"], plan_bytes(plan))
        count = len(plan.functions.rva)
    seconds = time.perf_counter() - begin
    return PlanFiles(files["plan"], files["functions"], files["json"], build_id, count, seconds, cached)


def plans_directory() -> Path:
    """Where plans lie, made when missing. Raises PlanError."""
    directory = cache_directory() / "plans"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"cannot keep plans in {directory} ({error.strerror}): set CALLSCOPE_CACHE") from error
    return directory


def content_hash(path: Path) -> str:
    """Stands for the build-id of a file that has none. Raises ImageError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    return "sha256-" + digest.hexdigest()


def _function_count(path: Path) -> int | None:
    """Functions in a functions file; None when it is damaged or of another version."""
    try:
        data = np.fromfile(path, fmt.FUNCTIONS_HEADER, 1)
    except OSError:
        return None
    if len(data) != 1 or data["magic"][0] != fmt.FUNCTIONS_MAGIC or data["version"][0] != fmt.PLAN_VERSION:
        return None
    return int(data["function_count"][0])


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
    except OSError as error:
        raise PlanError(f"cannot write {path} ({error.strerror}): free some space or set CALLSCOPE_CACHE") from error
