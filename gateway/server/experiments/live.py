"""The experiments that run: read from `experiments.yaml`, followed when it is edited and when models are swapped.

    the file changed ─▶ read, checked and compiled in a thread ─▶ installed on the loop ─▶ routes, targets, variants
                                └▶ wrong: told with file and line, counted; those that run go on

The handlers of the edge read `routes` and ask `forced`; the shadow asks `targets`; `describe` and `seen` are for
people and for Prometheus.

Invariants
- What handlers read is never changed, only replaced, and only on the loop: a batch sees all of an edit or nothing.
- An edit that is wrong in one place changes nothing.
- Nothing new is routed to a variant of a version that was removed. An experiment that does not fit what is loaded any
  more is suspended, and the model as it is served answers.
- An experiment that an edit does not touch keeps its counts, and a canary its progress.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from featureclient.schema import ConfigError, Problem, document
from gateway.experiments.canary import Verdict
from gateway.experiments.experiment import Experiment, variant_name
from gateway.experiments.health import ArmCounts
from gateway.experiments.layer import Layer
from gateway.inference import Model, ModelRepository, Swap
from gateway.inference.model import DEFAULT
from gateway.inference.variants import IdsAt, Target, overridable
from gateway.records.errors import InvalidRequest, ModelNotFound
from gateway.server.experiments.canaries import Blobs, RunningCanary, share_all
from gateway.server.experiments.compiling import Compiled, Key, by_layer, compile_experiments
from gateway.server.experiments.routes import Feed, Route, Way, score_output

EVERY_S = 1.0
"""How often canaries are looked at and shared."""
_FORGET_AFTER_S = 60.0
"""How long what belongs to a variant is kept that nothing new comes to: what is on its way is answered by then."""
_TRIES_MAX = 5
"""How often a file is compiled again since models were swapped meanwhile."""
_BYTES_MAX = 4 << 20
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Running:
    """An experiment of the file, and what has been seen of it in this process."""

    experiment: Experiment
    counts: dict[str, ArmCounts]
    canary: RunningCanary | None
    since_s: float
    """When this process began it, seconds of the wall clock."""
    rollbacks: int = 0
    warnings: dict[str, str] = field(default_factory=dict)
    """By what they are about."""


class Live:
    """The experiments of one gateway. Everything but compiling happens on the loop."""

    def __init__(
        self,
        path: Path,
        models: ModelRepository,
        replica: str,
        *,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """`replica` is this process, and no other's before or after it."""
        self.path = path
        self.models = models
        self.replica = replica
        self.wall_s = wall_s
        self.routes: Mapping[Model, Route] = MappingProxyType({})
        """By the model that answers requests which name no version."""
        self.running: Mapping[str, Running] = MappingProxyType({})
        self.suspended: Mapping[str, str] = MappingProxyType({})
        self.variants: Mapping[tuple[str, str], Model] = MappingProxyType({})
        """(experiment, variant), of experiments that are not stopped."""
        self.reload_failures = 0
        self.failure = ""
        """What is wrong with the file as it is now; empty when it is what runs."""
        self.loaded_at_s = 0.0
        self.store_trouble = ""
        self.announce: Callable[[Swap], None] = lambda swap: None
        """Told which variants are new, and which nothing new comes to."""
        self.forget: Callable[[Model], None] = lambda model: None
        """Told of a variant that has answered what it took in."""
        self._targets: Mapping[Model, Sequence[Target]] = {}
        self._forced: Mapping[str, Mapping[str, Model]] = {}
        self._known: Mapping[Key, Model] = {}
        self._compiled: Compiled | None = None
        self._ways: dict[Model, Way] = {}
        self._retiring: dict[Model, asyncio.TimerHandle] = {}
        self._tried = b""
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Live {self.path}: {', '.join(self.running) or 'nothing'}>"

    # ── What others ask ─────────────────────────────────────────────────────────────────────────────────────────────

    def forced(self, name: str, wanted: str) -> Model:
        """The variant that a request names. Raises ModelNotFound with those that there are."""
        latest = self.models.latest(name)
        if wanted == DEFAULT:
            return latest
        variants = self._forced.get(name, {})
        model = variants.get(wanted)
        if model is None:
            there = ", ".join((DEFAULT, *variants))
            raise ModelNotFound(f"model {name} has no variant {wanted[:64]!r} (there are: {there})")
        return model

    def targets(self, model: Model) -> Sequence[Target]:
        """Who answers once more what this model has answered."""
        return self._targets.get(model, ())

    def state_of(self, name: str) -> str:
        """running, stopped, suspended, decided (everybody gets one arm), or how a canary stands."""
        one = self.running[name]
        if name in self.suspended:
            return "suspended"
        if not one.experiment.running:
            return "stopped"
        if one.experiment.form.everybody is not None:
            return "decided"
        return "running" if one.canary is None else one.canary.state

    def share_of(self, name: str, arm: str) -> float:
        """Percent of the entities of an experiment, or of a shadow's requests, that an arm is to get now."""
        one = self.running[name]
        form = one.experiment.form
        if self.state_of(name) in {"stopped", "suspended"}:
            return 0.0
        if form.shadow is not None:
            return form.shadow.share
        everybody = self._everybody(one)
        if everybody is not None:
            return 100.0 if arm == everybody else 0.0
        return self._weights(one)[arm]

    # ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self) -> None:
        """Read the file for the first time. Raises ConfigError with every problem."""
        data = self._read()
        self._tried = data
        self._install(compile_experiments(_parsed(data, self.path), self.models, {}, strict=True))

    async def refresh(self) -> None:
        """Take the file as it is now, if it has changed. What is wrong with it is told; those that run go on."""
        async with self._turn:
            data = None
            try:
                data = await asyncio.to_thread(self._read)
                if data == self._tried:
                    return
                self._tried = data
                await self._reload(data)
            except ConfigError as error:
                self._tried = b"" if data is None else data
                said = "; ".join(map(str, error.problems))
                if data is None and said == self.failure:
                    return  # it has been told
                self.reload_failures += 1
                self.failure = said
                for problem in error.problems:
                    _log.error("the experiments that run go on, since the edit is wrong: %s", problem)

    async def _reload(self, data: bytes) -> None:
        source = await asyncio.to_thread(_parsed, data, self.path)
        for _ in range(_TRIES_MAX):
            serving = {*self.models}
            compiled = await asyncio.to_thread(compile_experiments, source, self.models, dict(self._known), strict=True)
            if serving == {*self.models}:
                self._install(compiled)
                _log.info("experiments: %s", ", ".join(f"{n} is {self.state_of(n)}" for n in self.running) or "none")
                self._wake.set()
                return
        self._tried = b""  # it is looked at again with the next change, or swap

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                data = file.read(_BYTES_MAX + 1)
        except OSError as error:
            said = f"cannot be read: {error.strerror or error}"
            raise ConfigError([Problem(str(self.path), 0, "", said)]) from error
        if len(data) > _BYTES_MAX:
            raise ConfigError([Problem(str(self.path), 0, "", f"is longer than {_BYTES_MAX} bytes")])
        return data

    def on_swap(self, swap: Swap) -> None:
        """Other models serve: their variants are compiled anew, here and now, before the next request is routed."""
        if self._compiled is None:
            return
        before = dict(self.suspended)
        try:
            compiled = compile_experiments(self._compiled.source, self.models, self._known, strict=False)
        except Exception:  # noqa: BLE001 - whatever it is, nothing may go to a model that was removed
            _log.exception("the experiments are suspended: they cannot be compiled against the models that serve now")
            why = "an error of the server, which the log has"
            compiled = self._compiled._replace(
                variants={}, mixed={}, known={}, suspended=dict.fromkeys(self.running, why)
            )
        self._install(compiled)
        for name, why in self.suspended.items():
            if before.get(name) != why:
                _log.error("experiment %s is suspended, the model as it is served answers: %s", name, why)

    def gone(self, model: Model) -> None:
        """A removed model has answered everything: so have its variants, which share its runner."""
        for variant in [one for one in self._retiring if one.runner is model.runner]:
            self._retiring[variant].cancel()
            self._forget(variant)

    async def open(self, blobs: Blobs) -> None:
        """Ask the store how far the canaries are."""
        self.store_trouble = await share_all(self._canaries(), blobs)

    async def run(self, blobs: Blobs) -> NoReturn:
        """Look at the canaries, for ever."""
        while True:
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            trouble = await share_all(self._canaries(), blobs)
            if trouble and trouble != self.store_trouble:
                _log.warning("how far the canaries are is not shared: %s", trouble)
            self.store_trouble = trouble

    def close(self) -> None:
        """Nothing is forgotten any more."""
        for timer in self._retiring.values():
            timer.cancel()
        self._retiring.clear()

    # ── On the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _install(self, compiled: Compiled) -> None:
        """The moment of the change."""
        added = [model for key, model in compiled.known.items() if key not in self._known]
        removed = [model for key, model in self._known.items() if key not in compiled.known]
        self._compiled, self._known = compiled, compiled.known
        self.suspended, self.variants = compiled.suspended, compiled.variants
        self.running = {one.name: self._kept(one) for one in compiled.experiments}
        self.failure, self.loaded_at_s = "", self.wall_s()
        self._forced = self._forced_variants()
        self._ways = {model: way for model, way in self._ways.items() if model in {*compiled.known.values()}}
        self._route()
        if added or removed:
            self.announce(Swap(added, removed))
            loop = asyncio.get_running_loop() if removed else None
            for model in removed:
                self._retiring[model] = loop.call_later(_FORGET_AFTER_S, self._forget, model)  # type: ignore[union-attr]  # there is one

    def _kept(self, experiment: Experiment) -> Running:
        """The experiment with what was seen of it, if it is the one that ran already."""
        before = self.running.get(experiment.name)
        if before is not None and before.experiment.digest == experiment.digest:
            before.experiment = experiment
            return before
        counts = {arm: ArmCounts() for arm in experiment.arms}
        canary = None
        if experiment.kind == "canary":
            canary = RunningCanary(experiment, counts, self.replica, self.wall_s, self._moved)
        return Running(experiment, counts, canary, self.wall_s())

    def _moved(self, name: str, verdict: Verdict) -> None:
        """A canary goes another way from now on."""
        self._route()
        self._wake.set()
        if verdict.action == "roll back":
            self.running[name].rollbacks += 1
            _log.error("canary %s is rolled back: %s", name, verdict.why)
        else:
            _log.info("canary %s is %s: %s", name, self.state_of(name), verdict.why)

    def _forget(self, model: Model) -> None:
        self._retiring.pop(model, None)
        self.forget(model)

    def _canaries(self) -> list[RunningCanary]:
        return [
            one.canary
            for name, one in self.running.items()
            if one.canary is not None and one.experiment.running and name not in self.suspended
            and one.experiment.form.everybody is None
        ]  # fmt: skip

    def _active(self) -> list[Running]:
        return [
            one for name, one in self.running.items() if one.experiment.running and name not in self.suspended
        ]  # fmt: skip

    def _forced_variants(self) -> dict[str, dict[str, Model]]:
        """By model, the variants under their names, and under those of the experiment alone where only one has it."""
        forced: dict[str, dict[str, Model]] = {}
        bare: dict[tuple[str, str], list[Model]] = {}
        for (experiment, variant), model in self.variants.items():
            forced.setdefault(model.name, {})[variant_name(experiment, variant)] = model
            bare.setdefault((model.name, variant), []).append(model)
        for (name, variant), models in bare.items():
            if len(models) == 1:
                forced[name].setdefault(variant, models[0])
        return forced

    def _everybody(self, one: Running) -> str | None:
        said = one.experiment.form.everybody
        return said if said is not None or one.canary is None else one.canary.everybody

    def _weights(self, one: Running) -> dict[str, float]:
        form = one.experiment.form
        if form.split is not None:
            return dict(form.split.weights)
        assert one.canary is not None
        assert form.canary is not None
        share = one.canary.step_share
        return {form.canary.candidate: share, form.canary.baseline: 100.0 - share}

    def _route(self) -> None:
        """Make the routes and the targets of what runs."""
        routes: dict[Model, Route] = {}
        targets: dict[Model, list[Target]] = {}
        active = self._active()
        for name in dict.fromkeys(one.experiment.model for one in active):
            latest = self.models.latest(name)
            here = [one for one in active if one.experiment.model == name]
            if (route := self._route_of(latest, here)) is not None:
                routes[latest] = route
            for one in here:
                for served in self._as_served(latest) if one.experiment.form.shadow is not None else ():
                    targets.setdefault(served, []).extend(self._targets_of(one.experiment, latest))
        self.routes, self._targets = routes, targets

    def _route_of(self, latest: Model, here: Sequence[Running]) -> Route | None:
        by_name = {one.experiment.name: one for one in here}
        weighted = [
            one.experiment if one.canary is None else one.experiment.weighted(self._weights(one))
            for one in here
            if one.experiment.form.shadow is None
        ]
        everybody = {name: arm for name, one in by_name.items() if (arm := self._everybody(one)) is not None}
        layers = [Layer.of(group, everybody) for group in by_layer(weighted)]
        if not layers:
            return None
        ways: dict[tuple[int, ...], Way] = {}
        for choices in product(*[range(len(layer.choices)) for layer in layers]):
            arms = [layer.choices[choice] for layer, choice in zip(layers, choices, strict=True)]
            chosen = [arm for arm in arms if arm is not None]
            if chosen:
                ways[choices] = self._way(latest, chosen, by_name)
        return Route([(IdsAt.of(latest.plan, layer.by), layer) for layer in layers], ways)

    def _way(self, latest: Model, chosen: Sequence[tuple[str, str]], by_name: Mapping[str, Running]) -> Way:
        assert self._compiled is not None
        model = self.variants[chosen[0]] if len(chosen) == 1 else self._compiled.mixed[frozenset(chosen)]
        feeds = [_feed(by_name[name], arm, latest) for name, arm in chosen]
        before = self._ways.get(model)
        if before is not None and [*map(_same, before.feeds)] == [*map(_same, feeds)]:
            return before  # with its sinks, which the pipeline's lanes are for
        way = self._ways[model] = Way(model, feeds, overridable(latest, model))
        return way

    def _as_served(self, latest: Model) -> Iterable[Model]:
        """The model as it is served, and the arms that are nothing else."""
        yield latest
        for model in self._known.values():
            if model.name == latest.name and model.plan is latest.plan and model.runner is latest.runner:
                yield model

    def _targets_of(self, experiment: Experiment, latest: Model) -> Iterable[Target]:
        assert experiment.form.shadow is not None
        at = None if experiment.by is None else IdsAt.of(latest.plan, experiment.by)
        for variant in experiment.arms:
            model = self.variants[experiment.name, variant]
            yield Target(experiment.name, model, experiment.form.shadow.share, experiment.assignment, at)


def forced(live: Live | None, models: ModelRepository, name: str, wanted: str, *, pinned: bool) -> Model:
    """The variant that a request names; `pinned` says that it names a version or a label, too.

    Raises InvalidRequest and ModelNotFound.
    """
    if pinned:
        raise InvalidRequest("a variant has a version: name the variant, or a version or label", field="variant")
    if live is not None:
        return live.forced(name, wanted)
    if wanted != DEFAULT:
        models.latest(name)
        raise ModelNotFound(f"model {name} has no variant {wanted[:64]!r} (there are: {DEFAULT})")
    return models.latest(name)


def _feed(one: Running, arm: str, latest: Model) -> Feed:
    compare = one.experiment.form.compare
    counted = one.canary.counted if one.canary is not None and one.canary.form.candidate == arm else None
    return Feed(one.counts[arm], score_output(latest, compare.output), compare.position, counted)


def _same(feed: Feed) -> tuple[int, int | None, int]:
    """What makes a feed the same as another."""
    return id(feed.counts), feed.output, feed.position


def _parsed(data: bytes, path: Path) -> document.Document:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        said = f"is not UTF-8: {error.reason} at byte {error.start}"
        raise ConfigError([Problem(str(path), 0, "", said)]) from error
    return document.parse(text, str(path))
