"""What a plan covers: the figures and reasons behind `callscope plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from callscope.binary.symbols import open_symbols
from callscope.patching.planner import Plan

REPORT_VERSION = 1


@dataclass(frozen=True)
class Skipped:
    """A place that is not patched. `address` is relative to the image's base."""

    function: str
    address: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """How many places of one kind are patched, and which are not."""

    patched: int
    skipped: list[Skipped]

    @property
    def found(self) -> int:
        """Places found in all."""
        return self.patched + len(self.skipped)

    @property
    def percent(self) -> float:
        """Share patched, 0 to 100; 100 when there were none."""
        return 100.0 * self.patched / self.found if self.found else 100.0


@dataclass(frozen=True)
class PlanReport:
    """Coverage of an image's plan; `seconds` is what planning took."""

    image: str
    build_id: str
    functions: int
    entries: Coverage
    exits: Coverage
    tail_jumps: Coverage
    landing_pads: Coverage
    calls: Coverage
    returns: Coverage
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The object `callscope plan --format json` prints."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PlanReport:
        """The inverse of `to_json`. Raises KeyError or TypeError for anything else."""

        def coverage(part: dict[str, Any]) -> Coverage:
            return Coverage(part["patched"], [Skipped(**row) for row in part["skipped"]])

        return cls(
            data["image"],
            data["build_id"],
            data["functions"],
            coverage(data["entries"]),
            coverage(data["exits"]),
            coverage(data["tail_jumps"]),
            coverage(data["landing_pads"]),
            coverage(data["calls"]),
            coverage(data["returns"]),
            data["seconds"],
        )


def make_report(plan: Plan) -> PlanReport:
    """Summarise a plan; names come from the image's symbols, else `module+0xoffset`."""
    symbols = open_symbols(plan.image.path) if plan.refusals else None
    starts = plan.text.starts

    def coverage(kind: str) -> Coverage:
        skipped = []
        for refusal in plan.refusals:
            if refusal.kind == kind:
                start = starts[refusal.function]
                name = symbols.name(start) if symbols is not None else None
                name = name or f"{plan.image.path.name}+{start:#x}"
                skipped.append(Skipped(name, refusal.address, refusal.reason))
        return Coverage(plan.counts[kind] - len(skipped), skipped)

    return PlanReport(
        str(plan.image.path),
        plan.image.build_id.hex(),
        len(starts),
        coverage("entry"),
        coverage("exit"),
        coverage("tail"),
        coverage("landing"),
        coverage("call"),
        coverage("return"),
        round(plan.seconds, 3),
    )
