"""The map of a cluster: which node has which slot, and what its redirections say. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from redis.crc import key_slot

from featureclient.store.link import ReplyError

Place: TypeAlias = tuple[str, int]
"""Host and port of a node, as the cluster tells them."""

SLOTS: Final = 16_384

slot_of = key_slot
"""The slot of a key (bytes): CRC16 of its hash tag, 0.3 us. A dictionary of slots by key would save 0.2 us of that as
long as keys repeat, which those of cold reads do not."""


class NotATopology(ValueError):
    """The reply to CLUSTER SLOTS is none."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Who has what. `owners[slot]` is the place of its primary, None where nobody serves the slot."""

    owners: Sequence[Place | None]
    replicas: Mapping[Place, tuple[Place, ...]]
    """The replicas of a primary."""

    @classmethod
    def of_reply(cls, reply: Any, asked: Place) -> Self:
        """Read the reply to CLUSTER SLOTS. A node that does not know its own address is the one that was `asked`.

        Raises NotATopology.
        """
        owners: list[Place | None] = [None] * SLOTS
        replicas: dict[Place, tuple[Place, ...]] = {}
        try:
            for first, last, primary, *others in reply:
                place = _place(primary, asked)
                owners[first : last + 1] = [place] * (last + 1 - first)
                replicas[place] = tuple([_place(other, asked) for other in others])
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise NotATopology(f"not a map of slots: {reply!r:.200}") from error
        if not replicas or len(owners) != SLOTS:
            raise NotATopology("no node of the cluster has any slot")
        return cls(owners, replicas)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Another node has the key: for good (MOVED), or for this command only, while the slot moves (ASK)."""

    place: Place
    slot: int
    once: bool

    @classmethod
    def of_error(cls, error: ReplyError, asked: Place) -> Self | None:
        """Read `MOVED 3999 127.0.0.1:6381`; None when the error is another. An empty host is the one that was asked."""
        kind, *rest = str(error).split(" ")
        if kind not in {"MOVED", "ASK"} or len(rest) != 2:  # noqa: PLR2004  # a slot and a place
            return None
        host, _, port = rest[1].rpartition(":")
        if not (rest[0].isdecimal() and port.isdecimal()) or int(rest[0]) >= SLOTS:
            return None
        return cls((host.strip("[]") if host not in {"", "?"} else asked[0], int(port)), int(rest[0]), kind == "ASK")


def _place(node: Sequence[Any], asked: Place) -> Place:
    host = node[0].decode() if node[0] is not None else ""
    return (host if host not in {"", "?"} else asked[0], int(node[1]))
