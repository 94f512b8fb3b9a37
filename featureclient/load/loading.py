"""A file into a view, piece by piece: while one piece is written, the next is read and encoded.

Pieces are written in the order of the file, and a piece is many rows to a round trip. So of two rows with one id and
one event time, the later one stays, and what is done is always a prefix of the file.

Progress. After every piece the number of rows done is kept in the store, as the blob `load:<digest>`; the digest is of
the view, its fingerprint, and the file's identity (size, time of change, first and last 64 KiB). `resume` starts behind
that prefix; a file that was changed, and a view whose columns were, start at the beginning. Rows without an event time
of their own get that of the moment when the load began, also when it is resumed. The blob is removed when a load ends,
and expires after a week.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from featureclient.client import FeatureClient
from featureclient.load.pacing import Pace
from featureclient.load.sources import FileIdentity, LoadError, Piece, open_source
from featureclient.schema import EVENT_TIME, BadRow, View
from featureclient.wire import EncodedRows

OnBadRow: TypeAlias = Literal["stop", "skip"]
Progress: TypeAlias = Callable[[int, int | None], None]

PIECE_ROWS = 4096
BAD_ROWS_MAX = 20
PROGRESS_TTL_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of a file.

    `rows` were looked at, those of earlier runs included: `written`, `superseded` by newer stored rows, or `bad`.
    `bad_rows` are the first of this run, counted from 1. `stopped` is True when a bad row ended the load: the pieces
    before it are written. `resumed_at` is how many rows earlier runs had done.
    """

    rows: int
    written: int
    superseded: int
    bad: int
    bad_rows: tuple[BadRow, ...]
    stopped: bool
    resumed_at: int


@dataclass(frozen=True, slots=True)
class _Done:
    """How far a load has come; the content of the blob. `malformed` rows are not among `rows`, but among `bad`."""

    event_time_ms: int
    rows: int = 0
    malformed: int = 0
    written: int = 0
    superseded: int = 0
    bad: int = 0


async def load_file(
    client: FeatureClient,
    view: str | View,
    path: str | Path,
    *,
    on_bad_row: OnBadRow = "stop",
    resume: bool = False,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> LoadReport:
    """Load a Parquet, CSV or Arrow file, which has the join keys and every column of the view (and maybe more).

    A column `event_time_ms` (milliseconds, or a timestamp) has the times of the events. `progress` is called with the
    rows done and their total (None where it is not known). `pace` bounds the rows a second. Raises LoadError when the
    file as a whole is wrong, and StoreError when the store fails; then `resume` goes on from there.
    """
    view = client.catalogue.view(view) if isinstance(view, str) else view
    if view.combine:
        raise LoadError(f"{view.ref} is a combined view: load {' and '.join(view.combine)} instead")
    path = Path(path)
    blob = await asyncio.to_thread(_blob_name, path, view)
    done = await _progress_of(client, blob) if resume else None
    if done is None:
        done = _Done(client.now_ms())
    pace = Pace(None) if pace is None else pace
    piece_rows = min(PIECE_ROWS, pace.batch_max or PIECE_ROWS)
    source = await asyncio.to_thread(open_source, path, view, piece_rows)

    def say(rows: int) -> None:
        if progress is not None:
            progress(rows, source.rows_total)

    load = _Load(client, view, blob, done, say=say, pace=pace)
    return await load.run(source.pieces(done.rows), skip_bad_rows=on_bad_row == "skip")


class _Load:
    """One run over the pieces of a file."""

    def __init__(
        self,
        client: FeatureClient,
        view: View,
        blob: str,
        done: _Done,
        *,
        say: Callable[[int], None],
        pace: Pace,
    ) -> None:
        self._client = client
        self._view = view
        self._blob = blob
        self._done = done
        self._resumed_at = done.rows + done.malformed
        self._say = say
        self._pace = pace
        self._bad_rows: list[BadRow] = []

    async def run(self, pieces: Iterator[Piece], *, skip_bad_rows: bool) -> LoadReport:
        """Read and encode one piece ahead of the write."""
        stopped = False
        ahead = self._done
        writing: asyncio.Task[None] | None = None
        try:
            while (piece := await asyncio.to_thread(_next, pieces)) is not None:
                encoded = self._encode(piece)
                if writing is not None:
                    await writing
                bad = encoded.bad_rows_total + len(piece.malformed)
                self._note(piece, encoded)
                if bad and not skip_bad_rows:
                    stopped = True
                    self._done = replace(self._done, bad=self._done.bad + bad)
                    break
                ahead = replace(
                    ahead,
                    rows=ahead.rows + piece.rows,
                    malformed=ahead.malformed + len(piece.malformed),
                    bad=ahead.bad + bad,
                )
                await self._pace.take(piece.rows)
                writing = asyncio.create_task(self._write(encoded, ahead))
            if writing is not None and not stopped:
                await writing
        finally:
            # What was begun ends first, so that the next run starts where this one stopped.
            if writing is not None:
                await asyncio.gather(writing, return_exceptions=True)
        if not stopped:
            await self._client.store.put_blob(self._blob, b"")
        done = self._done
        return LoadReport(
            rows=done.rows + done.malformed,
            written=done.written,
            superseded=done.superseded,
            bad=done.bad,
            bad_rows=tuple(self._bad_rows),
            stopped=stopped,
            resumed_at=self._resumed_at,
        )

    def _encode(self, piece: Piece) -> EncodedRows:
        if not piece.rows:
            return EncodedRows((), (), (), (), 0)
        times = None if EVENT_TIME in piece.columns else self._done.event_time_ms
        return self._client.encode(self._view, piece.columns, event_time_ms=times)

    async def _write(self, encoded: EncodedRows, ahead: _Done) -> None:
        """Write one piece, then remember that everything up to it is done."""
        result = await self._client.put(self._view, encoded)
        self._done = replace(
            ahead,
            written=self._done.written + result.written,
            superseded=self._done.superseded + result.superseded,
        )
        data = json.dumps(asdict(self._done)).encode()
        await self._client.store.put_blob(self._blob, data, PROGRESS_TTL_MS)
        self._say(self._done.rows + self._done.malformed)

    def _note(self, piece: Piece, encoded: EncodedRows) -> None:
        """Keep the first bad rows, by their numbers in the file."""
        found = [replace(bad, row=piece.number_of(bad.row)) for bad in encoded.bad_rows]
        room = BAD_ROWS_MAX - len(self._bad_rows)
        self._bad_rows += sorted([*piece.malformed, *found], key=lambda bad: bad.row)[:room]


def _next(pieces: Iterator[Piece]) -> Piece | None:
    import pyarrow as pa

    try:
        return next(pieces, None)
    except pa.ArrowException as error:
        raise LoadError(f"the file cannot be read on: {error}") from error


def _blob_name(path: Path, view: View) -> str:
    identity = asdict(FileIdentity.of(path))
    text = json.dumps([view.ref, view.fingerprint, identity], sort_keys=True)
    return f"load:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


async def _progress_of(client: FeatureClient, blob: str) -> _Done | None:
    data = await client.store.get_blob(blob)
    try:
        return None if data is None else _Done(**json.loads(data))
    except (ValueError, TypeError):
        return None  # written by another version of this code: the load starts anew
