"""Combines the rows of every id that a combined view can have: after its first declaration, or when in doubt."""

from collections.abc import Callable, Sequence

from featureclient.client import FeatureClient
from featureclient.client.combining import ROWS_MAX, Combined, Combiner, Member, read_all
from featureclient.evolution import count_rows, pages_of, row_pattern
from featureclient.schema import Id, View
from featureclient.store import OnlineStore


async def combine_all(client: FeatureClient, view: str | View, progress: Callable[[int, int], None]) -> Combined:
    """Combine the rows of every id that a member has a row of. `progress` is called with ids done, and their total.

    The total counts an id once for each member that has a row of it, and so does the number done. Combined rows whose
    members are all gone are not found; they expire, or `headrace features drop` removes all of them. Raises
    NotCombined, StoreError.
    """
    combiner = Combiner(client, view)
    members, store, done, looked_at = combiner.members, client.store, Combined(), 0
    patterns = [row_pattern(member.view, member.view.ref, member.view.namespace) for member in members]
    total = sum([await count_rows(store, pattern) for pattern in patterns])
    for index, pattern in enumerate(patterns):
        async for keys in pages_of(store, pattern):
            for start in range(0, len(keys), ROWS_MAX):
                some = keys[start : start + ROWS_MAX]
                ids = members[index].keys.decode(some)
                done += await combiner.combine(await _not_in(store, members[:index], ids))
                looked_at += len(some)
                progress(looked_at, max(total, looked_at))
    return done


async def _not_in(store: OnlineStore, members: Sequence[Member], ids: Sequence[Id]) -> Sequence[Id]:
    """Those of the ids that no one of these members, which have been gone through, has a row of."""
    for member in members:
        values = await read_all(store, member.keys.encode(ids)[1])
        ids = [one for one, value in zip(ids, values, strict=True) if value is None]
    return ids
