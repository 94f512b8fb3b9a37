"""Loads one version of a model: from the files of its folder to a model that has run.

    description ─▶ session ─▶ plan ─▶ warm-up of every batch size ─▶ golden example ─▶ Model

Runs in a thread and blocks for as long as it takes; the graph is read from a path, which leaves the GIL to the loop.
Beside a loop that serves, what computes long runs in a thread that leaves it the core too.

What the server runs, a process of its own has run before, where a server runs already: the sizes of the warm-up, the
arrays of `model_warmup`, the golden example. There it may take as much, and as long, as it likes.

Invariants
- What is returned has run on every size of batch that it was prepared for, and passed its golden example.
- Files that change while they are read are not served: the stamp of the folder is the same before and after.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from featureclient.schema import Catalogue, ConfigError, Problem, document
from gateway.inference import golden, layout, triton_config
from gateway.inference.background import aside
from gateway.inference.batching import Execution, Sizes
from gateway.inference.cost import Cost
from gateway.inference.layout import Entry, chosen
from gateway.inference.model import Model, ModelFacts, Refused
from gateway.inference.operators import follows_values
from gateway.inference.pinned import NEEDS_RESTART
from gateway.inference.probing import Harmful, probe
from gateway.inference.providers import Hardware, HardwareError
from gateway.inference.runner import Runner
from gateway.inference.session import InferenceOptions, Session, SessionError, WrongRows
from gateway.inference.triton_config import TritonConfig
from gateway.plan import Manifest, PlanError, compile_plan
from gateway.plan.manifest import LatestUse, Versions
from gateway.plan.plan import Plan
from gateway.plan.tensors import TensorPlan, fixed_rows, is_batched
from gateway.plan.transform import Resolve
from gateway.records.request import Array
from gateway.records.signature import Signature
from gateway.validation.compiler import compile_checks, reference
from gateway.validation.profile import FILE

_HASH_CHUNK_BYTES = 16 << 20
_Result = TypeVar("_Result")
_UNMEASURED_S = 1e-3
"""What a run is taken to cost where no trial run could be made: enough to keep it off the event loop at first."""


Reason = Literal["file", "manifest", "graph", "warm_up", "golden", "probe", "changed_code", "fallback", "other"]
"""What a load failed for: a label, so there are few."""
REASONS: tuple[Reason, ...] = get_args(Reason)


class ModelsNotLoaded(ConfigError):
    """Models that cannot serve, with every problem found."""

    def __init__(self, problems: Sequence[Problem], reason: Reason = "other") -> None:
        super().__init__(problems)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Description:
    """A model's folder, read: which versions are to serve, and how."""

    entry: Entry
    source: document.Document | None
    manifest: Manifest | None
    triton: TritonConfig | None
    versions: Sequence[int]
    missing: Sequence[int]
    """Versions that it names and that are not there."""

    @property
    def labels(self) -> Mapping[str, int]:
        """Label -> version."""
        return self.manifest.labels if self.manifest is not None else {}

    def problems(self) -> list[Problem]:
        """What is wrong with it whatever its graphs are."""
        return [*self.entry.problems, *_misnamed(self)]

    def problem(self, where: tuple[str | int, ...], message: str) -> Problem:
        """A problem of the description, with the line where there is one."""
        if self.source is not None:
            return self.source.problem(where, message)
        file = self.triton.file if self.triton is not None else str(self.entry.folder)
        return Problem(file, 0, ".".join(map(str, where)), message)


class Loader:
    """What every load needs."""

    def __init__(self, root: Path, catalogue: Catalogue, resolve: Resolve, options: InferenceOptions) -> None:
        self.root = root
        self.catalogue = catalogue
        self.resolve = resolve
        self.options = options
        self.hot = False
        """Whether a server runs that a bad graph could harm; then graphs are tried in a process of their own first."""

    def describe(self, entry: Entry) -> Description:
        """Read the manifest or the configuration of a model. Raises ConfigError with what is wrong in them."""
        source = manifest = triton = None
        if entry.manifest is not None:
            source = document.read(entry.manifest)
            manifest = document.validate(source, Manifest)
        if entry.triton is not None:
            triton = triton_config.read(entry.triton, entry.name)
        there = sorted(entry.versions)
        versions, missing = chosen(_policy(manifest, triton), there)
        return Description(entry, source, manifest, triton, versions, missing)

    def load(self, described: Description, version: int) -> Model:
        """Load a version. Raises ConfigError with what keeps it from serving."""
        entry = described.entry
        found = entry.versions[version]
        began = time.monotonic()
        attempt = _Attempt(self, described, version, found.path)
        try:
            model = attempt.model(began)
            attempt.at = "file"
            again = layout.look(self.root, entry.name)
            if again is None or again.versions.get(version) != found or again.stamp != entry.stamp:
                model.runner.close()
                raise Refused("its files changed while they were read; it is loaded when they have come to rest")
        except (SessionError, Refused) as error:
            reason: Reason = "probe" if isinstance(error, Harmful) else attempt.at
            raise ModelsNotLoaded([Problem(str(found.path), 0, "", str(error))], reason) from error
        except OSError as error:
            raise ModelsNotLoaded([Problem(str(found.path), 0, "", f"cannot be read: {error}")], "file") from error
        except PlanError as error:
            suffix = f" (version {version})" if len(described.versions) > 1 else ""
            reason = "changed_code" if any(NEEDS_RESTART in said for _, said in error.problems) else "manifest"
            problems = [described.problem(at, said + suffix) for at, said in error.problems]
            raise ModelsNotLoaded(problems, reason) from error
        except ConfigError as error:
            raise ModelsNotLoaded(error.problems, "warm_up" if attempt.at == "warm_up" else "manifest") from error
        return model


class _Attempt:
    """One load of one version."""

    def __init__(self, loader: Loader, described: Description, version: int, path: Path) -> None:
        self.loader = loader
        self.described = described
        self.version = version
        self.path = path
        self.warnings: list[str] = list(described.triton.warnings) if described.triton is not None else []
        self.at: Reason = "file"
        """What is looked at now; what fails, fails for that."""

    def model(self, began: float) -> Model:
        described, options = self.described, self.loader.options
        name, manifest = described.entry.name, described.manifest
        digest = self._aside(lambda: _sha256(self.path))
        hardware = self._hardware()
        self.at = "graph"
        if self.loader.hot and options.check_in_process:
            probe(self.path, options, hardware, self._trials)
            self.at = "graph"
        session = self._aside(lambda: Session(self.path, options, hardware))
        self.warnings += session.warnings
        signature = session.signature
        self._check_triton(signature)
        self.at = "golden"
        example = golden.read(self.path.parent / layout.GOLDEN, signature)
        self.at = "manifest"
        execution = self._execution()
        tensors = TensorPlan(name, signature, self._batched(signature))
        plan: Plan = tensors
        checks, profile = None, None
        if manifest is not None:
            plan = compiled = compile_plan(manifest, self.loader.catalogue, signature, self.loader.resolve)
            profile, why = reference(self.path.parent / FILE, compiled, self.version, manifest.validation)
            self.warnings += [why] if why else []
            checks = compile_checks(compiled, manifest.validation, profile, signature)
        self.at = "warm_up"
        tensors, cost = self._aside(partial(self._warm_up, session, plan, tensors, execution))
        if manifest is None:
            plan = tensors
        self.at = "golden"
        if example is not None:
            self._aside(partial(self._check_golden, session, example))
        fixed = fixed_rows(signature) if plan.batched else None
        steady = not self._aside(lambda: follows_values(self.path))
        runner = Runner(session, cost, options.inline_max_us, execution, fixed_rows=fixed, steady=steady)
        labels = tuple(label for label, of in described.labels.items() if of == self.version)
        facts = ModelFacts(
            source=str(self.path),
            sha256=digest,
            loaded_s=time.monotonic() - began,
            providers=session.providers,
            asked_providers=session.asked,
            nodes=session.nodes,
            on_asked=session.on_asked,
            manifest_hash="" if described.entry.manifest is None else _sha256(described.entry.manifest),
            warnings=tuple(self.warnings),
        )
        inner = None
        if plan is not tensors:
            inner = Model(name, self.version, labels, tensors, runner, signature, execution, None, facts)
        made = Model(name, self.version, labels, plan, runner, signature, execution, inner, facts, checks, profile)
        return replace(made, manifest=manifest)

    def _aside(self, work: Callable[[], _Result]) -> _Result:
        """Have a running server's loop go first. At the start nobody waits but for the load."""
        return aside(work) if self.loader.hot else work()

    def _check_triton(self, signature: Signature) -> None:
        triton = self.described.triton
        if triton is not None and (problems := [*triton.problems(signature)]):
            raise ModelsNotLoaded([Problem(triton.file, 0, "", said) for said in problems])

    def _batched(self, signature: Signature) -> bool:
        triton = self.described.triton
        if not is_batched(signature):
            if triton is not None and triton.max_batch_size:
                raise Refused(
                    f"{triton.file} says max_batch_size: {triton.max_batch_size}, but the first dimension of the "
                    f"graph's inputs is not the rows ({_listed(signature.inputs)}); say max_batch_size: 0"
                )
            return False
        return triton is None or triton.max_batch_size != 0

    def _execution(self) -> Execution:
        """The manifest's words first, then those of config.pbtxt, then the defaults."""
        described = self.described
        said: dict[str, Any] = {}
        if described.triton is not None:
            said["instances"] = described.triton.instances
            if described.triton.max_batch_size:
                said["max_batch_rows"] = described.triton.max_batch_size
            said["merge"] = described.triton.max_batch_size != 0
        use = described.manifest.execution if described.manifest is not None else None
        if use is not None:
            said |= use.model_dump(exclude_none=True)
        try:
            return Execution(**said)
        except ValueError as error:
            raise ModelsNotLoaded([described.problem(("execution",), str(error))]) from error

    def _hardware(self) -> Hardware:
        """The manifest's words over the server's."""
        described, hardware = self.described, self.loader.options.hardware
        try:
            return hardware if described.manifest is None else hardware.overridden(described.manifest.hardware)
        except HardwareError as error:
            raise ModelsNotLoaded([described.problem(("hardware",), str(error))]) from error

    def _trials(self, signature: Signature) -> Iterator[Mapping[str, Array]]:
        """What the graph is tried on in a process of its own: whatever the server is going to run it on."""
        described, options = self.described, self.loader.options
        self.at = "manifest"
        plan: Plan = TensorPlan(described.entry.name, signature, self._batched(signature))
        if described.manifest is not None:
            plan = compile_plan(described.manifest, self.loader.catalogue, signature, self.loader.resolve)
        tried = _tried(self._execution(), fixed_rows(signature), options.trial_rows)
        yield from (plan.blank(rows) for rows in (tried if plan.batched else (1,)))
        self.at = "warm_up"
        if described.triton is not None:
            yield from (warmup.arrays for warmup in described.triton.warmups(signature, described.entry.folder))
        self.at = "golden"
        example = golden.read(self.path.parent / layout.GOLDEN, signature)
        if example is not None:
            yield example.inputs

    def _warm_up(self, session: Session, plan: Plan, tensors: TensorPlan, execution: Execution) -> "_Tried":
        """Run the graph in every size that it was prepared for, and measure it."""
        sizes = _tried(execution, fixed_rows(session.signature), self.loader.options.trial_rows)
        if plan is tensors:
            tried = self._try_tensors(session, tensors, sizes)
        else:
            tried = _Tried(tensors, _measured(session, plan, sizes))
        triton = self.described.triton
        if triton is not None:
            until = time.monotonic() + self.loader.options.check_timeout_s
            for warmup in triton.warmups(session.signature, self.described.entry.folder):
                for run in range(warmup.runs):
                    if run and time.monotonic() > until:
                        self.warnings.append(f"model_warmup {warmup.name}: {run} of {warmup.runs} runs took too long")
                        break
                    _run(session, warmup.arrays, f"model_warmup {warmup.name}")
        return tried

    def _try_tensors(self, session: Session, plan: TensorPlan, sizes: Sequence[int]) -> "_Tried":
        """Try a graph on zeros. Where it leaves a dimension free that is not the rows, a failing run says nothing."""
        try:
            if plan.batched:
                try:
                    return _Tried(plan, _measured(session, plan, sizes))
                except WrongRows:
                    plan = self._without_rows(session, plan)
            began = time.thread_time()
            _run(session, plan.blank(1), "a trial run")
            run_s = time.thread_time() - began
        except SessionError as error:
            if plan.steady:
                raise
            self.warnings.append(f"not warmed up: {error}, on inputs of zeros whose free dimensions are 1")
            run_s = _UNMEASURED_S
        return _Tried(plan, Cost(run_s, 2 * run_s, 2))

    def _without_rows(self, session: Session, plan: TensorPlan) -> TensorPlan:
        """The plan of a graph whose inputs have rows and whose outputs have not: a request is a run of its own."""
        triton = self.described.triton
        outputs = _listed(session.signature.outputs)
        if triton is not None and triton.max_batch_size:
            raise Refused(
                f"{triton.file} says max_batch_size: {triton.max_batch_size}, but the first dimension of the graph's "
                f"outputs is not the rows ({outputs}); say max_batch_size: 0"
            )
        self.warnings.append(f"requests are not merged: the first dimension of the outputs is not the rows ({outputs})")
        return TensorPlan(plan.model, session.signature, batched=False)

    def _check_golden(self, session: Session, example: golden.Golden) -> None:
        example.check(session.signature, _run(session, example.inputs, f"the example of {example.file}"))


class _Tried(NamedTuple):
    """What trial runs found out."""

    tensors: TensorPlan
    cost: Cost


def _tried(execution: Execution, fixed: int | None, trial_rows: int) -> Sequence[int]:
    """Numbers of rows on which a graph is tried: those that it gets, or one, some, and odd ones between.

    By a number alone an output may have as many entries as there are rows and have no rows, as the states of two layers
    when there are two rows. So there are several, unless the graph can have one only.
    """
    sizes = Sizes(execution, fixed)
    if fixed is not None or len(sizes.warm_ups) > 1:
        return sizes.warm_ups
    others = sizes.warm_ups or (3, 5, trial_rows)
    return sorted({1, *(min(rows, sizes.rows_max) for rows in others)})


def _measured(session: Session, plan: Plan, tried: Sequence[int]) -> Cost:
    """What a run costs, from runs of these sizes. Raises SessionError, and `WrongRows` if any of them shows it."""
    seconds: dict[int, float] = {}
    failed = ""
    for rows in tried:
        try:
            seconds[rows] = session.try_out(plan.blank(rows), rows)
        except WrongRows:
            raise
        except SessionError as error:
            failed = failed or str(error)
    if failed:
        raise SessionError(failed)
    few, many = tried[0], tried[-1]
    return Cost(seconds[few], seconds[many], many) if many > few else Cost(seconds[few], 2 * seconds[few], 2)


def _run(session: Session, inputs: Mapping[str, Array], what: str) -> Sequence[Array]:
    try:
        return session.run(inputs)
    except Exception as error:
        raise SessionError(f"{what} raises {error}") from error


def _policy(manifest: Manifest | None, triton: TritonConfig | None) -> Versions:
    """The manifest's words first, then those of config.pbtxt. By default all serve where there is a manifest, and the
    latest where there is none, as with Triton."""
    if manifest is not None and ("versions" in manifest.model_fields_set or triton is None):
        return manifest.versions
    return triton.versions if triton is not None else LatestUse(latest=1)


def _misnamed(described: Description) -> Iterator[Problem]:
    """What a description says that is not so."""
    missing = described.missing
    entry, manifest, there = described.entry, described.manifest, sorted(described.entry.versions)
    if manifest is not None and manifest.name != entry.name:
        message = f"is {manifest.name!r} in the folder {entry.name!r}; make them the same"
        yield described.problem(("name",), message)
    if not there and not entry.problems:
        beside = "the manifest" if manifest is not None else layout.TRITON
        yield described.problem((), f"no version is beside {beside}: expected <number>/{layout.GRAPH}")
    for label, version in described.labels.items():
        if version not in described.versions:
            yield described.problem(
                ("labels", label), f"no version {version} (there are: {_listed(described.versions)})"
            )
    if missing and there:
        where = ("versions",) if manifest is not None else ("version_policy",)
        yield described.problem(where, f"names {_listed(missing)}, which are not there (there are: {_listed(there)})")


def _sha256(path: Path) -> str:
    """Of a file; empty where there is none, of which the session says more. Large pieces: each takes the GIL once."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_HASH_CHUNK_BYTES):
                digest.update(piece)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
