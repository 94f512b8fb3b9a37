"""However the bytes of replies are cut into pieces, and whoever has left meanwhile: everybody gets the own reply."""

import asyncio
import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from featureclient.store.link import Endpoint, Link, LinkError, LinkLost, ReplyError

REPLIES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40) | st.from_regex(r"\A[A-Z]{1,9} \w*\Z"),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def encoded(reply: Any) -> bytes:
    """A reply as Redis writes it; a str is an error."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, str):
        return b"-%s\r\n" % reply.encode()
    if isinstance(reply, bytes):
        return b"$%d\r\n%s\r\n" % (len(reply), reply)
    return b"*%d\r\n%s" % (len(reply), b"".join(map(encoded, reply)))


def plain(reply: Any) -> Any:
    """A reply as a link gives it, with errors as their text."""
    if isinstance(reply, ReplyError):
        return str(reply)
    return [plain(one) for one in reply] if isinstance(reply, list) else reply


class Wire:
    """The transport of a link that is fed by the test."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def feed(link: Link, data: bytes) -> None:
    buffer = link.get_buffer(len(data))
    buffer[: len(data)] = data
    link.buffer_updated(len(data))


async def outcome(future: "asyncio.Future[Any]") -> Any:
    try:
        return plain(await future)
    except ReplyError as error:
        return str(error)
    except (LinkError, asyncio.CancelledError) as error:
        return type(error)


@given(
    st.lists(st.tuples(REPLIES, st.booleans()), max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
    st.data(),
)
def test_everybody_gets_the_own_reply(calls: list[tuple[Any, bool]], cuts: list[int], data: st.DataObject) -> None:
    """Calls alone and in pipelines, some cancelled, with pushes among the replies."""
    replies = [reply for reply, _ in calls]
    wire = b""
    for i, reply in enumerate(replies):
        if data.draw(st.booleans(), label=f"push before {i}"):
            wire += b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\nk%d\r\n" % (len(f"k{i}"), i)
        wire += encoded(reply)
    pieces = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))

    async def run() -> None:
        pushed: list[Any] = []
        link = Link(Endpoint(), on_push=pushed.extend)
        transport = Wire()
        link.connection_made(transport)  # type: ignore[arg-type]  # what a link uses of a transport
        bounds = sorted({min(cut, len(calls)) for cut in cuts} | {0, len(calls)})
        waiting: list[tuple[asyncio.Future[Any], Any]] = []
        for start, end in itertools.pairwise(bounds):
            if (end - start) % 2:
                waiting.append((link.pipeline([("X",)] * (end - start)), replies[start:end]))
            else:
                waiting += [(link.call("X"), replies[i]) for i in range(start, end)]
        for i, (future, _) in enumerate(waiting):
            if calls[i][1]:
                future.cancel()
        for start, end in zip([0, *pieces], [*pieces, len(wire)], strict=True):
            feed(link, wire[start:end])
        for i, (future, reply) in enumerate(waiting):
            assert await outcome(future) == (asyncio.CancelledError if calls[i][1] else reply)
        assert (len(link), link.lost, transport.aborted) == (0, False, False)
        assert len(pushed) == wire.count(b">2\r\n$10\r\ninvalidate")
        # What nobody asked for ends it all.
        feed(link, encoded(1))
        assert link.lost
        assert transport.aborted

    asyncio.run(run())


@given(st.integers(1, 6), st.binary(min_size=1, max_size=60), st.integers(0, 60))
def test_garbage_is_never_an_answer_of_the_wrong_call(calls: int, garbage: bytes, after: int) -> None:
    """The replies before the garbage are good; after it there are none, unless it happens to be the protocol."""

    async def run() -> None:
        link = Link(Endpoint())
        link.connection_made(Wire())  # type: ignore[arg-type]  # what a link uses of a transport
        waiting = [link.call("X") for _ in range(calls)]
        feed(link, b"$5\r\nfirst\r\n")
        if not link.lost:
            feed(link, garbage)
        if not link.lost:
            link.connection_lost(None)
        assert await outcome(waiting[0]) == b"first"
        assert link.lost
        for one in waiting[1:]:
            assert one.done()
        if garbage[:1] not in b"$*:+-_,(#=%~|>!":
            assert [await outcome(one) for one in waiting[1:]] == [LinkLost] * (calls - 1)
        else:
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())
