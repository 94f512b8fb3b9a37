"""What was served goes to the journal, and what failed does: models' schemas on one side, records on the other.

    pipeline ──Answers──▶ Keeper ──Served──▶ Journal        handlers ──FailureReport──▶ Keeper ──Failed──▶ Journal

Each version of a model has its schema from the moment that it serves until it has given its last answer.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import cast

from gateway.inference import Model, Swap
from gateway.inference.pinned import sources_of
from gateway.journal.journal import Journal
from gateway.journal.schema import JournalSchema, schema_of
from gateway.pipeline import Answers
from gateway.pipeline.run import Done, Keeping
from gateway.plan import FeaturePlan
from gateway.records.errors import Unavailable
from gateway.records.report import FailureReport
from gateway.records.request import Request
from gateway.records.served import Failed, Moments, Served
from gateway.server.oip.caller import Styled
from gateway.transport.call import Call

_log = logging.getLogger(__name__)


class Keeper:
    """Fills a journal. Everything happens on the loop."""

    def __init__(self, journal: Journal, prefix: bytes, *, wall_s: Callable[[], float] = time.time) -> None:
        """`prefix` is what all prediction ids begin with."""
        self.journal = journal
        self._prefix = prefix
        self._wall_s = wall_s
        self._schemas: dict[Model, JournalSchema] = {}

    def __repr__(self) -> str:
        return f"<Keeper {self.journal!r} of {len(self._schemas)} models>"

    @property
    def keeping(self) -> Keeping:
        """How the pipeline is to keep its answers."""
        if self.journal.options.durability == "sync":
            return Keeping(commit=self.commit)
        return Keeping(offer=self.offer)

    def begin(self, models: Iterable[Model]) -> None:
        """These models serve."""
        for model in models:
            schema = self._schema(model)
            unknown = self.journal.options.redaction.unknown(_names(schema))
            if unknown:
                _log.info("model %s has no column %s, which journal.pii names", model.name, ", ".join(sorted(unknown)))

    def on_swap(self, swap: Swap) -> None:
        """Other versions serve."""
        self.begin(swap.added)

    def forget(self, model: Model) -> None:
        """A removed model has answered everything it took in."""
        for one in (model, model.tensors):
            schema = self._schemas.pop(one, None)
            if schema is not None:
                self.journal.forget(schema)

    def offer(self, answers: Answers, moments: Moments) -> None:
        """Keep answers that have been sent."""
        _let_go(answers.requests)
        self.journal.offer(self._schema(answers.model), self._served(answers, moments))

    def commit(self, answers: Answers, moments: Moments, done: Done) -> None:
        """Keep answers that wait for it; never raises, and tells `done` of each once."""
        try:
            schema, served = self._schema(answers.model), self._served(answers, moments)
        except Exception as error:  # noqa: BLE001 - whoever waits for the disk has to be told
            _log.exception("an answer of %s cannot be kept", answers.model.name)
            done(range(len(answers.requests)), Unavailable(f"the answer cannot be journaled: {error}"))
            return
        self.journal.commit(schema, served, done)

    def failed(self, report: FailureReport) -> None:
        """Keep a request that got an error."""
        if report.request is not None:
            _let_go([report.request])
        model = report.bound if isinstance(report.bound, Model) else None
        failed = Failed(
            int(self._wall_s() * 1000),
            report.model,
            report.code,
            report.message,
            report.request_id,
            report.request,
            report.version,
            "" if model is None else model.variant,
        )
        self.journal.fail(failed, None if model is None else self._schemas.get(model))

    def _schema(self, model: Model) -> JournalSchema:
        schema = self._schemas.get(model)
        if schema is None:
            schema = self._schemas[model] = schema_of(
                model.name,
                model.version,
                model.plan,
                model.signature,
                variant=model.variant,
                manifest_hash=model.facts.manifest_hash,
                checked=() if model.checks is None else model.checks.names,
                graph_hash=model.facts.sha256,
                sources=_sources(model),
            )
        return schema

    def _served(self, answers: Answers, moments: Moments) -> Served:
        model = answers.model
        return Served(
            model.name,
            model.version,
            model.variant,
            answers.requests,
            (self._prefix, answers.numbers),
            int(self._wall_s() * 1000),
            answers.assembled,
            answers.outputs,
            answers.violations,
            moments,
        )


def _let_go(requests: Iterable[Request]) -> None:
    """Let go of what came over the wire: the calls have ended, and wait for the journal without it."""
    for request in requests:
        caller = request.caller
        call = cast("Call", caller.call if type(caller) is Styled else caller)
        call.payload = b""


def _sources(model: Model) -> dict[str, str]:
    """What the transforms of the model are made of, for who replays the journal."""
    plan = model.plan
    return (
        sources_of(one.reference for one in plan.transforms if ":" in one.reference)
        if isinstance(plan, FeaturePlan)
        else {}
    )


def _names(schema: JournalSchema) -> list[str]:
    return [*schema.entities, *(column.name for column in schema.columns)]
