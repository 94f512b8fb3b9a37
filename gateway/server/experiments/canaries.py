"""Canaries: looks at their arms, moves them on or back, and shares how far they are with the other replicas.

    answers counted ─┐
    every second ────┴─▶ look: own counts + those of others ─▶ Canary.decide ─▶ progress ─▶ routes rebuilt, blob written

Invariants
- Until the store has told how far a canary is, everybody gets the baseline: it may have been rolled back.
- A rollback does not wait for the store, nor for the next second: the counts are looked at while requests come.
- What cannot be read or written now is read or written a second later. The canary goes on by what this process knows.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from featureclient.store import StoreError
from gateway.experiments.canary import Canary, Health, Step, Verdict
from gateway.experiments.experiment import Experiment
from gateway.experiments.form import CanaryForm
from gateway.experiments.health import ArmCounts
from gateway.experiments.progress import Progress, Shared

_KEEP_MS = 90 * 24 * 3600 * 1000
"""How long a blob is kept that nobody writes any more."""
_WRITE_AGAIN_S = 3600.0
"""How often a blob is written whose content does not change, so that it is kept."""
_LOOKS = 4
"""Looks at the counts for each `requests_min` of the candidate's requests."""
_log = logging.getLogger(__name__)


class Blobs(Protocol):
    """What is asked of a store."""

    async def get_blob(self, name: str) -> bytes | None: ...
    async def put_blob(self, name: str, data: bytes, ttl_ms: int | None = None) -> None: ...


class RunningCanary:
    """One canary. Everything happens on the loop."""

    def __init__(
        self,
        experiment: Experiment,
        counts: Mapping[str, ArmCounts],
        replica: str,
        wall_s: Callable[[], float],
        moved: Callable[[str, Verdict], None],
    ) -> None:
        """`counts` are this process's own, by arm. `moved` is told of each change of the progress."""
        form = experiment.form.canary
        assert form is not None
        self.name = experiment.name
        self.form: CanaryForm = form
        self.counts = counts
        self.progress: Progress | None = None
        """None until the store has been asked."""
        self.verdict = Verdict("hold", "the store has not told yet how far it is; everybody gets the baseline")
        self._blob = f"experiment:{experiment.name}:{experiment.digest}"
        self._replica = replica
        self._wall_s = wall_s
        self._moved = moved
        self._shared = Shared(Progress())
        self._others: Mapping[str, ArmCounts] = {}
        self._steps: Sequence[Step] = [Step(step.share, step.hold) for step in form.steps]
        self._canary = Canary(self._steps, form.guardrails, 0.0)
        self._look_at = form.guardrails.requests_min
        self._written: tuple[Progress, int] | None = None
        self._written_at_s = 0.0

    def __repr__(self) -> str:
        return f"<RunningCanary {self.name} {self.progress}>"

    @property
    def state(self) -> str:
        """In a word."""
        if self.progress is None:
            return "waiting"
        return "running" if self.progress.phase == "advancing" else self.progress.phase

    @property
    def everybody(self) -> str | None:
        """The arm that all get; None where shares decide."""
        if self.progress is None or self.progress.phase == "rolled_back":
            return self.form.baseline
        return self.form.candidate if self.progress.phase == "promoted" else None

    @property
    def share(self) -> float:
        """Percent of the traffic that the candidate gets now."""
        if self.progress is None or self.progress.phase == "rolled_back":
            return 0.0
        return 100.0 if self.progress.phase == "promoted" else self._steps[self.progress.step].share

    @property
    def step_share(self) -> float:
        """The share of the step that it is in, whether anybody gets it now or not."""
        return self._steps[0 if self.progress is None else self.progress.step].share

    def pooled(self, arm: str) -> ArmCounts:
        """What all replicas have counted of an arm."""
        total = ArmCounts()
        total += self.counts[arm]
        if arm in self._others:
            total += self._others[arm]
        return total

    def counted(self) -> None:
        """Something was counted: look, where enough has come since the last look."""
        seen = self.counts[self.form.candidate].requests
        if seen >= self._look_at:
            self._look_at = seen + max(1, self.form.guardrails.requests_min // _LOOKS)
            self.look()

    def look(self) -> None:
        """Decide what becomes of it, by what is known now."""
        progress = self.progress
        if progress is None or progress.phase == "rolled_back":
            return
        canary, now_s = self._canary, self._wall_s()
        canary.step, canary.since_s = progress.step, progress.since_s
        candidate, baseline = self.pooled(self.form.candidate), self.pooled(self.form.baseline)
        verdict = canary.decide(now_s, Health.of(candidate), Health.of(baseline))
        self.verdict = verdict
        match verdict.action:
            case "roll back":
                self._move(replace(progress, phase="rolled_back", why=verdict.why), verdict)
            case "advance":
                self._move(Progress(canary.step, canary.since_s), verdict)
            case "finish" if progress.phase == "advancing":
                phase = self.form.promote == "automatically"
                end = replace(progress, phase="promoted" if phase else "finished", why=verdict.why)
                self._move(end, verdict)

    def _move(self, progress: Progress, verdict: Verdict) -> None:
        self.progress = progress
        self._moved(self.name, verdict)

    async def share_with(self, blobs: Blobs) -> None:
        """Read what others know, join it, look, and write what is new. Raises StoreError."""
        shared = Shared.decode(await blobs.get_blob(self._blob), steps=len(self._steps))
        now_s = self._wall_s()
        self._shared = shared or Shared(self.progress or Progress(since_s=now_s))
        self._others = self._shared.of_others(self._replica)
        self._take(self._shared.progress)
        self.look()
        assert self.progress is not None
        mine = (self.progress, self.counts[self.form.candidate].requests + self.counts[self.form.baseline].requests)
        kept = shared is not None and shared.progress == self.progress and self._replica_is_in(shared)
        if mine == self._written and kept and now_s - self._written_at_s < _WRITE_AGAIN_S:
            return
        self._shared.progress = self.progress
        self._shared.counts[self._replica] = (now_s, dict(self.counts))
        await blobs.put_blob(self._blob, self._shared.encode(), _KEEP_MS)
        self._written, self._written_at_s = mine, now_s

    def _replica_is_in(self, shared: Shared) -> bool:
        """Nobody has written over what this process wrote."""
        there = shared.counts.get(self._replica)
        return there is not None and all(
            there[1].get(arm, ArmCounts()).requests == counts.requests for arm, counts in self.counts.items()
        )

    def _take(self, theirs: Progress) -> None:
        """What others know may be further."""
        before = self.progress
        self.progress = theirs if before is None else before.joined(theirs)
        if before is None or (before.phase, before.step) != (self.progress.phase, self.progress.step):
            action = "roll back" if self.progress.phase == "rolled_back" else "hold"
            why = self.progress.why or f"step {self.progress.step + 1}, {self.share:g} %, as the store has it"
            self.verdict = Verdict(action, why)  # type: ignore[arg-type]  # one of its words
            self._moved(self.name, self.verdict._replace(action="hold"))


async def share_all(canaries: Sequence[RunningCanary], blobs: Blobs) -> str:
    """Share every canary. Returns what kept one from it; empty when all is well."""
    failed = ""
    for canary in canaries:
        try:
            await canary.share_with(blobs)
        except StoreError as error:
            failed = str(error)
            canary.look()
        except Exception as error:  # noqa: BLE001 - a bug in one must not end the others, nor the task
            _log.exception("canary %s cannot be looked at", canary.name)
            failed = f"{type(error).__name__}: {error}"
    return failed
