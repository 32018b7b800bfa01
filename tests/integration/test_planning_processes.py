"""What becomes of a plan whose processes are killed."""

import os
import signal
from multiprocessing import active_children

import pytest

from callscope.errors import PlanError
from callscope.patching import planner


def killed(bounds: tuple[int, int]) -> None:
    """Stands for the task of a planning process that the system kills for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_planning_process_ends_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "_plan_task", killed)
    with pytest.raises(PlanError, match="a planning process was killed"):
        planner.plan_image("/usr/bin/git", jobs=2)
    assert active_children() == []


def interrupted(done: int, total: int) -> None:
    """A progress that Ctrl-C interrupts."""
    raise KeyboardInterrupt


def test_an_interrupted_plan_leaves_no_process() -> None:
    with pytest.raises(KeyboardInterrupt):
        planner.plan_image("/usr/bin/git", jobs=2, progress=interrupted)
    assert active_children() == []
