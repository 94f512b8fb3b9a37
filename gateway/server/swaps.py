"""What follows when other models serve: who keeps something of a model is told, and what was removed is put away.

    repository ─Swap─▶ forms and encoders of the edge ─▶ pipeline.drain(removed) ─▶ the last answer ─▶ retire ─▶ freeze

Everything here happens on the loop. A removed model keeps answering what it took in, for as long as that takes.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from gateway.inference import Model, ModelRepository, Swap
from gateway.pipeline import Pipeline
from gateway.telemetry import Telemetry

_log = logging.getLogger(__name__)


class Swaps:
    """Follows the swaps of a repository."""

    def __init__(
        self,
        models: ModelRepository,
        pipeline: Pipeline,
        telemetry: Telemetry,
        freeze: Callable[[], None],
    ) -> None:
        """`freeze` takes what a swap made out of the garbage collector's sight, once it has come to rest."""
        self.models = models
        self.pipeline = pipeline
        self.telemetry = telemetry
        self.freeze = freeze
        self.draining: set[Model] = set()
        self._tells: list[Callable[[Swap], None]] = []
        self._forgets: list[Callable[[Model], None]] = []

    def __repr__(self) -> str:
        return f"<Swaps draining {sorted(map(repr, self.draining))}>"

    def tell(self, on_swap: Callable[[Swap], None], forget: Callable[[Model], None] | None = None) -> None:
        """Have a handler hear of swaps, and of each removed model that has answered everything."""
        self._tells.append(on_swap)
        if forget is not None:
            self._forgets.append(forget)

    @property
    def told(self) -> tuple[Sequence[Callable[[Swap], None]], Sequence[Callable[[Model], None]]]:
        """Who hears of swaps, and of removed models, by now."""
        return tuple(self._tells), tuple(self._forgets)

    def __call__(self, swap: Swap) -> None:
        """Other versions serve."""
        for model in swap.added:
            self.telemetry.expect(model.name, [binding.view.ref for binding in model.plan.bindings])
        for on_swap in self._tells:
            try:
                on_swap(swap)
            except Exception:  # noqa: BLE001 - a bug of ours; what was removed has to drain all the same
                _log.exception("telling of a swap failed")
        self.draining.update(swap.removed)
        for model in swap.removed:
            self.pipeline.drain(model, partial(self._drained, model))
        if not swap.removed:
            asyncio.get_running_loop().call_soon(self.freeze)

    def _drained(self, model: Model) -> None:
        for forget in self._forgets:
            try:
                forget(model)
            except Exception:  # noqa: BLE001 - a bug of ours; the model has to be put away all the same
                _log.exception("forgetting %s/%d failed", model.name, model.version)
        self.models.retire(model)
        self.draining.discard(model)
        _log.info("%s/%d has answered its last request", model.name, model.version)
        if not self.draining:
            # Not now: the drain may be in the middle of somebody's batch.
            asyncio.get_running_loop().call_soon(self.freeze)
