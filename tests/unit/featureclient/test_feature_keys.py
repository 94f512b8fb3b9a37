"""Keys: what they look like, and which ids have none."""

import numpy as np
import pytest

from featureclient.schema import Catalogue, InvalidId
from featureclient.wire import KeyCodec

CATALOGUE = Catalogue.parse(
    """
namespace: ns
entities:
  plane: {tailnum: string}
  hour: {hour: int64}
  route: {origin: string, hour: int64}
views:
  p@1: {entity: plane, columns: {a: int8}}
  h@2: {entity: hour, columns: {a: int8}}
  r@3: {entity: route, columns: {a: int8}}
"""
)
PLANE, HOUR, ROUTE = (KeyCodec(CATALOGUE.view(ref)) for ref in ("p@1", "h@2", "r@3"))


def test_keys_have_the_documented_form() -> None:
    assert PLANE.encode(["N1", "é", ""])[1] == [b"ns:{plane:N1}:p:1", "ns:{plane:é}:p:1".encode(), b"ns:{plane:}:p:1"]
    assert HOUR.encode([-5, 0])[1] == [b"ns:{hour:-5}:h:2", b"ns:{hour:0}:h:2"]
    assert ROUTE.encode([("JFK", 7)])[1] == [b"ns:{route:JFK|7}:r:3"]
    assert PLANE.encode([])[1] == []


def test_special_characters_are_escaped() -> None:
    assert PLANE.encode(["ok", "a%b:c{d}e|f"])[1] == [b"ns:{plane:ok}:p:1", b"ns:{plane:a%25b%3Ac%7Bd%7De%7Cf}:p:1"]


def test_an_int64_may_come_as_canonical_text_or_as_a_numpy_integer() -> None:
    ids, keys = HOUR.encode(["-12", np.int64(3), 4])  # type: ignore[list-item]  # numpy's integers are no int
    assert list(ids) == [-12, 3, 4]
    assert keys == [b"ns:{hour:-12}:h:2", b"ns:{hour:3}:h:2", b"ns:{hour:4}:h:2"]
    assert HOUR.canonical(["7", 8]) == [7, 8]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "-",
        "+1",
        "01",
        "-0",
        " 1",
        "1_0",
        "1.0",
        "\u0661",
        "9223372036854775808",
        "1" * 5000,
        1.0,
        True,
        None,
        2**63,
        b"1",
    ],
)
def test_what_is_no_int64_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidId) as caught:
        HOUR.encode([1, wrong])  # type: ignore[list-item]  # as wrong as meant
    assert caught.value.position == 1


@pytest.mark.parametrize("wrong", [1, None, b"x", ("a",), float("nan"), "\ud800"])
def test_what_is_no_string_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidId) as caught:
        PLANE.encode(["a", "b", wrong])  # type: ignore[list-item]  # as wrong as meant
    assert caught.value.position == 2


@pytest.mark.parametrize("wrong", ["JFK", ("JFK",), ("JFK", 1, 2), (1, 1), ["JFK", 1], ("JFK", "01")])
def test_a_composite_id_is_a_tuple_of_all_its_parts(wrong: object) -> None:
    with pytest.raises(InvalidId):
        ROUTE.encode([wrong])  # type: ignore[list-item]  # as wrong as meant


def test_the_limit_counts_escaped_bytes() -> None:
    codec = KeyCodec(CATALOGUE.view("p@1"), id_bytes_max=6)
    assert len(codec.encode(["abcdef", "ééé", "::"])[1]) == 3
    for wrong in ("abcdefg", "éééé", ":::", "x" * 1_000_000):
        with pytest.raises(InvalidId, match="id_bytes_max is 6") as caught:
            codec.encode(["a", wrong])
        assert caught.value.position == 1
        assert len(str(caught.value)) < 200
