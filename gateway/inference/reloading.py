"""One pass over a model's versions: which are loaded again, and which serve after it.

    description ─▶ for each version: unchanged, or failed before and unchanged, or loaded ─▶ Outcome

Runs in a thread and changes nothing but what it returns.

Invariants
- What failed has taken nothing away.
- A description that has changed and does not go with a version that serves, or has a label, is refused whole.
- So are versions with which a model would have no fallback that can answer: this one, or one that falls back to it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from featureclient.schema import ConfigError, Problem
from gateway.inference import fallbacks
from gateway.inference.layout import Stamp
from gateway.inference.loading import Description, Loader, ModelsNotLoaded, Reason
from gateway.inference.model import Model

_log = logging.getLogger(__name__)
Memos: TypeAlias = Mapping[int, tuple[Stamp, str]]
"""Version -> what its files were when it failed, and why it did."""
WHOLE = -1
"""Stands for the version where a model fails before its versions are looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """A version that serves, and what its files were. Two loads are two of these."""

    model: Model
    description: Stamp
    files: Stamp


class Outcome(NamedTuple):
    """What became of one model: what is to serve, what failed, and what the loads took."""

    serving: Mapping[int, Serving]
    failed: Memos
    problems: Sequence[Problem]
    fresh: Sequence[Model]
    failed_now: Sequence[Reason]
    """Why those failed that were tried and had not failed before, unchanged."""
    labels: Mapping[str, int] | None = None
    """Label -> version, of the description that was taken; None where none was."""
    held: bool = False
    """Whether it was refused for a fallback: it may load, unchanged, when other models serve."""


class Reload:
    """One pass over the versions of a model that has a description."""

    def __init__(
        self,
        loader: Loader,
        described: Description,
        before: Mapping[int, Serving],
        failed_before: Memos,
        loading: Callable[[int], None],
        *,
        others: Sequence[Model],
    ) -> None:
        """`others` are the models of other names that serve."""
        self.loader = loader
        self.described = described
        self.before = before
        self.failed_before = failed_before
        self.loading = loading
        self.others = others
        self.fresh: list[Model] = []
        self.failed: dict[int, tuple[Stamp, str]] = {}
        self.failed_now: list[Reason] = []
        self.problems: list[Problem] = described.problems()
        if self.problems:
            self._fail_whole("file" if described.entry.problems else "manifest")

    def outcome(self) -> Outcome:
        """Load what has to be loaded, and decide what serves."""
        serving: dict[int, Serving] = {}
        for version in self.described.versions:
            one = self._unchanged(version) or self._load(version)
            if one is not None:
                serving[version] = one
        taken = bool(serving) or not self.failed
        if self.failed:
            # What failed has taken nothing away, not even a version that the policy has no place for any more.
            serving = {**self.before, **serving}
        held = not self._refuses_all() and self._leaves_unanswered(serving)
        problems = sorted(self.problems, key=lambda problem: (problem.file, problem.line))
        if self._refuses_all():
            for model in self.fresh:
                model.runner.close()
            return Outcome(self.before, self.failed, problems, (), self.failed_now, held=held)
        labels = self.described.labels if taken else None
        return Outcome(serving, self.failed, problems, self.fresh, self.failed_now, labels)

    def _leaves_unanswered(self, serving: Mapping[int, Serving]) -> bool:
        """Whether new versions would leave a model without a fallback that had one, or have none themselves."""
        if not (self.fresh and self.loader.hot):
            return False
        before = fallbacks.problems(self.others)
        after = fallbacks.problems([*self.others, *(one.model for one in serving.values())])
        wrong = [found for found in after if found not in before]
        if wrong:
            where = ("validation", "fallback") if self.described.source is not None else ()
            self.problems += [self.described.problem(where, str(found)) for found in wrong]
            self._fail_whole("fallback")
        return bool(wrong)

    def _fail_whole(self, reason: Reason) -> None:
        self.failed[WHOLE] = (self.described.entry.whole_stamp, "; ".join(map(str, self.problems)))
        self.failed_now.append(reason)

    def _unchanged(self, version: int) -> Serving | None:
        old = self.before.get(version)
        entry = self.described.entry
        same = old is not None and (old.description, old.files) == (entry.stamp, entry.versions[version].stamp)
        return old if same else None

    def _load(self, version: int) -> Serving | None:
        entry = self.described.entry
        found = entry.versions[version]
        stamp = (*entry.stamp, *found.stamp)
        memo = self.failed_before.get(version)
        if memo is not None and memo[0] == stamp:
            self.failed[version] = memo
            return None
        self.loading(version)
        try:
            model = self.loader.load(self.described, version)
        except ConfigError as error:
            problems: Sequence[Problem] = error.problems
            reason: Reason = error.reason if isinstance(error, ModelsNotLoaded) else "other"
        except Exception as error:  # noqa: BLE001 - whatever a graph does to us, what serves goes on
            _log.exception("loading %s/%d failed", entry.name, version)
            problems, reason = [Problem(str(found.path), 0, "", f"{type(error).__name__}: {error}")], "other"
        else:
            self.fresh.append(model)
            return Serving(model, entry.stamp, found.stamp)
        self.problems += problems
        self.failed[version] = (stamp, "; ".join(map(str, problems)))
        self.failed_now.append(reason)
        return None

    def _refuses_all(self) -> bool:
        """A description that is wrong, or has changed and does not go with a version that serves or has a label."""
        if WHOLE in self.failed:
            return True
        changed = any(old.description != self.described.entry.stamp for old in self.before.values())
        needed = {*self.before, *self.described.labels.values()}
        return changed and not needed.isdisjoint(self.failed)
