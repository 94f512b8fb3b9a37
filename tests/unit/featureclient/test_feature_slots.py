"""The map of a cluster, and redirections."""

import pytest

from featureclient.store.link import ReplyError
from featureclient.store.slots import SLOTS, NotATopology, Redirect, Topology, slot_of

ASKED = ("10.0.0.9", 7000)


def test_a_map_has_an_owner_for_every_slot_that_is_served() -> None:
    reply = [
        [
            0,
            99,
            [b"10.0.0.1", 7000, b"id"],
            [b"10.0.0.2", 7001, b"id"],
            [b"10.0.0.3", 7002, b"id", [b"hostname", b"c"]],
        ],
        [200, 16383, [b"10.0.0.4", 7003, b"id"]],
        [100, 100, [b"10.0.0.1", 7000, b"id"], [b"10.0.0.2", 7001, b"id"], [b"10.0.0.3", 7002, b"id"]],
    ]
    made = Topology.of_reply(reply, ASKED)
    assert len(made.owners) == SLOTS
    assert (made.owners[0], made.owners[99], made.owners[100]) == (("10.0.0.1", 7000),) * 3
    assert made.owners[101] is made.owners[199] is None
    assert made.owners[200] == made.owners[16383] == ("10.0.0.4", 7003)
    assert made.replicas == {
        ("10.0.0.1", 7000): (("10.0.0.2", 7001), ("10.0.0.3", 7002)),
        ("10.0.0.4", 7003): (),
    }


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_node_that_does_not_know_its_address_is_the_one_that_was_asked(host: bytes | None) -> None:
    assert Topology.of_reply([[0, 16383, [host, 7005, b"id"]]], ASKED).owners[5] == ("10.0.0.9", 7005)


@pytest.mark.parametrize(
    "reply", [[], None, b"OK", [[0, 1]], [[0, 1, [b"h", b"x"]]], [[0, 16384, [b"h", 1]]], [[3, b"a", [b"h", 1]]]]
)
def test_what_is_no_map_is_refused(reply: object) -> None:
    with pytest.raises(NotATopology):
        Topology.of_reply(reply, ASKED)


@pytest.mark.parametrize(
    ("error", "redirect"),
    [
        ("MOVED 3999 127.0.0.1:6381", Redirect(("127.0.0.1", 6381), 3999, once=False)),
        ("ASK 0 node-1.example:7000", Redirect(("node-1.example", 7000), 0, once=True)),
        ("MOVED 1 :7000", Redirect(("10.0.0.9", 7000), 1, once=False)),
        ("MOVED 1 ?:7000", Redirect(("10.0.0.9", 7000), 1, once=False)),
        ("MOVED 1 2001:db8::1:7000", Redirect(("2001:db8::1", 7000), 1, once=False)),
        ("MOVED 99999 127.0.0.1:6381", None),
        ("MOVED 1 127.0.0.1", None),
        ("MOVED", None),
        ("TRYAGAIN Multiple keys request during rehashing of slot", None),
        ("ERR MOVED 1 127.0.0.1:6381", None),
    ],
)
def test_redirections(error: str, redirect: Redirect | None) -> None:
    assert Redirect.of_error(ReplyError(error), ASKED) == redirect


def test_views_of_an_entity_share_a_slot() -> None:
    assert slot_of(b"hr:{plane:N1}:a:1") == slot_of(b"hr:{plane:N1}:b:7") == slot_of(b"plane:N1")
    assert slot_of(b"123456789") == 0x31C3 % SLOTS
