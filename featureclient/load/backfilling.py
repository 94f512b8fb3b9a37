"""Fills the rows of a new view version beside those of the old one, from what the view computes.

    ids of the old version's keys, or of a file ─▶ those without a row ─▶ compute ─▶ write ─▶ the next batch

Going on. A row that is there is neither computed nor written, so an interrupted backfill goes on by running it again:
what is done is looked at once more, 256 keys to a round trip, and that is all. With `renew` every id is computed again.

Nothing newer is lost. Without `renew` a row is written only where there is none. With it, and in place of a row that
readers refuse, the later event stays; a computed row without a time of its own has the time when its batch began, so
whatever was written since then is newer.

Bounds. One batch is in memory, and computed ids wait for the pace. A batch whose ids failed is tried `attempts_max`
times in all, each time in smaller pieces, because a timeout and a poisonous id are both cured by that. After
`failed_batches_max` batches in a row that gave nothing but failures, the backfill stops.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featureclient.client import FeatureClient
from featureclient.client.computing import Computes
from featureclient.evolution import pages_of, row_pattern
from featureclient.load.pacing import Pace
from featureclient.schema import EVENT_TIME, Catalogue, FeatureError, Id, InvalidTable, View
from featureclient.warmup import BadLine, IdFile
from featureclient.wire import EncodedRows, KeyCodec, RowReader

READ_KEYS_MAX = 256
REASONS_MAX = 20
"""How many different reasons of failures are told apart."""
SAMPLES_MAX = 3
"""How many ids are named for each."""
BAD_LINES_MAX = 20
"""How many bad lines of a file are named."""
RETRY_PIECES = 8
"""Into how many pieces the failed ids of a batch are cut when they are tried again."""
OTHER = "other reasons"
UNNAMED = "the row is not what the view declares"
_FOREVER_MS = 2**62


class BackfillRefused(FeatureError):
    """The view cannot be backfilled in this way. The message says in which."""


class BackfillStopped(FeatureError):
    """Batch after batch failed. What was written before is there, and another run goes on behind it."""


@dataclass(frozen=True, slots=True)
class BackfillOptions:
    """Bounds of a backfill."""

    batch_ids: int = 1_000
    """Ids that are looked at, computed and written together."""
    attempts_max: int = 3
    """How often ids that failed are tried, the first time included."""
    attempt_pause_s: float = 1.0
    """The wait before another attempt. A computation that failed in a row is left alone for `breaker_open_s`."""
    failed_batches_max: int = 5
    """Batches in a row in which every id failed; then something is broken, and the backfill stops."""
    renew: bool = False
    """Compute the ids that have a row again, too. A row of a later event stays."""

    def __post_init__(self) -> None:
        if min(self.batch_ids, self.attempts_max, self.failed_batches_max) < 1 or self.attempt_pause_s < 0:
            raise ValueError("batch_ids, attempts_max and failed_batches_max must be at least 1, pauses not negative")


@dataclass(slots=True)
class BackfillReport:
    """What became of the ids so far. Each is in one of the numbers."""

    ids: int = 0
    """Ids looked at; one that the scan gives twice counts twice."""
    written: int = 0
    there: int = 0
    """Ids that have a row, and were left alone."""
    superseded: int = 0
    """Computed rows that were not written, because somebody has written a row meanwhile, or a newer one was there."""
    no_row: int = 0
    """Ids that the computation has no row of."""
    failed: Counter[str] = field(default_factory=Counter)
    """Reason -> ids."""
    samples: dict[str, list[Id]] = field(default_factory=dict)
    """Reason -> some of the ids."""
    bad_lines: list[BadLine] = field(default_factory=list)
    """The first wrong lines of a file of ids."""
    bad_lines_total: int = 0

    def note_failed(self, failed: Mapping[Id, str]) -> None:
        """Count failures by their reasons."""
        for one, why in failed.items():
            reason = why if why in self.failed or len(self.failed) < REASONS_MAX else OTHER
            self.failed[reason] += 1
            some = self.samples.setdefault(reason, [])
            if len(some) < SAMPLES_MAX:
                some.append(one)

    def note_bad_lines(self, lines: Sequence[BadLine]) -> None:
        """Keep the first ones."""
        self.bad_lines_total += len(lines)
        self.bad_lines += lines[: BAD_LINES_MAX - len(self.bad_lines)]


class Backfill:
    """One backfill of a view. `report` is up to date whenever `run` returns, raises or is cancelled."""

    def __init__(
        self,
        client: FeatureClient,
        computes: Computes,
        view: str | View,
        options: BackfillOptions | None = None,
        *,
        pace: Pace | None = None,
        progress: Callable[[int], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.view = client.catalogue.view(view) if isinstance(view, str) else view
        refuse_what_others_write(self.view)
        if not computes.names(self.view):
            raise BackfillRefused(
                f"{self.view.ref} names no `compute` in the catalogue: add one, or fill it from a table of its rows"
            )
        self._options = options if options is not None else BackfillOptions()
        self._client = client
        self._computes = computes
        self._pace = pace if pace is not None else Pace(None)
        self._progress = progress
        self._sleep = sleep
        self._keys = KeyCodec(self.view)
        self._reader = RowReader(self.view)
        self._failed_batches = 0
        self.report = BackfillReport()

    def __repr__(self) -> str:
        return f"<Backfill {self.view.ref} {self.report}>"

    async def from_stored(self, other: str | View) -> BackfillReport:
        """Fill the rows of all ids that another view of the same kind of entity has stored rows of.

        Raises BackfillRefused, CannotScan, StoreError, BackfillStopped.
        """
        other = self._client.catalogue.view(other) if isinstance(other, str) else other
        refuse_other_ids(self.view, other)
        keys = KeyCodec(other)
        pages = pages_of(self._client.store, row_pattern(other, other.ref, other.namespace))
        return await self._run(keys.decode(page) async for page in pages)

    async def from_file(self, file: IdFile) -> BackfillReport:
        """Fill the rows of the ids of a file, which was opened for this view. Raises IdFileError, and as above."""

        async def pages() -> AsyncIterator[Sequence[Id]]:
            pieces = file.pieces()
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                self.report.note_bad_lines(piece.bad_lines)
                yield piece.ids

        return await self._run(pages())

    async def _run(self, pages: AsyncIterator[Sequence[Id]]) -> BackfillReport:
        size = self._options.batch_ids
        size = min(size, self._pace.batch_max or size)
        waiting: list[Id] = []
        async for page in pages:
            waiting += page
            while len(waiting) >= size:
                batch, waiting = waiting[:size], waiting[size:]
                await self._batch(batch)
        if waiting:
            await self._batch(waiting)
        return self.report

    async def _batch(self, given: Sequence[Id]) -> None:
        ids = [*dict.fromkeys(given)]
        report = self.report
        there, broken = await self._look(ids)
        left = ids if self._options.renew else [one for one in ids if one not in there]
        failed: Mapping[Id, str] = {}
        if left:
            await self._pace.take(len(left))
            encoded, failed = await self._compute(left)
            found = 0
            for rows in encoded:
                found += len(rows.keys)
                await self._write(rows, broken)
            report.no_row += len(left) - found - len(failed)
            report.note_failed(failed)
        report.there += len(given) - len(left)
        report.ids += len(given)
        if self._progress is not None:
            self._progress(report.ids)
        self._failed_batches = self._failed_batches + 1 if failed and len(failed) == len(left) else 0
        if self._failed_batches >= self._options.failed_batches_max:
            why = next(iter(failed.values()))
            raise BackfillStopped(
                f"{self.view.ref}: {self._failed_batches} batches in a row gave nothing but failures; the last: {why}"
            )

    async def _look(self, ids: Sequence[Id]) -> tuple[set[Id], set[Id]]:
        """The ids that have a row that readers take, and those that have one which they refuse."""
        there: set[Id] = set()
        broken: set[Id] = set()
        keys = self._keys.encode(ids)[1]
        for start in range(0, len(keys), READ_KEYS_MAX):
            some = keys[start : start + READ_KEYS_MAX]
            values = await self._client.store.read_primary(some)
            invalid = self._reader.admit(some, values, 0.0, _FOREVER_MS).invalid
            for position, value in enumerate(values):
                if value is not None:
                    (broken if position in invalid else there).add(ids[start + position])
        return there, broken

    async def _compute(self, ids: Sequence[Id]) -> tuple[list[EncodedRows], dict[Id, str]]:
        """The rows of these ids, ready for the store, and why others have none."""
        encoded: list[EncodedRows] = []
        wrong: dict[Id, str] = {}
        failed: dict[Id, str] = {}
        left, size = ids, len(ids)
        for attempt in range(self._options.attempts_max):
            if attempt:
                await self._sleep(self._options.attempt_pause_s)
            failed = {}
            for piece in _pieces(left, size):
                began_ms = self._client.now_ms()
                computed = await self._computes.attempt(self.view, piece, math.inf)
                failed |= {one: error.why for one, error in computed.failed.items()}
                rows, bad = self._encode(computed.table, began_ms)
                encoded.append(rows)
                wrong |= bad  # what is wrong with these values would be wrong again
            if not failed:
                break
            left, size = [*failed], -(-len(failed) // RETRY_PIECES)
        return encoded, wrong | failed

    def _encode(self, table: Mapping[str, Any], began_ms: int) -> tuple[EncodedRows, dict[Id, str]]:
        """A computed table as rows, and what is wrong with the ids that make none."""
        columns = dict(table)
        times = columns.pop(EVENT_TIME, began_ms)
        names = [key.name for key in self.view.entity.join_keys]
        parts = [columns[name] for name in names]
        ids: list[Id] = list(parts[0]) if len(parts) == 1 else list(zip(*parts, strict=True))
        try:
            encoded = self._client.encode(self.view, columns, event_time_ms=times)
        except InvalidTable as error:
            return EncodedRows((), (), (), (), 0), dict.fromkeys(ids, "; ".join(error.problems))
        bad: dict[Id, str] = {}
        if encoded.bad_rows_total:
            said = {row.row: f"column {row.column}: {row.why}" for row in encoded.bad_rows}
            good = set(encoded.ids)
            bad = {one: said.get(row, UNNAMED) for row, one in enumerate(ids) if one not in good}
        return encoded, bad

    async def _write(self, rows: EncodedRows, broken: set[Id]) -> None:
        """Write rows. A cancellation waits for the write that was begun, so that the report is true."""
        writing = asyncio.ensure_future(self._put(rows, broken))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.gather(writing, return_exceptions=True)
            raise

    async def _put(self, rows: EncodedRows, broken: set[Id]) -> None:
        if self._options.renew or not broken:
            parts = [(rows, not self._options.renew)]
        else:
            parts = [(_only(rows, broken, inside=False), True), (_only(rows, broken, inside=True), False)]
        for some, only_absent in parts:
            result = await self._client.put(self.view, some, only_absent=only_absent)
            self.report.written += result.written
            self.report.superseded += result.superseded


def older_version(catalogue: Catalogue, view: View) -> View | None:
    """The version of the same view before this one, where the catalogue has one."""
    older = [one for one in catalogue.views.values() if one.name == view.name and one.version < view.version]
    return max(older, key=lambda one: one.version, default=None)


def refuse_what_others_write(view: View) -> None:
    """Raise BackfillRefused for a view whose rows nobody writes by hand."""
    if view.combine:
        raise BackfillRefused(
            f"{view.ref} is a combined view: fill {' and '.join(view.combine)}, then `headrace features combine`"
        )
    if view.feast is not None:
        raise BackfillRefused(f"{view.ref}: Feast writes these rows, and here they are read only; materialize there")


def refuse_other_ids(view: View, other: View) -> None:
    """Raise BackfillRefused where the keys of `other` do not tell ids of `view`."""
    mine, theirs = ([(key.name, key.dtype) for key in one.entity.join_keys] for one in (view, other))
    if mine != theirs:
        raise BackfillRefused(f"{other.ref} is of {_said(theirs)}, and {view.ref} is of {_said(mine)}")
    if other.feast is not None:
        raise BackfillRefused(f"{other.ref} is stored by Feast, whose keys are not scanned; give a file of ids")


def _only(rows: EncodedRows, ids: set[Id], *, inside: bool) -> EncodedRows:
    kept = [place for place, one in enumerate(rows.ids) if (one in ids) is inside]
    keys, values = [rows.keys[place] for place in kept], [rows.values[place] for place in kept]
    return EncodedRows([rows.ids[place] for place in kept], keys, values, (), 0)


def _pieces(ids: Sequence[Id], size: int) -> Iterator[Sequence[Id]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _said(join_keys: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name}: {dtype}" for name, dtype in join_keys)
