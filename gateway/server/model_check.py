"""A model repository looked at as the server would load it: what each version takes and gives, and what is wrong.

Nothing serves here. Each version is loaded for good (graph, plan, trial runs, golden example) and given back; where
that fails, as much as can be said about it is said all the same.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featureclient.schema import Catalogue, ConfigError, Problem, document
from gateway.inference import layout
from gateway.inference.loading import Description, Loader
from gateway.inference.metadata import depends_on_batch
from gateway.inference.model import Model, Refused
from gateway.inference.session import Session, SessionError
from gateway.plan import Manifest
from gateway.plan.explain import Explained, explain
from gateway.plan.transform import resolver
from gateway.records.signature import Signature
from gateway.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Advised:
    """A problem, and what to do about it where the message alone does not say."""

    problem: Problem
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.problem}" + (f"\n    advice: {self.advice}" if self.advice else "")


@dataclass(frozen=True, slots=True)
class Looked:
    """One version of a model, or (`version` 0) a model of which no version can be told."""

    name: str
    version: int
    path: Path | None = None
    model: Model | None = None
    """None when it does not load."""
    manifest: Manifest | None = None
    signature: Signature | None = None
    explained: Explained | None = None
    warnings: tuple[Problem, ...] = ()
    problems: tuple[Advised, ...] = field(default=())

    @property
    def state(self) -> str:
        """As Triton's index calls it."""
        return "READY" if self.model is not None else "UNAVAILABLE"

    @property
    def reason(self) -> str:
        """Why it would not serve; empty when it would."""
        return self.problems[0].problem.message if self.problems else ""


def look_at(settings: Settings, catalogue: Catalogue, name: str | None = None) -> list[Looked]:
    """Load every model of the settings, or the one called `name`, and give them back. Blocks."""
    if settings.transform_path is not None and str(settings.transform_path) not in sys.path:
        sys.path.insert(0, str(settings.transform_path))
    root = Path(str(settings.models))
    loader = Loader(root, catalogue, resolver(settings.transform_modules), settings.inference)
    try:
        names = layout.names(root)
    except OSError as error:
        raise ConfigError([Problem(str(root), 0, "", f"cannot be read: {error.strerror or error}")]) from error
    if name is not None:
        if name not in names:
            raise ConfigError(
                [Problem(str(root), 0, "", f"no model {name!r} (there are: {', '.join(names) or 'none'})")]
            )
        names = [name]
    looked = [one for each in names for one in _Look(loader, root, each).versions()]
    if not looked:
        said = "no model here: expected <name>/<number>/model.onnx, with <name>/model.yaml beside the numbers"
        raise ConfigError([Problem(str(root), 0, "models", said)])
    return looked


class _Look:
    """A look at one model's folder."""

    def __init__(self, loader: Loader, root: Path, name: str) -> None:
        self.loader = loader
        self.root = root
        self.name = name
        self.source: document.Document | None = None
        self.manifest: Manifest | None = None

    def versions(self) -> Iterator[Looked]:
        """Each version of it; nothing for a folder that is no model."""
        try:
            entry = layout.look(self.root, self.name)
        except (Refused, OSError) as error:
            yield self._failed([Problem(str(self.root / self.name), 0, "", str(error))])
            return
        if entry is None:
            return
        try:
            if entry.manifest is not None:
                self.source = document.read(entry.manifest)
                self.manifest = document.validate(self.source, Manifest)
            described = self.loader.describe(entry)
        except ConfigError as error:
            yield self._failed(error.problems)
            return
        for version in described.versions:
            yield self._version(described, version)

    def _failed(self, problems: Sequence[Problem]) -> Looked:
        return Looked(self.name, 0, manifest=self.manifest, problems=tuple([Advised(one) for one in problems]))

    def _version(self, described: Description, version: int) -> Looked:
        path = described.entry.versions[version].path
        looked = Looked(self.name, version, path, manifest=self.manifest)
        try:
            model = self.loader.load(described, version)
        except ConfigError as error:
            looked = replace(looked, signature=self._signature(path))
            problems: Sequence[Problem] = error.problems
        else:
            model.runner.close()
            looked = replace(looked, model=model, signature=model.signature)
            problems = ()
        explained = None
        if self.manifest is not None and looked.signature is not None:
            explained = explain(self.manifest, self.loader.catalogue, looked.signature)
        advice = dict(self._advice(explained))
        return replace(
            looked,
            explained=explained,
            warnings=tuple(self._warnings(looked, explained)),
            problems=tuple([Advised(one, advice.get(one.field, "")) for one in problems]),
        )

    def _signature(self, path: Path) -> Signature | None:
        """The signature of a graph that loads, though its manifest may not fit it."""
        try:
            return Session(path, self.loader.options).signature
        except SessionError:
            return None

    def _advice(self, explained: Explained | None) -> Iterator[tuple[str, str]]:
        """Field of the manifest -> what to do about a problem there."""
        if explained is None or self.source is None:
            return
        places: list[tuple[str | int, ...]] = [("inputs",)]
        for one in explained.inputs:
            places.append(("inputs", one.name))
            places += [("inputs", one.name, index) for index in range(len(one.columns))]
        for where in places:
            yield self.source.problem(where, "").field, explained.advice(where)

    def _warnings(self, looked: Looked, explained: Explained | None) -> Iterator[Problem]:
        path = str(looked.path)
        if looked.model is not None:
            yield from (Problem(path, 0, "", said) for said in looked.model.facts.warnings)
        if looked.path is not None and looked.signature is not None and (said := depends_on_batch(looked.path)):
            yield Problem(path, 0, "", said)
        if explained is not None and self.source is not None:
            yield from (self.source.problem(where, said) for where, said in explained.warnings)
