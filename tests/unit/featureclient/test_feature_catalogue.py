"""The catalogue: what a good file gives, and what is said about a bad one."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from featureclient.schema import Catalogue, ConfigError, UnknownView, document
from featureclient.schema.duration import seconds_of

GOOD = """\
entities:
  plane: {tailnum: string}
  airport_hour: {origin: string, hour: int64}
views:
  plane_stats@2:
    entity: plane
    max_age: 36h
    ttl: 30d
    columns:
      flights: {dtype: int32, default: 0}
      late_share: {dtype: float32, default: 0.2}
      embedding: "float32[16]"
      maker: {dtype: "string[24]", default: ""}
      scheduled: int32
    revisions:
      - {flights: int16, gone: bool}
  weather@1:
    entity: airport_hour
    on_missing: reject
    columns: {temp: {dtype: float32, default: 0}}
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Catalogue.parse(text, "f.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_a_view_has_what_the_file_says() -> None:
    catalogue = Catalogue.parse(GOOD)
    view = catalogue.view("plane_stats@2")
    assert (view.name, view.version, view.namespace, view.max_age_ms, view.ttl_ms) == (
        "plane_stats",
        2,
        "hr",
        36 * 3_600_000,
        30 * 86_400_000,
    )
    assert [(column.name, str(column.dtype), column.default) for column in view.columns[:2]] == [
        ("flights", "int32", 0),
        ("late_share", "float32", 0.2),
    ]
    assert [key.name for key in catalogue.view("weather@1").entity.join_keys] == ["origin", "hour"]


def test_columns_of_one_type_lie_side_by_side() -> None:
    layout = Catalogue.parse(GOOD).view("plane_stats@2").layout
    assert layout.block_dtype.names == ("fresh_until", "event_ms", "status", "valid", "i4", "f4", "S24")
    assert layout.places["flights"] == ("i4", 0, 1)
    assert layout.places["scheduled"] == ("i4", 1, 1)
    assert layout.places["embedding"] == ("f4", 1, 16)
    assert layout.block_dtype.itemsize == 17 + 1 + 4 * 2 + 4 * 17 + 24


def test_the_fingerprint_is_of_names_dtypes_order_view_and_version() -> None:
    def fingerprint(columns: str, ref: str = "v@1") -> int:
        text = f"entities: {{e: {{k: string}}}}\nviews:\n  {ref}:\n    entity: e\n    columns: {columns}\n"
        return Catalogue.parse(text).view(ref).fingerprint

    one = fingerprint("{a: int8, b: int8}")
    assert one == fingerprint("{a: {dtype: int8, default: 3}, b: int8}")
    others = [
        fingerprint("{b: int8, a: int8}"),
        fingerprint("{a: int8, b: int16}"),
        fingerprint("{a: int8, b: 'int8[1]'}"),
        fingerprint("{a: int8, c: int8}"),
        fingerprint("{a: int8, b: int8}", "v@2"),
        fingerprint("{a: int8, b: int8}", "w@1"),
    ]
    assert len({one, *others}) == 7


def test_an_unknown_view_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownView, match=r"no view 'plane_stats@1'; there are: plane_stats@2, weather@1"):
        Catalogue.parse(GOOD).view("plane_stats@1")


def test_every_problem_is_named_with_file_line_and_field() -> None:
    said = problems_of(
        """\
entities:
  plane: {tailnum: string}
views:
  stats:
    entity: plane
    columns: {a: int8}
  other@1:
    entity: plain
    columns:
      tailnum: float33
      event_time_ms: int8
      b: {dtype: int8, default: 200}
  third@1:
    entity: plane
    columns: {tailnum: int8, c: int16, d: int8}
    revisions:
      - {c: int32}
      - {tailnum: int8, c: int16, d: int8}
"""
    )
    assert [line.split(": ")[:2] for line in said] == [
        ["f.yaml:4", "views.stats"],
        ["f.yaml:8", "views.other@1.entity"],
        ["f.yaml:10", "views.other@1.columns.tailnum.dtype"],
        ["f.yaml:11", "views.other@1.columns.event_time_ms"],
        ["f.yaml:12", "views.other@1.columns.b.default"],
        ["f.yaml:15", "views.third@1.columns.tailnum"],
        ["f.yaml:18", "views.third@1.revisions[1].tailnum"],
    ]


def test_revisions_that_cannot_be_upgraded_are_refused() -> None:
    said = problems_of(
        """\
entities: {e: {k: string}}
views:
  v@1:
    entity: e
    columns: {c: int16}
    revisions:
      - {c: int32}
      - {c: int16}
"""
    )
    assert said[0].startswith("f.yaml:7: views.v@1.revisions[0].c: int32 cannot be widened to int16")
    assert said[1].startswith("f.yaml:8: views.v@1.revisions[1]: has the same columns")


def test_an_unknown_field_is_named_with_those_that_exist() -> None:
    said = problems_of("entities: {}\nviews:\n  v@1: {entity: e, columns: {a: {dtype: int8, defalt: 1}}, tll: 3d}\n")
    assert said == [
        "f.yaml:3: views.v@1.columns.a.defalt: is not known; there are: default, dtype",
        "f.yaml:3: views.v@1.tll: is not known; there are: columns, combine, compute, entity, feast, hard_age, "
        "max_age, on_missing, prefetch, revisions, soft_age, ttl",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1\n", 2), ("a: 1\na: 2\n", 2), ("- 1\n", 1), ("", 1), ("a: 'b\n", 2), ("\tx: 1\n", 1)],
)
def test_broken_yaml_names_the_line(text: str, line: int) -> None:
    assert problems_of(text)[0].startswith(f"f.yaml:{line}: ")


def test_a_missing_file_and_a_file_of_bytes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        Catalogue.load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: is not UTF-8"):
        Catalogue.load(tmp_path / "bytes.yaml")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    one: Inner | None = None
    many: dict[str, list[Inner]] = {}


def test_the_document_loader_finds_lines_inside_lists_and_unions(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("one:\n  size: x\nmany:\n  a:\n    - size: 1\n    - siz: 2\n")
    with pytest.raises(ConfigError) as caught:
        document.load(path, Outer)
    assert [(problem.line, problem.field, problem.message) for problem in caught.value.problems] == [
        (2, "one.size", "Input should be a valid integer, unable to parse string as an integer"),
        (6, "many.a[1].size", "is required"),
        (6, "many.a[1].siz", "is not known; there are: size"),
    ]


def test_durations() -> None:
    assert [seconds_of(text) for text in ("250ms", "90s", "15m", "36h", "7d", 5, 0.5)] == [
        0.25,
        90,
        900,
        129_600,
        604_800,
        5,
        0.5,
    ]
    for wrong in ("", "5", "-1s", "1w", -1, True, None, float("inf")):
        with pytest.raises(ValueError, match="a duration is"):
            seconds_of(wrong)
