"""The model repository: what serves, and how that changes while it does.

    load, unload, refresh ─▶ one load at a time, in a thread ─▶ swap on the loop ─▶ on_swap ─▶ drained: retire

Lookups read a snapshot that is never changed, only replaced; they take no lock and know nothing of loads.

Invariants
- A version that does not load, or fails its warm-up or its golden example, never serves, and takes nothing
  away: what served goes on serving until all that replaces it is ready.
- A change of a model's description is taken by all of its versions that serve, or by none. Labels are those of the
  newest description that was taken.
- Nothing is kept of a model whose files are gone and that does not serve.
- Everything but a load itself happens on the loop. A load that takes too long is reported and goes on; no other load
  begins before its end, and a stop does not wait for it.
- A repository that cannot be read, or is empty, takes nothing away: that is a volume that went, and no wish.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from featureclient.schema import Catalogue, ConfigError, Problem
from gateway.inference import fallbacks, layout
from gateway.inference.background import in_thread
from gateway.inference.fallbacks import Unanswered
from gateway.inference.layout import Stamp
from gateway.inference.loading import Loader, ModelsNotLoaded, Reason
from gateway.inference.mirror import MirrorError
from gateway.inference.model import Model, ModelState, Refused, State, Swap
from gateway.inference.pinned import PinnedResolve
from gateway.inference.reloading import WHOLE, Memos, Outcome, Reload, Serving
from gateway.inference.session import InferenceOptions
from gateway.inference.variants import Compiling
from gateway.plan.transform import Resolve
from gateway.records.errors import DeadlinePassed, ModelNotFound, Overloaded

_EXPECTED = "model.yaml, or <name>/<number>/model.onnx"
WAITING_MAX = 64
"""Loads that wait for their turn. Beyond it they are refused."""
STATES_MAX = 10_000
"""Versions of which the end is remembered."""
COUNTED_MAX = 500
"""Models whose failures are counted by name; those of the rest are counted together."""
OTHER = "other"
_log = logging.getLogger(__name__)
_Key: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """How models get into the server and out of it."""

    models_must_load: bool = True
    """Start only when every model of the repository loads. Else the server starts with those that do."""
    watch_models: bool = False
    """Look for changes of the models' folder and load what is new, changed or gone."""
    watch_debounce_ms: int = 1_600
    """How long changes are gathered before they are looked at, milliseconds. A file that is still being written then
    fails to load, never serves, and is looked at again when it changes again."""
    watch_poll_s: float = 0.0
    """Look at the folder every so many seconds instead of being told of changes: network file systems tell nothing.
    0: be told."""
    load_timeout_s: float = 300.0
    """How long `load`, `unload` and `refresh` wait before they report that it takes too long, seconds. The load itself
    goes on."""
    mirror: str = ""
    """`s3://`, `gs://`, `az://` or `https://` address whose models are copied into the models' folder before it is
    read. Needs the extra `objects`."""
    mirror_every_s: float = 60.0
    """How often the mirrored address is looked at again while `watch_models` is on, seconds."""
    mirror_options: Mapping[str, str] = field(default_factory=dict)
    """Settings of the object store, as obstore names them: `{endpoint: ..., region: ...}`. Credentials are better left
    to the environment."""

    def __post_init__(self) -> None:
        if self.watch_debounce_ms < 1:
            raise ValueError("watch_debounce_ms must be at least 1")
        if self.watch_poll_s < 0:
            raise ValueError("watch_poll_s must not be negative")
        if self.load_timeout_s <= 0 or self.mirror_every_s <= 0:
            raise ValueError("load_timeout_s and mirror_every_s must be positive")


class LoadCounts:
    """How loads of versions ended, for the metrics. `seconds` are those of loads that succeeded."""

    def __init__(self) -> None:
        self.loaded = 0
        self.failed = 0
        self.seconds = 0.0
        self.reasons: dict[tuple[str, str], int] = Counter()
        """(model, reason) -> loads that failed."""
        self._named: set[str] = set()

    def add(self, name: str, outcome: Outcome) -> None:
        """Count one pass over a model."""
        self.loaded += len(outcome.fresh)
        self.failed += len(outcome.failed_now)
        for reason in outcome.failed_now:
            if len(self._named) < COUNTED_MAX:
                self._named.add(name)
            self.reasons[name if name in self._named else OTHER, reason] += 1
        self.seconds += sum(model.facts.loaded_s for model in outcome.fresh)


class _Snapshot:
    """What serves at one moment."""

    __slots__ = ("labels", "latest", "models")

    def __init__(self, models: Mapping[str, Mapping[int, Model]], labels: Mapping[str, Mapping[str, int]]) -> None:
        self.models = {name: versions for name, versions in models.items() if versions}
        self.latest = {name: versions[max(versions)] for name, versions in self.models.items()}
        self.labels = {
            (name, label): versions[version]
            for name, versions in self.models.items()
            for label, version in labels.get(name, {}).items()
            if version in versions
        }


class ModelRepository:
    """The models that serve."""

    def __init__(self, loader: Loader, options: RepositoryOptions) -> None:
        """Serves nothing until something is loaded. `ModelRepository.open` is the usual way."""
        self.on_swap: list[Callable[[Swap], None]] = []
        """Called on the loop after each change. Whoever is called last has seen to the others."""
        self.fetch: Callable[[], object] | None = None
        """What brings the folder up to date before it is looked at; it may block, and raise MirrorError."""
        self.options = options
        self.counts = LoadCounts()
        self._loader = loader
        self._serving: dict[str, Mapping[int, Serving]] = {}
        self._labels: dict[str, Mapping[str, int]] = {}
        self._failed: dict[_Key, tuple[Stamp, str]] = {}
        self._unloaded: set[str] = set()
        self._states: dict[_Key, ModelState] = {}
        self._snapshot = _Snapshot({}, {})
        self._held: dict[str, _Snapshot] = {}
        """Models that were refused for a fallback, and what served then."""
        self._unanswered: Sequence[Unanswered] = ()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Sequence[Problem]]] = set()
        self._busy_with = ""
        self._closed = False

    @classmethod
    def open(
        cls,
        root: Path,
        catalogue: Catalogue,
        resolve: Resolve,
        inference: InferenceOptions,
        options: RepositoryOptions | None = None,
    ) -> "ModelRepository":
        """Load every model under `root`. Takes long: run it in a thread. Raises `ModelsNotLoaded`."""
        loader = Loader(root, catalogue, PinnedResolve(resolve), inference)
        repository = cls(loader, options or RepositoryOptions())
        problems = repository._load_all()
        loader.hot = True
        if problems and repository.options.models_must_load:
            repository.close()
            raise ModelsNotLoaded(problems)
        return repository

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._snapshot.models.values() for model in versions.values())

    def __repr__(self) -> str:
        serving = ", ".join(f"{model.name}/{model.version}" for model in self) or "nothing"
        return f"<ModelRepository {serving}{f', loading {self._busy_with}' if self._busy_with else ''}>"

    # ── Lookups ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def latest(self, name: str) -> Model:
        """The highest version of a model."""
        model = self._snapshot.latest.get(name)
        if model is None:
            raise self._unknown(name)
        return model

    def version(self, name: str, version: int) -> Model:
        """One version of a model."""
        versions = self._snapshot.models.get(name)
        if versions is None:
            raise self._unknown(name)
        model = versions.get(version)
        if model is None:
            raise ModelNotFound(f"model {name} has no version {version} (loaded: {_listed(versions)})")
        return model

    def labelled(self, name: str, label: str) -> Model:
        """The version of a model that carries a label."""
        snapshot = self._snapshot
        model = snapshot.labels.get((name, label))
        if model is not None:
            return model
        if name not in snapshot.models:
            raise self._unknown(name)
        known = _listed([key[1] for key in snapshot.labels if key[0] == name])
        raise ModelNotFound(f"model {name} has no label {label[:64]!r} (it has: {known})")

    def states(self) -> Sequence[ModelState]:
        """Every version that is known, in order: those that serve, those that do not, and why. For any thread."""
        unanswered = {(one.name, one.version): str(one) for one in self._unanswered}
        found = sorted(self._states.copy().values())
        return [
            one._replace(reason="; ".join(filter(None, (one.reason, said))))
            if one.state == "READY" and (said := unanswered.get((one.name, one.version)))
            else one
            for one in found
        ]

    def _unknown(self, name: str) -> ModelNotFound:
        return ModelNotFound(f"no model {name[:64]!r} (there are: {_listed(self._snapshot.models)})")

    @property
    def compiling(self) -> Compiling:
        """What the manifests of these models are compiled with."""
        return Compiling(self._loader.catalogue, self._loader.resolve)

    # ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def load(self, name: str) -> None:
        """Load a model, or what has changed of it, and have it serve. Versions that failed before are tried again.

        Raises ModelNotFound where there is no such folder, ModelsNotLoaded with what is wrong, Overloaded where too
        many loads wait, and DeadlinePassed after `load_timeout_s`; what was begun then goes on.
        """
        _checked(name)

        async def load() -> Sequence[Problem]:
            return [*await self._fetch(), *await self._change(name, explicit=True)]

        problems = await self._in_turn(f"load {name}", load)
        if problems:
            raise ModelsNotLoaded(problems)

    async def unload(self, name: str) -> None:
        """Have a model serve no more. It stays away until it is asked for by `load`. Raises as that does."""
        _checked(name)

        async def unload() -> Sequence[Problem]:
            if name not in self._serving:
                raise self._unknown(name)
            self._unloaded.add(name)
            self._swap(name, {})
            return ()

        await self._in_turn(f"unload {name}", unload)

    async def refresh(self) -> Sequence[Problem]:
        """Take what is new, changed or gone in the repository. Returns what does not load; what serves goes on."""
        return await self._in_turn("refresh", self._refresh)

    def retire(self, model: Model) -> None:
        """A removed model has answered everything it took in: give back what it holds."""
        model.runner.close()
        key = (model.name, model.version)
        state = self._states.get(key)
        if state is not None and state.state == "UNLOADING":
            self._set(key, "UNAVAILABLE", "unloaded")

    def close(self) -> None:
        """Give the worker threads back. A load in progress is left to itself."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for model in self:
            model.runner.close()

    async def _in_turn(self, what: str, change: "Callable[[], _Change]") -> Sequence[Problem]:
        if len(self._tasks) >= WAITING_MAX:
            raise Overloaded(f"{len(self._tasks)} loads wait already, now: {self._busy_with}", limit="WAITING_MAX")

        async def run() -> Sequence[Problem]:
            async with self._turn:
                self._busy_with = what
                try:
                    return await change()
                finally:
                    self._busy_with = ""

        task = asyncio.create_task(run(), name=f"headrace-models: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        # A caller that leaves does not end what it began: somebody else may wait for the same.
        await asyncio.wait([task], timeout=self.options.load_timeout_s)
        if not task.done():
            now = f"; {self._busy_with} is in progress" if self._busy_with != what else ""
            raise DeadlinePassed(f"{what} takes longer than load_timeout_s={self.options.load_timeout_s:g} s{now}")
        return task.result()

    def _done(self, task: asyncio.Task[Sequence[Problem]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("%s: %s", task.get_name(), error)

    async def _fetch(self) -> list[Problem]:
        """Bring the folder up to date. Where that fails, what is there is what there is."""
        if self.fetch is not None:
            try:
                await in_thread(self.fetch)
            except MirrorError as error:
                _log.error("the models' folder is not up to date: %s", error)
                return [Problem(str(self._loader.root), 0, "repository.mirror", str(error))]
        return []

    async def _refresh(self) -> Sequence[Problem]:
        fetched = await self._fetch()
        try:
            there = await in_thread(self._names)
        except OSError as error:
            return [*fetched, *self._gone(str(error.strerror or error))]
        wanted = [name for name in there if name not in self._unloaded]
        problems = {name: await self._change(name, explicit=False) for name in wanted}
        for _ in wanted:  # a model may come before the one that it falls back to
            again = [name for name in wanted if self._may_be_answered(name)]
            if not again:
                break
            problems |= {name: await self._change(name, explicit=False) for name in again}
        found = [*fetched, *(problem for name in wanted for problem in problems[name])]
        gone = [name for name in self._serving if name not in there]
        if gone and not there:
            return [*found, *self._gone("there is no model in it")]
        for name in gone:
            _log.info("the files of model %s are gone: it serves no more", name)
            self._swap(name, {})
        for name in {key[0] for key in (*self._states, *self._failed)} - {*there}:
            self._forget(name)
        folder = str(self._loader.root)
        return [*found, *(Problem(folder, 0, "validation.fallback", str(one)) for one in self._unanswered)]

    def _may_be_answered(self, name: str) -> bool:
        """Whether a model was refused for a fallback, and something else serves since."""
        return self._held.get(name, self._snapshot) is not self._snapshot

    def _forget(self, name: str) -> None:
        """The files of a model that does not serve are gone, and nobody asks why any more."""
        self._held.pop(name, None)
        for key in [key for key in self._failed if key[0] == name]:
            del self._failed[key]
        for key in [key for key, one in self._states.items() if key[0] == name and one.state != "UNLOADING"]:
            del self._states[key]

    def _names(self) -> list[str]:
        """The folders in which there is something of a model, be it wrong."""
        root = self._loader.root
        return [name for name in layout.names(root) if layout.has_model(root, name)]

    def _gone(self, why: str) -> Sequence[Problem]:
        problem = Problem(str(self._loader.root), 0, "", f"the repository cannot be read ({why}); what serves goes on")
        _log.error("%s", problem)
        return [problem]

    async def _change(self, name: str, *, explicit: bool) -> Sequence[Problem]:
        """Bring one model to what its folder says."""
        serving = self._serving.get(name, {})
        known = {} if explicit or self._may_be_answered(name) else self._failed
        failed = {key[1]: memo for key, memo in known.items() if key[0] == name}
        others = [model for model in self if model.name != name]
        loop = asyncio.get_running_loop()

        def loading(version: int) -> None:
            if version not in serving:
                loop.call_soon_threadsafe(self._set, (name, version), "LOADING", "")

        outcome = await in_thread(lambda: self._attempt(name, serving, failed, loading, others))
        if outcome is None:
            if name not in self._serving:
                self._forget(name)
            if explicit:
                raise ModelNotFound(f"the repository has no folder of a model {name!r}")
            return ()
        if self._closed:
            for model in outcome.fresh:
                model.runner.close()
            return ()
        if explicit:
            self._unloaded.discard(name)
        self._swap(name, outcome.serving, outcome.labels)
        self._remember(name, outcome)
        return outcome.problems

    def _load_all(self) -> list[Problem]:
        """What `open` does, before there is a loop: load everything once, and find every problem."""
        try:
            there = layout.names(self._loader.root)
        except OSError as error:
            return [Problem(str(self._loader.root), 0, "models", f"cannot be read: {error.strerror or error}")]
        problems: list[Problem] = []
        for name in there:
            outcome = self._attempt(name, {}, {}, lambda version: None)
            if outcome is not None:
                if outcome.serving:
                    self._serving[name] = outcome.serving
                    self._labels[name] = outcome.labels or {}
                self._remember(name, outcome, said=self.options.models_must_load)
                problems += outcome.problems
        if not self._serving and not problems:
            problems.append(Problem(str(self._loader.root), 0, "models", f"no model here: expected <name>/{_EXPECTED}"))
        self._snapshot = self._taken()
        self._unanswered = fallbacks.problems(self)
        return problems

    # ── Loads: in a thread, with nothing of the repository but what they are given ──────────────────────────────────

    def _attempt(
        self,
        name: str,
        serving: Mapping[int, Serving],
        failed: Memos,
        loading: Callable[[int], None],
        others: Sequence[Model] = (),
    ) -> Outcome | None:
        """Load what is new or changed of a model, but what is in `failed` and unchanged. None: no such folder."""
        stamp: Stamp = ()
        reason: Reason = "manifest"
        try:
            entry = layout.look(self._loader.root, name)
            if entry is None:
                return None
            stamp = entry.whole_stamp
            memo = failed.get(WHOLE)
            if memo is not None and memo[0] == stamp:
                return Outcome(serving, {WHOLE: memo}, (), (), ())
            described = self._loader.describe(entry)
        except ConfigError as error:
            problems: Sequence[Problem] = error.problems
        except (Refused, OSError) as error:
            problems, reason = [Problem(str(self._loader.root / name), 0, "", str(error))], "file"
        else:
            return Reload(self._loader, described, serving, failed, loading, others=others).outcome()
        memo = (stamp, "; ".join(map(str, problems)))
        if failed.get(WHOLE) == memo:  # it has been said
            return Outcome(serving, {WHOLE: memo}, (), (), ())
        return Outcome(serving, {WHOLE: memo}, problems, (), (reason,))

    # ── On the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _swap(self, name: str, serving: Mapping[int, Serving], labels: Mapping[str, int] | None = None) -> None:
        """The moment of the change. Without new `labels` those that there are stay, while something serves."""
        before = self._serving.get(name, {})
        added = [new.model for version, new in serving.items() if before.get(version) is not new]
        removed = [old.model for version, old in before.items() if serving.get(version) is not old]
        if not added and not removed:
            return
        if serving:
            self._serving[name] = serving
            self._labels[name] = self._labels.get(name, {}) if labels is None else labels
        else:
            self._serving.pop(name, None)
            self._labels.pop(name, None)
        self._snapshot = self._taken()
        self._look_for_fallbacks()
        for model in removed:
            self._set((name, model.version), "UNLOADING", "answers what it took in")
        swap = Swap(added, removed)
        for tell in self.on_swap:
            try:
                tell(swap)
            except Exception:  # noqa: BLE001 - the others have to hear of it too
                _log.exception("somebody who was told of a swap of model %s failed", name)

    def _look_for_fallbacks(self) -> None:
        """Say which models have none any more. A load does not do that; to take a model away may."""
        before, self._unanswered = self._unanswered, fallbacks.problems(self)
        for one in self._unanswered:
            if one not in before:
                _log.error("%s", one)

    def _taken(self) -> _Snapshot:
        models = {name: {version: one.model for version, one in found.items()} for name, found in self._serving.items()}
        return _Snapshot(models, self._labels)

    def _remember(self, name: str, outcome: Outcome, *, said: bool = False) -> None:
        """Count, log and keep what became of a model, so that what failed is not tried again unchanged."""
        self.counts.add(name, outcome)
        if outcome.held:
            self._held[name] = self._snapshot
        elif outcome.failed_now or not outcome.failed:
            self._held.pop(name, None)
        for model in outcome.fresh:
            facts = model.facts
            _log.info("loaded %s/%d in %.3f s: %s", name, model.version, facts.loaded_s, model.runner.cost)
            for warning in facts.warnings:
                _log.warning("%s/%d: %s", name, model.version, warning)
        for problem in () if said else outcome.problems:
            _log.error("a model does not load: %s", problem)
        for key in [key for key in self._failed if key[0] == name]:
            del self._failed[key]
        for key in [key for key, state in self._states.items() if key[0] == name and state.state != "UNLOADING"]:
            del self._states[key]
        for version, memo in outcome.failed.items():
            self._failed[name, version] = memo
            self._set((name, version), "UNAVAILABLE", memo[1])
        since = "; ".join(reason for _, reason in outcome.failed.values())
        for version in outcome.serving:
            self._set((name, version), "READY", f"what was loaded earlier serves; since then: {since}" if since else "")

    def _set(self, key: _Key, state: State, reason: str) -> None:
        before = self._states.get(key)
        if before is None or (before.state, before.reason) != (state, reason):
            while len(self._states) >= STATES_MAX and key not in self._states:
                del self._states[next(iter(self._states))]
            self._states[key] = ModelState(*key, state, reason, time.time())


_Change: TypeAlias = Coroutine[Any, Any, Sequence[Problem]]


def _checked(name: str) -> None:
    try:
        layout.check_name(name)
    except Refused as error:
        raise ModelNotFound(str(error)) from error


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
