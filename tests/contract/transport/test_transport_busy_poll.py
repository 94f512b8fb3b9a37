"""A lone caller finds the loop awake; nobody keeps it awake."""

import asyncio
import time

import pytest

from gateway.transport import TransportOptions
from gateway.transport.fast.server import FastTransport
from tests.contract.transport.rig import serve, until


async def test_the_loop_looks_for_more_after_a_lone_call_and_then_sleeps() -> None:
    async with serve("fast", busy_poll_us=200_000) as served:
        transport = served.transport
        assert isinstance(transport, FastTransport)
        assert await served.call(b"one") == b"one"
        assert transport._polling
        cpu_s = time.process_time()
        await until(lambda: not transport._polling)
        assert time.process_time() - cpu_s > 0.05  # it did not sleep meanwhile
        cpu_s = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - cpu_s < 0.25  # and now it does


async def test_each_call_begins_the_time_anew() -> None:
    async with serve("fast", busy_poll_us=50_000) as served:
        transport = served.transport
        assert isinstance(transport, FastTransport)
        await served.call(b"one")
        until_first = transport._poll_until
        await served.call(b"two")
        assert transport._poll_until > until_first
        await until(lambda: not transport._polling)


async def test_one_that_is_told_not_to_does_not() -> None:
    async with serve("fast", busy_poll_us=0) as served:
        transport = served.transport
        assert isinstance(transport, FastTransport)
        await served.call(b"one")
        assert not transport._polling


def test_it_is_not_negative() -> None:
    with pytest.raises(ValueError, match="busy_poll_us must not be negative"):
        TransportOptions(busy_poll_us=-1)
