"""The model version that training data is made for, opened as it serves: its graph, its manifest, its plan.

It needs nothing but ONNX Runtime: no store, no server, no profile. The graph runs on the CPU.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featureclient.schema import Catalogue, document
from gateway.inference.pinned import sources_of
from gateway.inference.session import InferenceOptions, Session, SessionError
from gateway.journal.schema import JournalSchema, schema_of
from gateway.plan import FeaturePlan, Manifest, PlanError, compile_plan
from gateway.plan.transform import Resolve, TransformError


class PinnedModelError(Exception):
    """A model that cannot be opened. The message says what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class PinnedModel:
    """One version of a model with a manifest. `schema` is what the journal would keep of it."""

    version: int
    manifest: Manifest
    plan: FeaturePlan
    session: Session
    schema: JournalSchema

    @classmethod
    def open(
        cls,
        models: Path,
        name: str,
        version: int | None,
        catalogue: Catalogue,
        resolve: Resolve,
        *,
        changed: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    ) -> "PinnedModel":
        """Load the graph and compile its plan; `version` None is the highest that there is.

        `changed` makes a variant's manifest of the model's.
        """
        path = models / name / "model.yaml"
        if not path.is_file():
            known = ", ".join(sorted(one.parent.name for one in models.glob("*/model.yaml"))) or "none"
            raise PinnedModelError(f"{models} has no model {name!r} with a model.yaml (there are: {known})")
        versions = sorted(int(one.parent.name) for one in path.parent.glob("*/model.onnx") if one.parent.name.isdigit())
        if not versions or (version is not None and version not in versions):
            raise PinnedModelError(f"model {name} has no version {version or ''} (there are: {versions or 'none'})")
        chosen = versions[-1] if version is None else version
        manifest = changed(document.load(path, Manifest))
        graph = path.parent / str(chosen) / "model.onnx"
        try:
            session = Session(graph, InferenceOptions())
            plan = compile_plan(manifest, catalogue, session.signature, resolve)
            sources = sources_of(one.function for one in manifest.transforms)
        except (SessionError, PlanError, TransformError) as error:
            raise PinnedModelError(f"{graph.parent}: {error}") from error
        schema = schema_of(
            name,
            chosen,
            plan,
            session.signature,
            manifest_hash=hashlib.sha256(path.read_bytes()).hexdigest(),
            graph_hash=hashlib.sha256(graph.read_bytes()).hexdigest(),
            sources=sources,
        )
        return cls(chosen, manifest, plan, session, schema)
