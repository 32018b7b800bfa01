"""Attaches Windows programs that run under Wine, and detaches them, by the launcher.

The agent asks for plans from inside the program while this goes on running, and stops its threads for as long as it
takes to write the patches.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from typing import Any

from callscope.errors import RecordError
from callscope.native import LAUNCHER_NAME, library_path

PATIENCE = 180.0
"""seconds that the launcher may take"""
REMEDIES = {
    "no such process": "see winedbg --command 'info proc' for what Wine runs in this prefix",
    "traced already": "detach it first, with callscope detach",
}
"""What to do, by what the launcher says."""


def launcher(wine: str, *words: str) -> None:
    """Run the launcher. Raises RecordError with its reason."""
    command = [wine, str(library_path(LAUNCHER_NAME)), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise RecordError(f"Wine does not answer for {PATIENCE:.0f} s: see whether its programs still run") from None
    if done.returncode == 0:
        return
    answers: dict[str, Any] = {}
    for line in (done.stdout + done.stderr).splitlines():
        with suppress(ValueError):
            answers |= json.loads(line)
    reason = answers.get("error") or f"the launcher ended with status {done.returncode}"
    several = answers.get("several")
    if several:
        listed = ", ".join(map(str, several))
        raise RecordError(f"{words[-1]} is {len(several)} processes: name one by its Wine process id, of {listed}")
    remedy = next(
        (text for part, text in REMEDIES.items() if part in reason), "check that it runs under this Wine prefix"
    )
    raise RecordError(f"{reason}; {remedy}")
