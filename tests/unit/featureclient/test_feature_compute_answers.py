"""What a function or a query gave becomes rows of the right ids, or says what is wrong."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featureclient.compute.answers import AnswerWrong, checked
from featureclient.compute.frames import TooLarge, Unpacker, packed
from featureclient.compute.options import ComputeOptions
from featureclient.schema import Catalogue

CATALOGUE = Catalogue.parse("""
entities: {plane: {tailnum: string}, hour: {origin: string, hour: int64}}
views:
  v@1: {entity: plane, columns: {a: int16, s: "string[4]", x: "float32[2]", t: timestamp}}
  h@1: {entity: hour, columns: {a: int16}}
""")
VIEW = CATALOGUE.view("v@1")
HOUR = CATALOGUE.view("h@1")
IDS = ["A", "B", "C"]


def rows(answer: Any, ids: list[Any], column: str) -> dict[Any, Any]:
    values = answer.columns[column]
    null = np.zeros(len(values.values), bool) if values.null is None else values.null
    found = zip(answer.positions.tolist(), values.values.tolist(), null.tolist(), strict=True)
    return {ids[position]: None if is_null else value for position, value, is_null in found}


def test_rows_go_to_the_ids_that_they_name_and_strangers_are_counted() -> None:
    answer = checked(VIEW, IDS, {"tailnum": ["C", "nobody", "A", None], "a": [3, 9, 1, 9]})
    assert rows(answer, IDS, "a") == {"A": 1, "C": 3}
    assert (answer.unasked, dict(answer.wrong)) == (2, {})


@pytest.mark.parametrize(
    "table",
    [
        {"tailnum": np.array(IDS, object), "a": np.array([1, 2, 3]), "s": ["x", None, "é"], "x": np.ones((3, 2))},
        {"tailnum": IDS, "a": np.ma.MaskedArray([1, 2, 3]), "s": np.array(["x", None, "é"], object), "x": [[1, 1]] * 3},
        pa.table({"tailnum": IDS, "a": [1, 2, 3], "s": ["x", None, "é"], "x": [[1.0, 1.0]] * 3}),
    ],
)
def test_tables_come_in_many_forms(table: Any) -> None:
    answer = checked(VIEW, IDS, table)
    assert rows(answer, IDS, "a") == {"A": 1, "B": 2, "C": 3}
    assert rows(answer, IDS, "s") == {"A": "x", "B": None, "C": "é"}
    assert answer.columns["x"].values.dtype == np.float32


def test_two_rows_of_an_id_are_none_and_the_error_names_it() -> None:
    answer = checked(VIEW, IDS, {"tailnum": ["A", "B", "A", "A"], "a": [1, 2, 3, 4]})
    assert rows(answer, IDS, "a") == {"B": 2}
    assert "more than one row for the id 'A'" in answer.wrong[0]


def test_a_value_that_cannot_be_stored_costs_its_own_id_only() -> None:
    answer = checked(VIEW, IDS, {"tailnum": IDS, "a": [1, 40_000, 3], "s": ["x", "y", "too long"]})
    assert rows(answer, IDS, "a") == {"A": 1}
    assert answer.wrong[1] == "the id 'B': a: 40000 is out of the range of int16"
    assert "s: 8 bytes" in answer.wrong[2]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"a": [1]}, "no join key 'tailnum'"),
        ({"tailnum": IDS, "b": [1, 2, 3]}, "no column 'b'; there are: tailnum, a, s, x, t, event_time_ms"),
        ({"tailnum": IDS, "a": [1, 2]}, "different lengths"),
        ({"tailnum": [1, 2, 3], "a": [1, 2, 3]}, "int values for a join key of string: cast them"),
        ({"tailnum": IDS, "a": np.array(["x", "y", "z"])}, "a: <U1 values for a column of int16"),
        ({"tailnum": IDS, "a": 1}, "a: a column is a sequence of values, not int"),
        ([("A", 1)], "a table is a mapping"),
    ],
)
def test_a_table_that_is_none_of_the_view_is_refused(table: Any, why: str) -> None:
    with pytest.raises(AnswerWrong, match=why):
        checked(VIEW, IDS, table)


def test_composite_ids_and_integers_that_came_as_floats() -> None:
    ids: list[Any] = [("JFK", 2), ("EWR", -1)]
    answer = checked(HOUR, ids, {"origin": ["EWR", "JFK", "JFK"], "hour": np.array([-1.0, 2.0, 2.5]), "a": [1, 2, 3]})
    assert rows(answer, ids, "a") == {("EWR", -1): 1, ("JFK", 2): 2}
    assert answer.unasked == 1


def test_times_are_milliseconds_and_event_times_are_kept() -> None:
    when = np.array(["2013-09-30", "2013-10-01", "NaT"], "datetime64[us]")
    answer = checked(VIEW, IDS, {"tailnum": IDS, "t": when, "event_time_ms": [1, 2, 3]})
    assert rows(answer, IDS, "t") == {"A": 1380499200000, "B": 1380585600000, "C": None}
    assert rows(answer, IDS, "event_time_ms") == {"A": 1, "B": 2, "C": 3}


def test_an_empty_table_is_an_answer() -> None:
    answer = checked(VIEW, IDS, {"tailnum": [], "a": []})
    assert len(answer.positions) == 0


def test_frames_survive_any_cut_and_a_giant_is_refused() -> None:
    answer = checked(VIEW, IDS, {"tailnum": IDS, "a": [1, 2, 3]})
    stream = packed(answer) * 2
    for size in (1, 7, len(stream) // 2 + 1, len(stream)):
        unpacker = Unpacker(1 << 20)
        heard = [one for start in range(0, len(stream), size) for one in unpacker.feed(stream[start : start + size])]
        assert [rows(one, IDS, "a") for one in heard] == [{"A": 1, "B": 2, "C": 3}] * 2
    with pytest.raises(TooLarge, match="answer_bytes_max is 10"):
        Unpacker(10).feed(stream)


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"kill_grace_s": -1}, {"start_timeout_s": 0}, {"breaker_failures": 0}]
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        ComputeOptions(**wrong)
