"""The pieces of a patch plan before they become bytes.

A **run** is a stretch of whole instructions that moves into a trampoline; five of its bytes become a jump there. A run
too short for that takes a two-byte jump to an **island**: five bytes nearby that hold the long jump. A **redirect**
leaves an instruction where it is and changes only where it jumps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

JUMP_BYTES = 5
"""a jmp with a 32-bit displacement"""
SHORT_JUMP_BYTES = 2
"""a jmp with an 8-bit displacement"""
KINDS = ("entry", "exit", "tail", "landing", "call", "return")
"""what is patched: a `return` is where a recorded call comes back to"""


@dataclass(slots=True)
class Run:
    """Instructions from `start` up to `end` (relative addresses) that move into a trampoline.

    `function` is the index of the function whose choice switches the patch, PATCH_ALWAYS if it serves several. `entry`:
    the trampoline records the ENTRY of `function` first. `island`: address of the island its short jump goes to, or
    None. `red_zone`: the code may be reached by a conditional jump from a function that still uses the bytes below
    the stack pointer. `borrowed`: moved only to make room for an island. `landing`: an exception or longjmp lands here.
    `detached`: every way to it is redirected, so nothing is written over it. `returned`: a recorded call returns here.
    """

    start: int
    end: int
    function: int
    entry: bool = False
    island: int | None = None
    red_zone: bool = False
    borrowed: bool = False
    landing: bool = False
    detached: bool = False
    returned: bool = False


@dataclass(slots=True)
class Redirect:
    """A direct jump at `address` that goes elsewhere.

    `target` is where it went. `tail`: it goes to a trampoline that records TAIL and jumps on to `target`; otherwise
    to the moved instruction whose old address is `target`. `displacement`: offset of its displacement within the
    instruction, of `width` bytes (4, or 1 with an `island`).
    """

    address: int
    target: int
    function: int
    tail: bool
    displacement: int
    width: int
    conditional: bool
    island: int | None = None


@dataclass(slots=True)
class CallSite:
    """A call that is led through a thunk which records it: the last five bytes before `end` become a call of that.

    `start`: of the call, or of the first instruction before it that has to run in the thunk to make room. `direct`: it
    is a direct call, of which only the displacement changes.
    """

    start: int
    end: int
    function: int
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A place that stays unpatched, and why; `kind` is one of KINDS."""

    kind: str
    function: int
    address: int
    reason: str


@dataclass(slots=True)
class Layout:
    """Everything that is to be patched in a range of functions.

    `tails`: addresses of jumps that are tail calls. `counts`: how many of each kind were found. `quiet`: addresses
    inside runs that redirected branches go to, past any recording at the run's start. `entered`, `exits_left`,
    `tails_left`: indices of functions whose entry is patched, and that keep an unpatched ret or (possible) tail jump.
    `calls`: addresses of calls that are recorded; `sites` are those that need a patch of their own. `once`: each of
    them only the first time.
    """

    runs: list[Run] = field(default_factory=list)
    redirects: list[Redirect] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    tails: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    entered: set[int] = field(default_factory=set)
    exits_left: set[int] = field(default_factory=set)
    tails_left: set[int] = field(default_factory=set)
    calls: set[int] = field(default_factory=set)
    sites: list[CallSite] = field(default_factory=list)
    once: bool = False
