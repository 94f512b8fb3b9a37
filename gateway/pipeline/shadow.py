"""Requests that were answered are answered once more, by variants that nobody waits for, and both answers compared.

    answers sent ─▶ offer ─(load)─▶ inbox ─(share, room)─▶ waiting ─▶ slice: look up, assemble, check ─▶ run ─▶ told
                     `─▶ dropped, counted ◀─┘                          `─▶ rows missing ─▶ fetch ─▶ ready ─┘

The turn. Work is looked at when a slice of it has come together or has lingered, and done when a whole turn of the loop
then brings no request and nothing waits for a model; else it is looked at again a little later. A slice has as many
rows as are expected to take `slice_us`. After each slice it is the primaries' turn again.

Whatever can be is left for such a turn: when answers have been sent, they are noted in the inbox and nothing else. A
run that is too long for a slice is made in a thread of the variant's own.

Invariants
- A primary's request, answer and error are never touched. Nothing that is raised here leaves it.
- Each row that is offered is counted once, as `compared` or as the reason why it was not.
- What is held is bounded: `queue_rows_max` rows for each variant, in whatever stage. The newest are dropped: what is in
  line has been paid for in part. A run that hangs keeps its own rows, and there is one for each variant.
- It takes `cpu_share` of one CPU, threads included.
- Rows of views that a variant shares with its primary are the primary's. The others are read by a client that is the
  shadow's own: its reads, bounds, breaker and cache are not those that primaries wait for.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from random import random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featureclient.client import Ask, FeatureClient
from featureclient.schema import InvalidId, status
from gateway.inference import Model
from gateway.inference.model import DEFAULT
from gateway.inference.runner import Ran
from gateway.inference.variants import Target, without_unknown
from gateway.pipeline.batch import Batch
from gateway.pipeline.budget import Budget, Load
from gateway.pipeline.copies import (
    Compared,
    Copied,
    Part,
    block_of,
    both,
    copied_of,
    fits_with,
    gathered,
    pick,
    without,
)
from gateway.pipeline.lane import Answers, rows_of
from gateway.pipeline.line import Counts, Line, Ready, Running
from gateway.pipeline.pipeline import Pipeline
from gateway.pipeline.shadow_options import COMPARED, ShadowOptions, ShadowState
from gateway.plan import Assembled
from gateway.records.request import Id, Request
from gateway.records.served import Moments
from gateway.records.violations import Violations
from gateway.validation.checks import Checked

_log = logging.getLogger(__name__)

VARIANTS_MAX = 500
"""Pairs of experiment and variant that are counted apart."""
OTHER = ("other", "other")
PAUSE_S = 0.001
"""How long to leave the loop alone when requests have come in its turn, or wait for a model."""
IDLE_LINE_S = 60.0
"""How long a variant that nothing is copied for keeps its thread."""
UNPACKED_ROWS = 64
"""Rows of the inbox that are copied together."""
_ALL = 100.0


class _Noted(NamedTuple):
    """A run that was answered."""

    batch: Batch
    answers: Answers
    arrived: Sequence[float]
    at: float
    rows: int


class Shadow:
    """Answers once more what `targets` says. Everything but long runs happens on the loop."""

    def __init__(
        self,
        pipeline: Pipeline,
        client: FeatureClient,
        options: ShadowOptions,
        targets: Callable[[Model], Sequence[Target]],
        told: Callable[[Compared], None],
        *,
        keep: Callable[[Answers, Moments], None] | None = None,
        violated: Callable[[Model, Violations], None] = lambda model, violations: None,
        monotonic: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = time.thread_time,
        chance: Callable[[], float] = random,
    ) -> None:
        """`client` is the shadow's own. `told` gets what was compared, `keep` puts the answers into the journal.

        `violated` is told of violated checks of a variant, `cpu_s` is the CPU time of the loop's thread.
        """
        self.options = options
        self.client = client
        self.targets = targets
        self.told = told
        self.keep = keep
        self.violated = violated
        self._pipeline = pipeline
        self._monotonic = monotonic
        self._cpu_s = cpu_s
        self._chance = chance
        self._inbox: deque[_Noted] = deque()
        self._inbox_rows = 0
        self._lines: dict[tuple[str, Model, Model], Line] = {}
        self._turns: deque[Line] = deque()
        self._counts: dict[tuple[str, str], Counts] = {}
        self._budget = Budget(options.cpu_share)
        self._load = Load()
        self._slices = self._slices_over = 0
        self._slice_s = options.slice_us * 1e-6
        self._linger_s = options.linger_ms / 1000
        self._pulse = -1
        self._handle: asyncio.Handle | None = None
        self._handle_at = 0.0
        self._paid_at = 0.0
        self._swept_at = 0.0
        self._closed = False
        pipeline.copied = self.offer

    def __repr__(self) -> str:
        return f"<Shadow {list(self._lines.values())} {self._load} {self._budget}>"

    # ── In ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def offer(self, batch: Batch, answers: Answers, moments: Moments) -> None:
        """Take note of requests that have their answers. Never raises."""
        try:
            targets = self.targets(answers.model)
            if not targets or self._closed:
                return
            now = moments.answered
            if self._load.due(now):
                self._load.look(now, self._cpu_s())
            rows = sum(map(rows_of, answers.requests))
            reason = None
            if self._load.share > self.options.load_max:
                reason = "busy"
            elif self._inbox_rows + rows > self.options.queue_rows_max:
                reason = "queue"
            if reason is not None:
                self._turn_away(targets, answers, reason, now)
                return
            self._inbox.append(_Noted(batch, answers, moments.arrived, now, rows))
            self._inbox_rows += rows
            if self._handle is None:
                self._arm(now + self._linger_s)
        except Exception:  # noqa: BLE001 - whatever is wrong here, the primaries go on
            _log.exception("answers of model %s could not be copied", answers.model.name)

    def _turn_away(self, targets: Sequence[Target], answers: Answers, reason: str, now: float) -> None:
        for target in targets:
            chosen = self._chosen(target, answers.requests)
            requests = answers.requests if chosen is None else [answers.requests[number] for number in chosen]
            if requests:
                self._line(target, answers.model, now).count(reason, sum(map(rows_of, requests)))

    def _unpack(self, now: float) -> None:
        """Copy the first of the inbox, as many as make a slice, and let them wait for the variants."""
        first = self._inbox[0]
        primary = first.answers.model
        copies: list[Copied] = []
        rows = 0
        while self._inbox and self._inbox[0].answers.model is primary:
            batch, answers, arrived, at, more = self._inbox[0]
            if copies and rows + more > UNPACKED_ROWS:
                break
            copied = copied_of(batch, answers, arrived, at)
            if copies and not fits_with(copies[0], copied):
                break
            self._inbox.popleft()
            self._inbox_rows -= more
            copies.append(copied)
            rows += more
        together = gathered(copies)
        for target in self.targets(primary):
            self._offer(target, primary, together, now)

    def _offer(self, target: Target, primary: Model, copied: Copied, now: float) -> None:
        chosen = self._chosen(target, copied.requests)
        if chosen is not None and not chosen:
            return
        line = self._line(target, primary, now)
        if chosen is not None:
            copied = pick(copied, chosen)[0]
        reason = self._turned_away(line, copied.rows, now)
        if reason is not None:
            line.count(reason, copied.rows)
            return
        known = line.known
        if known is not None and any(request.overrides for request in copied.requests):
            copied = copied._replace(requests=[without_unknown(request, known) for request in copied.requests])
        line.put(copied)

    def _chosen(self, target: Target, requests: Sequence[Request]) -> list[int] | None:
        """The numbers of the requests that are copied; None: all."""
        if target.assignment is not None:
            marks = target.shadowed(requests)
            return None if all(marks) else [number for number, marked in enumerate(marks) if marked]
        if target.share >= _ALL:
            return None
        return [number for number in range(len(requests)) if self._chance() * _ALL < target.share]

    def _turned_away(self, line: Line, rows: int, now: float) -> str | None:
        """Why so many more rows do not wait for a variant; None where they do."""
        if not (line.primary.plan.batched and line.target.model.plan.batched):
            return "unsupported"
        if not line.allows(now):
            return "broken"
        return "queue" if line.rows + rows > self.options.queue_rows_max else None

    def _line(self, target: Target, primary: Model, now: float) -> Line:
        key = (target.experiment, primary, target.model)
        line = self._lines.get(key)
        if line is None:
            self._sweep(now)
            named = (target.experiment, target.model.variant)
            if named not in self._counts and len(self._counts) >= VARIANTS_MAX:
                named = OTHER
            counts = self._counts.setdefault(named, Counts())
            line = self._lines[key] = Line(target, primary, self.options, named, counts)
            self._turns.append(line)
        return line

    # ── Turns ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _arm(self, at: float) -> None:
        """Look at what waits at this moment, or before."""
        at = max(at, self._paid_at)
        if self._closed:
            return
        if self._handle is not None:
            if self._handle_at <= at:
                return
            self._handle.cancel()
        loop = asyncio.get_running_loop()
        delay_s = at - self._monotonic()
        self._handle_at = at
        self._handle = loop.call_later(delay_s, self._look) if delay_s > 0 else loop.call_soon(self._look)

    def _look(self) -> None:
        """When there is a slice of work, see whether the next turn is free."""
        self._handle = None
        now = self._monotonic()
        due = min([line.due(now) for line in self._turns], default=inf)
        if self._inbox:
            lingers = self._inbox_rows < UNPACKED_ROWS
            due = min(due, self._inbox[0].at + self._linger_s if lingers else now)
        if due == inf:
            return
        self._paid_at = now + self._budget.wait_s(now)
        if max(due, self._paid_at) > now:
            self._arm(due)
            return
        self._pulse = self._pipeline.pulse
        self._handle_at = now
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """A turn of the loop has gone by. Do a slice, if no request has come in it and none waits."""
        self._handle = None
        now = self._monotonic()
        if self._pipeline.pulse != self._pulse or self._pipeline.waits:
            self._arm(now + PAUSE_S)
            return
        for _ in range(len(self._turns)):
            line = self._turns[0]
            self._turns.rotate(-1)
            if line.due(now) <= now:
                self._slice(line, now)
                break
        else:
            self._fill(now)
        self._arm(now)

    def _fill(self, now: float) -> None:
        """No variant has enough to do: look into the inbox."""
        began = self._cpu_s()
        try:
            if self._inbox:
                self._unpack(now)
        except Exception:  # noqa: BLE001 - whatever is wrong here, the primaries go on
            _log.exception("answers could not be copied")
            self._inbox.clear()
            self._inbox_rows = 0
        took_s = self._cpu_s() - began
        self._load.own_s += took_s
        self._budget.spend(took_s)

    def _slice(self, line: Line, now: float) -> None:
        began = self._cpu_s()
        rows, run_s = 0, 0.0
        try:
            rows, run_s = self._work(line, now)
        except Exception as error:  # noqa: BLE001 - a bug of ours, and the primaries go on
            _log.exception("a slice of %s failed", line)
            self._failed(line, error, now)
        took_s = self._cpu_s() - began
        line.learn(rows, max(took_s - run_s, 0.0))
        self._slices += 1
        self._slices_over += took_s > 2 * self._slice_s
        self._load.own_s += took_s
        self._budget.spend(took_s)

    def _work(self, line: Line, now: float) -> tuple[int, float]:
        """Do a slice. Returns its rows, and the CPU time of the run where it was on the loop."""
        if line.finished is not None:
            (run, ran), line.finished = line.finished, None
            self._end(line, run, ran)
            return 0, 0.0
        if not line.allows(now):
            line.drop("broken")
            return 0, 0.0
        ready = self._take(line, now)
        return (0, 0.0) if ready is None else self._run(line, ready, now)

    def _run(self, line: Line, ready: Ready, now: float) -> tuple[int, float]:
        try:
            prepared = self._prepare(line, ready)
        except Exception as error:  # noqa: BLE001 - a transform is user code and may raise anything
            line.lose(ready.copied, "failed")
            self._failed(line, error, now)
            return 0, 0.0
        if prepared is None:
            return ready.copied.rows, 0.0
        copied, assembled, checked = prepared
        run = Running(copied, assembled, checked, now, self._monotonic())
        line.breaker.started()
        if line.threaded:
            line.running = run
            timer = asyncio.get_running_loop().call_later(self.options.run_timeout_s, self._give_up, line, run)
            line.beside.threaded(assembled.inputs, copied.rows, partial(self._ran, line, run, timer))
            return copied.rows, 0.0
        ran = line.beside.inline(assembled.inputs, copied.rows)
        self._end(line, run, ran)
        return copied.rows, ran.cpu_s

    def _take(self, line: Line, now: float) -> Ready | None:
        """What makes a slice and has all its rows; None when there is none, or its rows have to be fetched first."""
        if line.ready:
            return line.ready.popleft()
        copied = line.next(now)
        if copied is None:
            return None
        stored: list[Sequence[bytes | None]] = list(copied.stored)
        asks: list[Ask] = []
        for index in line.own:
            view, ids = line.target.model.plan.bindings[index].view, _ids(copied.requests, index)
            rows = self.client.lookup(view, ids, now)
            stored[index] = rows
            if not all(rows):
                asks.append(Ask(view, ids, rows))
        ready = Ready(copied, stored)  # type: ignore[arg-type]  # what is None is fetched before it is used
        if not asks:
            return ready
        self._fetch(line, ready, asks, now)
        return None

    def _fetch(self, line: Line, ready: Ready, asks: Sequence[Ask], now: float) -> None:
        copied = ready.copied

        def done(_: Sequence[int]) -> None:
            if line.reading.pop(id(copied), None) is not None:  # it has not been left meanwhile
                line.ready.append(ready)
                self._arm(self._monotonic())

        try:
            self.client.fetch(asks, now + self.options.fetch_timeout_ms / 1000, done)
        except (InvalidId, RuntimeError):  # an id that the version's key does not take, or the client is closed
            line.lose(copied, "unread")
        else:
            line.reading[id(copied)] = copied

    def _prepare(self, line: Line, ready: Ready) -> tuple[Copied, Assembled, Checked | None] | None:
        """The inputs of a run, of the requests that the variant's views and checks let through; None: of none."""
        model, copied = line.target.model, ready.copied
        assembled = model.plan.assemble(copied.requests, ready.stored, copied.now_ms)
        checked = None if model.checks is None else model.checks.apply(assembled)
        unread = _unread(line, assembled)
        if checked is not None and checked.violations is not None:
            found = checked.violations if unread is None else checked.violations.only(~unread)
            line.counts.violated += int(np.count_nonzero(found.mask.any(axis=1)))
            self.violated(model, found)
        refused = assembled.rejected
        if checked is not None:
            refused = _either(refused, _either(checked.refused, checked.elsewhere))
        gone = _either(unread, refused)
        if gone is None:
            return copied, assembled if checked is None else checked.assembled, checked
        reason = "unread" if unread is not None else "refused"
        if copied.piece is not None or gone.all():
            line.lose(copied, reason)
            return None
        left, rows = without(copied, gone)
        if not left.rows:
            line.lose(copied, reason)
            return None
        line.rows -= copied.rows - left.rows
        line.count(reason, copied.rows - left.rows)
        assembled = assembled.only(rows)
        if checked is not None and checked.violations is not None:
            checked = model.checks.apply(assembled)  # type: ignore[union-attr]  # they made `checked`
            assembled = checked.assembled
        return left, assembled, checked

    # ── After the run ───────────────────────────────────────────────────────────────────────────────────────────────

    def _ran(self, line: Line, run: Running, timer: asyncio.TimerHandle, ran: Ran) -> None:
        """A run in the thread has ended, perhaps long after it was given up."""
        timer.cancel()
        self._budget.spend(ran.cpu_s)
        if line.running is run:
            line.running, line.finished = None, (run, ran)
            self._arm(self._monotonic())
        else:
            line.stuck = False

    def _give_up(self, line: Line, run: Running) -> None:
        """The run is not waited for any more. Until it ends, no other is begun for this variant."""
        if line.running is not run:
            return
        line.running, line.stuck = None, True
        line.breaker.open(self._monotonic())
        line.lose(run.copied, "hung")
        line.drop("broken")
        _log.warning("a run of %s takes more than %g s and is left alone", line, self.options.run_timeout_s)

    def _end(self, line: Line, run: Running, ran: Ran) -> None:
        copied = run.copied
        try:
            if ran.error is not None:
                raise ran.error
            part: Part | None = _part(line, run, ran)
        except Exception as error:  # noqa: BLE001 - a graph may raise anything
            line.lose(copied, "failed")
            self._failed(line, error, self._monotonic())
            return
        line.breaker.succeeded()
        line.tried = True
        line.rows -= copied.rows
        if copied.piece is not None:
            whole, number = copied.piece
            copied = whole.copied
            part = None if whole.lost else whole.put(number, part)  # type: ignore[arg-type]  # made above
        if part is not None:
            self._tell(line, run, copied, part)

    def _tell(self, line: Line, run: Running, copied: Copied, part: Part) -> None:
        computed = self._monotonic()
        variant = line.target.model
        answers = Answers(variant, copied.requests, part.outputs, part.assembled, copied.numbers, part.violations)
        answered = both(copied.answered, part.answered)
        line.count(COMPARED, copied.rows)
        try:
            bindings = line.primary.plan.bindings
            blocks = {index: block_of(copied, index, bindings[index].view.layout.block_dtype) for index in line.own}
            self.told(Compared(line.target.experiment, line.primary, answers, copied.outputs, blocks, answered))
            if self.keep is not None:
                self.keep(answers, Moments(copied.arrived, run.taken, run.assembled_at, computed, self._monotonic()))
        except Exception:  # noqa: BLE001 - who keeps the comparison has a bug; the primaries go on
            _log.exception("what %s answered could not be kept", line)

    def _failed(self, line: Line, error: Exception, now: float) -> None:
        line.breaker.failed(now)
        if not line.breaker.closed:
            line.drop("broken")
            why = f"{type(error).__name__}: {error}"
            _log.warning("%s keeps failing, it is left alone for %g s: %s", line, self.options.breaker_open_s, why)

    # ── Out ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def forget(self, model: Model) -> None:
        """A model or a variant goes: nothing of it is run any more, and nothing that it answered is compared.

        With a version, that is what the repository loads, its variants go, too.
        """

        def goes(line: Line) -> bool:
            both = (line.primary, line.target.model)
            return model in both or (model.variant == DEFAULT and model.runner in {one.runner for one in both})

        kept: deque[_Noted] = deque()
        for noted in self._inbox:
            if model.runner is noted.answers.model.runner and model.variant in {DEFAULT, noted.answers.model.variant}:
                self._inbox_rows -= noted.rows
                self._turn_away(self.targets(noted.answers.model), noted.answers, "removed", noted.at)
            else:
                kept.append(noted)
        self._inbox = kept
        self._leave(goes, "removed")

    def close(self) -> None:
        """Drop what waits, and begin nothing more. Runs in threads are left to themselves."""
        self._closed = True
        self._pipeline.copied = None
        for noted in self._inbox:
            self._turn_away(self.targets(noted.answers.model), noted.answers, "closed", noted.at)
        self._inbox.clear()
        self._inbox_rows = 0
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._leave(lambda line: True, "closed")

    def state(self) -> ShadowState:
        """What was done. May be called from any thread."""
        lines = self._turns.copy()
        now = self._monotonic()
        return ShadowState(
            {key: counts.results.copy() for key, counts in self._counts.copy().items()},
            {key: counts.violated for key, counts in self._counts.copy().items()},
            self._inbox_rows + sum([line.rows for line in lines]),
            sum([line.fetching for line in lines]),
            self._budget.spent_s,
            self._slices,
            self._slices_over,
            self._load.share,
            [line.key for line in lines if not line.allows(now)],
        )

    def _leave(self, which: Callable[[Line], bool], reason: str) -> None:
        for key, line in list(self._lines.items()):
            if which(line):
                line.leave(reason)
                del self._lines[key]
                self._turns.remove(line)

    def _sweep(self, now: float) -> None:
        """Forget variants that nothing is copied for any more: an edit of the experiments makes new ones."""
        if now - self._swept_at >= IDLE_LINE_S:
            self._swept_at = now
            self._leave(lambda line: not line.rows and not line.stuck and now - line.used > IDLE_LINE_S, "removed")


def _ids(requests: Sequence[Request], index: int) -> Sequence[Id]:
    if len(requests) == 1:
        return requests[0].ids[index]
    return [one for request in requests for one in request.ids[index]]


def _unread(line: Line, assembled: Assembled) -> npt.NDArray[np.bool_] | None:
    """Rows that the shadow's own reads did not bring in time, or that would have to be computed."""
    unread = None
    for index in line.own:
        codes = assembled.statuses[index]
        missing = codes >= status.UNREACHED  # the causes of which nobody knows the row, in the upper bits
        if line.target.model.plan.bindings[index].view.compute is not None:
            missing |= codes & status.CAUSE_MASK == status.ABSENT
        if missing.any():
            unread = _either(unread, missing)
    return unread


def _either(one: npt.NDArray[np.bool_] | None, other: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _part(line: Line, run: Running, ran: Ran) -> Part:
    """What a run gave. Both answers are set side by side, so there has to be a row for each row, in every output."""
    outputs, checked, rows = ran.outputs, run.checked, run.copied.rows
    if len(outputs) != len(line.primary.plan.outputs) or any(np.shape(output)[:1] != (rows,) for output in outputs):
        shapes = ", ".join(str(np.shape(output)) for output in outputs)
        raise ValueError(f"the outputs have the shapes {shapes} for {rows} rows")
    if checked is None:
        return Part(run.assembled, outputs, None, None)
    replaced = None
    if checked.replaced:
        replaced = _either(checked.emptied, checked.constant)
        outputs = line.target.model.checks.answers(checked, outputs)  # type: ignore[union-attr]  # they made `checked`
    return Part(run.assembled, outputs, checked.violations, None if replaced is None else ~replaced)
