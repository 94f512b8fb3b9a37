"""Warms a running gateway from a file of ids: reads them through its FeatureService, a batch at a time.

What a gateway reads it keeps, so reading is warming. Only one column comes back, which nobody looks at.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import grpc

from featureclient.schema import Id, View, status
from featureclient.warmup import BadLine
from featureclient.warmup.idfile import Piece
from gateway.client import CallFailed, HeadraceClient

BATCH_IDS_MAX = 512
FAILURES_MAX = 3
"""Batches in a row of which the gateway read no row, before it is left alone."""
BAD_LINES_MAX = 20
"""Wrong lines of a file that are named."""
_THERE = frozenset([status.PRESENT, status.STALE, status.COMPUTED])


@dataclass(slots=True)
class WarmedGateway:
    """What became of it: of `ids`, `there` have a row, and `unread` could not be read in time.

    `why` says why it was ended before the end of the file.
    """

    ids: int = 0
    there: int = 0
    unread: int = 0
    by_view: Counter[str] = field(default_factory=Counter)
    bad_lines: list[BadLine] = field(default_factory=list)
    bad_lines_total: int = 0
    why: str = ""

    @property
    def complete(self) -> bool:
        """Every line of the file was an id that the gateway could look for."""
        return not (self.unread or self.bad_lines_total or self.why)


async def warm_gateway(
    client: HeadraceClient,
    pieces: Iterator[Piece],
    *,
    batch_ids: int,
    timeout_s: float,
    progress: Callable[[int], None],
) -> WarmedGateway:
    """Have the gateway read the ids of `pieces`. `progress` is called with how many it has been asked for.

    A batch has at most `batch_ids` and may take `timeout_s`. Raises CallFailed where the gateway refuses, and what
    reading the file raises.
    """
    warmed = WarmedGateway()
    failures = 0
    while failures < FAILURES_MAX:
        piece = await asyncio.to_thread(next, pieces, None)
        if piece is None:
            return warmed
        warmed.bad_lines_total += len(piece.bad_lines)
        warmed.bad_lines += piece.bad_lines[: BAD_LINES_MAX - len(warmed.bad_lines)]
        if piece.view is None:
            continue
        for start in range(0, len(piece.ids), batch_ids):
            ids = piece.ids[start : start + batch_ids]
            there, unread = await _read(client, piece.view, ids, timeout_s)
            warmed.ids += len(ids)
            warmed.there += there
            warmed.unread += unread
            warmed.by_view[piece.view.ref] += there
            failures = failures + 1 if unread == len(ids) else 0
            progress(warmed.ids)
    warmed.why = f"the gateway could not read {FAILURES_MAX} batches in a row; is its feature store there?"
    return warmed


async def _read(client: HeadraceClient, view: View, ids: Sequence[Id], timeout_s: float) -> tuple[int, int]:
    """How many of the ids have a row, and how many the gateway could not read in time."""
    keys = [key.name for key in view.entity.join_keys]
    parts = [ids] if len(keys) == 1 else list(zip(*ids, strict=True))
    column = min(view.columns, key=lambda column: column.dtype.width).name
    entities = {name: list(part) for name, part in zip(keys, parts, strict=True)}
    try:
        found = await client.get_features(view.ref, entities, [column], timeout_s=timeout_s)
    except CallFailed as error:
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return 0, len(ids)
        raise
    outcomes = found.rows.status & status.OUTCOME_MASK
    causes = found.rows.status & status.CAUSE_MASK
    unread = ((causes == status.UNREACHED) | (causes == status.TIMED_OUT)).sum()
    return sum(outcome in _THERE for outcome in outcomes.tolist()), int(unread)
