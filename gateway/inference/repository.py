"""The model repository: `models/<name>/model.yaml` beside `models/<name>/<version>/model.onnx`.

Loading finds every problem of every model before it gives up. A model is a graph, its plan, and its runner.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featureclient.schema import Catalogue, ConfigError, Problem, document
from gateway.inference.cost import Cost
from gateway.inference.runner import Runner
from gateway.inference.session import InferenceOptions, Session, SessionError
from gateway.plan import FeaturePlan, Manifest, PlanError, compile_plan
from gateway.plan.transform import Resolve
from gateway.records.errors import ModelNotFound
from gateway.records.request import Array
from gateway.records.signature import Signature


class ModelsNotLoaded(ConfigError):
    """Models that cannot serve, with every problem found."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One version of a model, ready to run."""

    name: str
    version: int
    labels: tuple[str, ...]
    plan: FeaturePlan
    runner: Runner
    signature: Signature

    @property
    def variant(self) -> str:
        """What answers are attributed to when no experiment runs."""
        return "default"

    def __repr__(self) -> str:
        return f"<Model {self.name}/{self.version} {self.runner!r}>"


class ModelRepository:
    """The models that serve. Immutable once loaded."""

    def __init__(self, models: Mapping[str, Mapping[int, Model]]) -> None:
        self._models = models
        self._latest = {name: versions[max(versions)] for name, versions in models.items()}
        self._labels = {
            (name, label): model
            for name, versions in models.items()
            for model in versions.values()
            for label in model.labels
        }

    @classmethod
    def load(
        cls,
        root: Path,
        catalogue: Catalogue,
        resolve: Resolve,
        options: InferenceOptions,
    ) -> "ModelRepository":
        """Load every model under `root`. Takes long: run it in a thread. Raises `ModelsNotLoaded`."""
        problems: list[Problem] = []
        models: dict[str, dict[int, Model]] = {}
        folders = sorted(path.parent for path in root.glob("*/model.yaml"))
        if not folders:
            raise ModelsNotLoaded((Problem(str(root), 0, "models", "no model here: expected <name>/model.yaml"),))
        for folder in folders:
            loader = _Loader(folder, catalogue, resolve, options)
            try:
                models[folder.name] = loader.load()
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ModelsNotLoaded(tuple(problems))
        return cls(models)

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for model in versions.values())

    def latest(self, name: str) -> Model:
        """The highest version of a model."""
        model = self._latest.get(name)
        if model is None:
            raise self._unknown(name)
        return model

    def version(self, name: str, version: int) -> Model:
        """One version of a model."""
        versions = self._models.get(name)
        if versions is None:
            raise self._unknown(name)
        model = versions.get(version)
        if model is None:
            raise ModelNotFound(f"model {name} has no version {version} (loaded: {_listed(versions)})")
        return model

    def labelled(self, name: str, label: str) -> Model:
        """The version of a model that carries a label."""
        model = self._labels.get((name, label))
        if model is not None:
            return model
        if name not in self._models:
            raise self._unknown(name)
        known = _listed([key[1] for key in self._labels if key[0] == name])
        raise ModelNotFound(f"model {name} has no label {label[:64]!r} (it has: {known})")

    def _unknown(self, name: str) -> ModelNotFound:
        return ModelNotFound(f"no model {name[:64]!r} (there are: {_listed(self._models)})")

    def close(self) -> None:
        """Give the worker threads back."""
        for model in self:
            model.runner.close()


class _Loader:
    """Loads the versions of one model."""

    def __init__(
        self,
        folder: Path,
        catalogue: Catalogue,
        resolve: Resolve,
        options: InferenceOptions,
    ) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self.resolve = resolve
        self.options = options

    def load(self) -> dict[int, Model]:
        """Load every version, or raise `ModelsNotLoaded` with what is wrong in any of them."""
        source = document.read(self.folder / "model.yaml")
        manifest = document.validate(source, Manifest)
        versions = sorted(int(path.name) for path in self.folder.iterdir() if path.is_dir() and _is_version(path.name))
        problems = [*self._misnamed(source, manifest, versions)]
        models: dict[int, Model] = {}
        for version in versions:
            path = self.folder / str(version) / "model.onnx"
            try:
                models[version] = self._load_version(manifest, version, path)
            except SessionError as error:
                problems.append(Problem(str(path), 0, "", str(error)))
            except PlanError as error:
                suffix = f" (version {version})" if len(versions) > 1 else ""
                problems += [source.problem(where, message + suffix) for where, message in error.problems]
        if problems:
            raise ModelsNotLoaded(sorted(problems, key=lambda problem: (problem.file, problem.line)))
        return models

    def _misnamed(self, source: document.Document, manifest: Manifest, versions: Sequence[int]) -> Iterator[Problem]:
        if manifest.name != self.folder.name:
            yield source.problem(
                ("name",), f"is {manifest.name!r} in the folder {self.folder.name!r}; make them the same"
            )
        if not versions:
            yield source.problem((), "no version is beside the manifest: expected <number>/model.onnx")
        for label, version in manifest.labels.items():
            if version not in versions:
                yield source.problem(("labels", label), f"no version {version} (there are: {_listed(versions)})")

    def _load_version(self, manifest: Manifest, version: int, path: Path) -> Model:
        session = Session(path, self.options)
        plan = compile_plan(manifest, self.catalogue, session.signature, self.resolve)
        runner = Runner(session, _try_out(session, plan, self.options.trial_rows), self.options.inline_max_us)
        labels = tuple(label for label, of in manifest.labels.items() if of == version)
        return Model(manifest.name, version, labels, plan, runner, session.signature)


def _try_out(session: Session, plan: FeaturePlan, rows: int) -> Cost:
    """Run the graph on blank rows: one, then `rows`."""
    one_s = session.try_out(_blank(plan, 1), 1)
    return Cost(one_s, session.try_out(_blank(plan, rows), rows), rows)


def _blank(plan: FeaturePlan, rows: int) -> dict[str, Array]:
    return {
        matrix.spec.name: np.full((rows, *matrix.row_shape), "" if matrix.dtype.hasobject else 0, matrix.dtype)
        for matrix in plan.matrices
    }


def _is_version(name: str) -> bool:
    """A number as it is usually written: `7` and not `007`, which would be another folder of the same version."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
