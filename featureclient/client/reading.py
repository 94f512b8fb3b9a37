"""Reads of the store: who fetches joins one, and is told when its rows are there or its time is over.

    fetch ──▶ Pending ──▶ _kick ──▶ one read ──▶ _settle ──▶ cached, handed out, told
                                            └──▶ rows that are to be computed ──▶ Computing ──▶ told
    time over ──▶ _give_up ──▶ the row that expired, else computed while there is time, else the defaults

The tick. Whoever fetches during one turn of the event loop joins one read, which starts when the turn ends. While
`reads_in_flight_max` reads are under way, newcomers queue, and form the next read when one of them is answered. So one
caller on an idle machine waits for nobody, and a busy machine reads hundreds of keys at a time, without a timer.

Invariants
- `done` is told of each caller once, on the loop, never inside `fetch`, and never after `cancel`.
- A fetch has all its rows at `give_up_at`, or at `compute_until` where some are computed, whatever the store does. A
  read is never cut short by that.
- Only a definite answer is cached: a row that was admitted, or nil. Errors and refused rows are not.
"""

import asyncio
import math
from collections.abc import Iterable, Sequence

from featureclient.breaker import Breaker
from featureclient.client.computing import Computing, NotThere
from featureclient.client.fetches import Batch, Done, Fetch, Pending, Row, Settled, Waiter, Want
from featureclient.client.shared import Shared
from featureclient.client.tier import Freshness, Tier
from featureclient.client.timers import GiveUpTimes
from featureclient.events import ReadShed, RowInvalid, StoreRead
from featureclient.schema import Id, InvalidId, status
from featureclient.store import StoreError
from featureclient.store.protocol import UNREAD, PartlyRead, Unread

UNEXPECTED = "unexpected"
"""What events call trouble that is not a StoreError."""

TIMER_SLACK_S = 0.001
"""uvloop's clock ticks in milliseconds: a timer that fires within one of its moment is on time."""

GIVE_UP_PASSES = 4
"""Passes of the loop between a timer and giving up. A loop that was busy finds the timer before it looks at its
sockets, where the answer may have been waiting; on an idle loop the passes take microseconds."""


FEW_KEYS = 32
FEW_KEYS_WAIT_S = 0.002
"""Beside a read that is under way, fewer keys than this wait so long for more to come, or for the read to end: each
read has its price, and a server that is busy would make many small ones."""


class Reading:
    """The reads of one client."""

    def __init__(self, shared: Shared, computing: Computing) -> None:
        self._shared = shared
        self._computing = computing
        self._store = shared.store
        self._options = options = shared.options
        self._emit = shared.emit
        self._monotonic = shared.monotonic
        self._pending = Pending(options.pending_keys_max, options.read_keys_max)
        self._breaker = Breaker(options.breaker_failures, options.breaker_open_s)
        self._give_up_times = GiveUpTimes()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._kick_is_due = False
        self._read_at = 0.0
        self._keys_in_flight = 0
        self._ripens = False
        self._reads: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Reading reads={len(self._reads)} {self._pending} {self._breaker}>"

    def __len__(self) -> int:
        """Keys that are being read or wait for it."""
        return len(self._pending)

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read on this loop."""
        self._loop = loop

    async def close(self) -> None:
        """Answer every fetch as unreached, and let the reads that are under way end."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        self._end(self._give_up_times.due(math.inf), status.UNREACHED)
        # The queue, which nobody waits for now, goes; what is under way ends by itself, within the store's limits.
        self._pending.take_all()
        await asyncio.gather(*self._reads, return_exceptions=True)

    def fetch(
        self, wants: Iterable[Want], give_up_at: float, done: Done, callers: int, compute_until: float | None
    ) -> Fetch:
        """Fill the places of `wants`, which is gone through, and may raise InvalidId, before anything is queued."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the client is not open: use `async with`")
        fetch = Fetch(give_up_at, done, callers, compute_until)
        fetch.ask([want for want in wants if want.positions])
        settled = Settled()
        if not fetch.missing:
            loop.call_soon(self.tell, [(fetch, range(callers))])
            return fetch
        if self._breaker.allows(self._monotonic()):
            shed = sum([self._shed(want, self._pending.join(fetch, want), fetch, settled) for want in fetch.wants])
        else:
            shed = sum([self._shed(want, range(len(want.ids)), fetch, settled) for want in fetch.wants])
        if shed:
            self._emit(ReadShed(shed))
            loop.call_soon(self.tell, settled.ready())
        if fetch.missing:
            if self._give_up_times.push(fetch):
                self._set_timer(give_up_at)
            if not self._kick_is_due:
                self._kick_is_due = True
                loop.call_soon(self._kick)
        return fetch

    def refresh(self, tier: Tier, ids: Sequence[Id]) -> None:
        """Read rows again for the cache's sake. Nobody waits; where it fails, they are due again later."""
        until = self._monotonic() + self._options.read_timeout_s
        self.fetch([want_of(tier, ids, [None] * len(ids))], until, lambda _: None, 1, until)

    def _shed(self, want: Want, turned_away: Sequence[int], fetch: Fetch, settled: Settled) -> int:
        for i in turned_away:
            self._fall_back(want.tier, want.ids[i], _waiter(fetch, want, i), settled)
        return len(turned_away)

    def _kick(self) -> None:
        """Start reads for what is queued, as many as may be in flight."""
        self._kick_is_due = False
        loop = self._loop
        while loop is not None and self._pending.queued and self._may_read(loop):
            if not self._breaker.allows(self._monotonic()):
                batches = self._pending.take_all()
                self._settle_unreached(batches)
                self._emit(ReadShed(sum(map(len, batches))))
                return
            batches = self._pending.take()
            if batches:
                self._breaker.started()
                self._reads.add(loop.create_task(self._read(batches)))

    def _may_read(self, loop: asyncio.AbstractEventLoop) -> bool:
        """One more read may be in flight. Beside another it has to be worth it: few keys wait a little for more."""
        in_flight = len(self._reads)
        if not in_flight or in_flight >= self._options.reads_in_flight_max:
            return not in_flight
        ripe_at = self._read_at + FEW_KEYS_WAIT_S
        if len(self._pending) - self._keys_in_flight >= FEW_KEYS or self._monotonic() >= ripe_at:
            return True
        if not self._ripens:
            self._ripens = True
            loop.call_later(FEW_KEYS_WAIT_S, self._ripen)
        return False

    def _ripen(self) -> None:
        self._ripens = False
        self._kick()

    async def _read(self, batches: list[Batch]) -> None:
        """One read of the store. It belongs to the client: nobody cancels it."""
        started = self._read_at = self._monotonic()
        keys = batches[0].keys if len(batches) == 1 else [key for batch in batches for key in batch.keys]
        self._keys_in_flight += len(keys)
        values: Sequence[Row | Unread] = ()
        # What leaves the store and is not a StoreError is a bug. It goes on to the loop's exception handler, but not
        # before those who wait are answered.
        error: str | None = UNEXPECTED
        why = ""
        try:
            values = await self._store.read(keys)
            error = None
        except PartlyRead as partly:
            values, error, why = partly.values, type(partly).__name__, str(partly)
        except StoreError as refused:
            error, why = type(refused).__name__, str(refused)
        finally:
            now = self._monotonic()
            self._keys_in_flight -= len(keys)
            task = asyncio.current_task()
            if task is not None:
                self._reads.discard(task)
            if values:
                self._breaker.succeeded()
                self._settle(batches, values, started)
            else:
                self._breaker.failed(now)
                self._settle_unreached(batches)
            self._kick()
            found = len(values) - values.count(None) - values.count(UNREAD)
            self._emit(StoreRead(len(keys), found, now - started, error, why))

    def _settle(self, batches: Sequence[Batch], values: Sequence[Row | Unread], read_at: float) -> None:
        """Admit the values of a read, cache them, and hand them out."""
        freshness = Freshness(read_at, self._shared.chance(), self._shared.event_ms_max)
        settled = Settled()
        refused: list[RowInvalid] = []
        start = 0
        by_tier: dict[Tier, tuple[list[Batch], list[Row | Unread]]] = {}
        for batch in batches:
            group = by_tier.get(batch.tier)
            if group is None:
                group = by_tier[batch.tier] = ([], [])
            group[0].append(batch)
            group[1].extend(values[start : start + len(batch)])
            start += len(batch)
        for tier, (some, stored) in by_tier.items():
            rows, causes, invalid = tier.admit(some, stored, freshness)
            refused += [RowInvalid(tier.view.ref, reason) for reason in invalid]
            start = 0
            for batch in some:
                self._pending.settle(batch, rows[start : start + len(batch)], settled)
                if tier.computes and len(self._computing):
                    self._computing.written(tier, [one for i, one in enumerate(batch.ids) if start + i not in causes])
                for i in range(len(batch)) if causes else ():
                    if start + i in causes and rows[start + i] is None:
                        reason = NotThere(causes[start + i], read_at, batch.ids[i] in batch.dirty)
                        self._not_there(batch, i, reason, settled)
                start += len(batch)
        self.tell(settled.ready())
        for event in refused:
            self._emit(event)

    def _not_there(self, batch: Batch, index: int, reason: NotThere, settled: Settled) -> None:
        """Have a row of a batch computed, unless that has been done while it was read."""
        one, waiters = batch.ids[index], batch.waiters(index)
        made = batch.computed(one)
        if made is None:
            self._compute(batch.tier, one, reason, waiters, settled)
        else:
            for waiter in waiters:
                settled.give(waiter, made)

    def _settle_unreached(self, batches: Sequence[Batch]) -> None:
        settled = Settled()
        for batch in batches:
            self._pending.settle(batch, [None] * len(batch), settled)
            for i, one in enumerate(batch.ids):
                for waiter in batch.waiters(i):
                    self._fall_back(batch.tier, one, waiter, settled, dirty=one in batch.dirty)
        self.tell(settled.ready())

    # ── When the store has no answer ────────────────────────────────────────────────────────────────────────────────

    def _fall_back(self, tier: Tier, one: Id, waiter: Waiter, settled: Settled, *, dirty: bool = False) -> None:
        """Give a place the row that has expired; where there is none, have it computed, or give it the defaults."""
        row = tier.stale(one)
        if row is not None:
            settled.give(waiter, row)
        elif tier.computes:
            self._compute(tier, one, NotThere(status.UNREACHED, self._monotonic(), dirty), [waiter], settled)
        else:
            settled.give(waiter, tier.substitutes[status.UNREACHED])

    def _compute(self, tier: Tier, one: Id, reason: NotThere, waiters: Sequence[Waiter], settled: Settled) -> None:
        """Have a row computed. Who cannot wait for it, or need not, gets the defaults."""
        waiting: list[Waiter] = []
        others: list[Waiter] = []
        for waiter in waiters:
            (waiting if self._computing.has_time(tier, waiter.fetch) else others).append(waiter)
        if not self._computing.join(tier, one, reason, waiting):
            others += waiting
        for waiter in others:
            settled.give(waiter, tier.substitutes[reason.cause])

    def _end(self, fetches: Sequence[Fetch], cause: int) -> None:
        """Fill what is missing with what there is, and with the defaults."""
        settled = Settled()
        for fetch in fetches:
            for want in fetch.wants:
                for i, position in enumerate(want.positions):
                    if want.rows[position] is None:
                        row = want.tier.stale(want.ids[i]) or want.tier.substitutes[cause]
                        settled.give(_waiter(fetch, want, i), row)
        self.tell(settled.ready())

    # ── Time ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _set_timer(self, moment: float) -> None:
        """Have `_give_up` called at `moment`, and at no other."""
        if self._timer is not None:
            if self._timer_at <= moment:
                return
            self._timer.cancel()
        loop = self._loop
        if loop is not None:
            self._timer_at = moment
            self._timer = loop.call_later(max(0.0, moment - self._monotonic()), self._give_up)

    def _give_up(self, passes: int = GIVE_UP_PASSES) -> None:
        """Fetches whose time is over get what there is, when what has arrived meanwhile has been read."""
        loop = self._loop
        if passes and loop is not None:
            loop.call_soon(self._give_up, passes - 1)
            return
        self._timer = None
        due = self._give_up_times.due(self._monotonic() + TIMER_SLACK_S)
        self._end([fetch for fetch in due if fetch.late], status.TIMED_OUT)
        settled = Settled()
        waiting = [fetch for fetch in due if not fetch.late]
        for fetch in waiting:
            fetch.late = True
            for want in fetch.wants:
                for i, position in enumerate(want.positions):
                    if want.rows[position] is None:
                        one = want.ids[i]
                        # Its read goes on, unless it was written meanwhile.
                        written = one not in want.tier.pending
                        self._fall_back(want.tier, one, _waiter(fetch, want, i), settled, dirty=written)
        self.tell(settled.ready())
        for fetch in waiting:
            if fetch.live:
                self._give_up_times.push(fetch)
        moment = self._give_up_times.next()
        if moment is not None:
            self._set_timer(moment)

    def tell(self, ready: Sequence[tuple[Fetch, Sequence[int]]]) -> None:
        """Call back. One caller's error must not cost the others their answer."""
        for fetch, callers in ready:
            done = fetch.finish(len(callers))
            if done is None:
                continue
            try:
                done(callers)
            except Exception as error:  # noqa: BLE001  # reported, below
                context = {"message": "a fetch's done() raised", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)


def want_of(tier: Tier, ids: Sequence[Id], rows: list[Row], callers: Sequence[int] | None = None) -> Want:
    """The Nones of `rows`, with keys; `callers[i]` wants `rows[i]`, the only caller where it is None.

    Raises InvalidId, naming the position in `ids`.
    """
    positions: Sequence[int] = [position for position, row in enumerate(rows) if row is None]
    missing = ids
    if len(positions) < len(ids):
        missing = [ids[position] for position in positions]
        callers = callers and [callers[position] for position in positions]
    try:
        made, keys = tier.keys.encode(missing)
    except InvalidId as error:
        raise InvalidId(error.view, positions[error.position], error.why) from None
    return Want(tier, made, keys, rows, positions, bytes(len(positions)) if callers is None else callers)


def _waiter(fetch: Fetch, want: Want, i: int) -> Waiter:
    return Waiter(fetch, want.rows, want.positions[i], want.callers[i])
