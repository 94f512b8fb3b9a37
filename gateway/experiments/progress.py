"""How far a canary is, as replicas share it: JSON in a blob. Each of them reads it, joins its own, and writes. Pure.

There is no lock. Joining is commutative and takes whatever is further, an end over any step and a rollback over any
other end, so replicas that write over each other agree after a round. Of the counts each replica writes only its own.
A process that ends leaves its counts behind: what was seen of a candidate stays seen.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from gateway.experiments.health import ArmCounts

REPLICAS_MAX = 64
"""Processes whose counts are kept, of all since the canary began; beyond it the oldest are left out."""

Phase = Literal["advancing", "finished", "promoted", "rolled_back"]
_RANKS = {phase: rank for rank, phase in enumerate(get_args(Phase))}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a canary is. Moments are seconds of the wall clock."""

    step: int = 0
    since_s: float = 0.0
    """When the step began."""
    phase: Phase = "advancing"
    why: str = ""
    """Of its end."""

    def joined(self, other: "Progress") -> "Progress":
        """Whichever is further."""
        return max(self, other, key=lambda one: (_RANKS[one.phase], one.step, -one.since_s, one.why))


@dataclass(slots=True)
class Shared:
    """The content of the blob."""

    progress: Progress
    counts: dict[str, tuple[float, dict[str, ArmCounts]]] = field(default_factory=dict)
    """Replica -> when it was heard of, and what it has seen of each arm."""

    def encode(self) -> bytes:
        """As JSON."""
        newest = sorted(self.counts.items(), key=lambda entry: -entry[1][0])[:REPLICAS_MAX]
        progress = self.progress
        content: dict[str, Any] = {
            "step": progress.step,
            "since_s": progress.since_s,
            "phase": progress.phase,
            "why": progress.why,
            "counts": {
                replica: {"at_s": at_s, "arms": {arm: counts.to_json() for arm, counts in arms.items()}}
                for replica, (at_s, arms) in newest
            },
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes | None, *, steps: int) -> Self | None:
        """What `encode` gave; None for nothing, or for what is none: then the canary begins."""
        if not data:
            return None
        try:
            told = json.loads(data)
            phase = told["phase"]
            progress = Progress(int(told["step"]), float(told["since_s"]), phase, str(told["why"]))
            if phase not in _RANKS or not 0 <= progress.step < steps:
                return None
            return cls(progress, {replica: _arms(entry) for replica, entry in told["counts"].items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def of_others(self, replica: str) -> Mapping[str, ArmCounts]:
        """What all but this replica have seen, per arm."""
        summed: dict[str, ArmCounts] = {}
        for name, (_, arms) in self.counts.items():
            if name != replica:
                for arm, counts in arms.items():
                    total = summed.setdefault(arm, ArmCounts())
                    total += counts
        return summed


def _arms(entry: Mapping[str, Any]) -> tuple[float, dict[str, ArmCounts]]:
    return float(entry["at_s"]), {arm: ArmCounts.from_json(told) for arm, told in entry["arms"].items()}
