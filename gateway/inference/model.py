"""A model that is ready to run, what is known about it, and how the set of models changes. Values that travel.

A model holds no reference to itself, and nothing that it holds does: what serves is out of the garbage collector's
sight, so a session goes when the last reference to it does, or never.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

from gateway.inference.batching import Execution
from gateway.inference.runner import Runner
from gateway.plan.manifest import Manifest
from gateway.plan.plan import Plan
from gateway.records.signature import Signature
from gateway.validation.checks import Checks
from gateway.validation.profile import Profile

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
"""The words of Triton's repository index."""
PLATFORM = "onnxruntime_onnx"
"""What Triton calls a graph that ONNX Runtime runs."""
DEFAULT = "default"
"""The variant of a model as it is served, when no experiment has a say."""
_NOTHING: Mapping[str, int] = MappingProxyType({})


class Refused(Exception):
    """A name, a file or a graph that does not serve; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Where a version comes from and what it runs on. For metadata and people; no answer depends on it."""

    source: str = ""
    """The path that the graph was loaded from."""
    sha256: str = ""
    """Of the graph's file."""
    loaded_s: float = 0.0
    """What the load took, from the file to the last warm-up run, seconds."""
    providers: tuple[str, ...] = ()
    """The execution providers that the session has, the preferred one first."""
    asked_providers: tuple[str, ...] = ()
    """Those that the settings ask for."""
    nodes: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """Nodes of the graph per execution provider, where it is known."""
    on_asked: bool = True
    """Whether it runs on all that they ask for; `warnings` says what is less."""
    platform: str = PLATFORM
    manifest_hash: str = ""
    """SHA-256 of model.yaml; empty for a model without one."""
    warnings: tuple[str, ...] = ()
    """What was found at load and does not keep the model from serving."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One version of a model, ready to run."""

    name: str
    version: int
    labels: tuple[str, ...]
    plan: Plan
    runner: Runner
    signature: Signature
    execution: Execution = field(default_factory=Execution)
    inner: "Model | None" = None
    """The same model for callers who send the graph's own inputs; None where this is already that. See `tensors`."""
    facts: ModelFacts = ModelFacts()
    checks: Checks | None = None
    """What is looked at before a run; None where the manifest asks for nothing."""
    profile: Profile | None = None
    """The reference profile beside the graph; None where there is none, or none that fits."""
    variant: str = DEFAULT
    """What its answers are attributed to; see `gateway.inference.variants`."""
    manifest: Manifest | None = None
    """What `plan` was compiled from; None of a model without one, and of `inner`."""

    @property
    def tensors(self) -> "Model":
        """The model for callers who send tensors for the graph's own inputs: another plan, the same runner.

        Of a model without a manifest it is the model itself.
        """
        return self.inner or self

    def __repr__(self) -> str:
        variant = "" if self.variant == DEFAULT else f" {self.variant}"
        return f"<Model {self.name}/{self.version}{variant} {self.runner!r}>"


class ModelState(NamedTuple):
    """Where a version of a model stands. `reason` says why it is not READY; `at` is seconds of the wall clock."""

    name: str
    version: int
    state: State
    reason: str
    at: float


class Swap(NamedTuple):
    """One change of what serves. Nothing new comes to the `removed`; what they took in they still answer."""

    added: Sequence[Model]
    removed: Sequence[Model]
