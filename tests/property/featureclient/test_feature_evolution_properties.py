"""Rows written before a change of the catalogue, read after it: what `check` says is what happens."""

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featureclient.evolution import check
from featureclient.schema import Catalogue, ConfigError, View
from featureclient.wire import KeyCodec, RowReader, RowWriter

FOREVER = 2**62
DTYPES = ("int8", "int16", "int32", "float32", "float64", "bool", "string[4]", "string[9]")
VALUES = {"i": 7, "f": 1.5, "b": True, "s": "ab"}
DEFAULTS = {"i": 3, "f": 0.5, "b": False, "s": "z"}


class Described(NamedTuple):
    """A column as it is written into a catalogue."""

    name: str
    dtype: str
    has_default: bool


COLUMN = st.builds(Described, st.sampled_from("abcd"), st.sampled_from(DTYPES), st.booleans())
COLUMNS = st.lists(COLUMN, min_size=1, max_size=4, unique_by=lambda column: column.name)
WIDER = {"int8": "int16", "int16": "float32", "int32": "float64", "float32": "float64", "string[4]": "string[9]"}


@st.composite
def chains(draw: st.DrawFn) -> list[list[Described]]:
    """Layouts of a view, each made of the one before by an edit that a person might make."""
    chain = [draw(COLUMNS)]
    for _ in range(draw(st.integers(1, 3))):
        columns = [*chain[-1]]
        place = draw(st.integers(0, len(columns) - 1))
        edit = draw(st.sampled_from(("add", "remove", "widen", "reverse", "retype")))
        name, dtype, has_default = columns[place]
        if edit == "add":
            new = draw(COLUMN)
            columns = [column for column in columns if column.name != new.name] + [new]
        elif edit == "remove" and len(columns) > 1:
            columns.pop(place)
        elif edit == "widen":
            columns[place] = Described(name, WIDER.get(dtype, dtype), has_default)
        elif edit == "retype":
            columns[place] = Described(name, draw(st.sampled_from(DTYPES)), has_default)
        else:
            columns.reverse()
        chain.append(columns)
    return chain


def spelled(columns: list[Described], *, defaults: bool) -> str:
    parts = []
    for name, dtype, has_default in columns:
        default = f", default: {DEFAULTS[dtype[0]]}" if defaults and has_default else ""
        parts.append(f'{name}: {{dtype: "{dtype}"{default}}}')
    return "{" + ", ".join(parts) + "}"


def parsed(newest: list[Described], earlier: list[list[Described]]) -> Catalogue:
    revisions = ", ".join(spelled(columns, defaults=False) for columns in earlier)
    return Catalogue.parse(
        "entities: {e: {id: string}}\nviews:\n"
        f"  v@1: {{entity: e, columns: {spelled(newest, defaults=True)}, revisions: [{revisions}]}}\n"
    )


@given(chains(), st.lists(st.booleans(), min_size=4, max_size=4), st.booleans())
def test_compatible_rows_are_right_and_others_are_refused(
    chain: list[list[Described]], listed: list[bool], null: bool
) -> None:
    *before, newest = chain
    try:
        old = parsed(before[-1], before[:-1])
        new = parsed(newest, [columns for columns, kept in zip(before, listed, strict=False) if kept])
    except ConfigError:
        return  # such a chain cannot be declared: a dtype that does not widen, or the same columns twice
    breaks = any(finding.severity == "breaking" and "INVALID" in finding.what for finding in check(new, old))
    was, now = old.view("v@1"), new.view("v@1")
    # A row of each layout that rows may be stored in; all of them have to be readable, or it breaks.
    written = [row_of(parsed(columns, []).view("v@1"), null) for columns in before]
    reader = RowReader(now)
    refused = []
    for columns, (key, value) in zip(before, written, strict=True):
        admitted = reader.admit([key], [value], 0.0, FOREVER)
        if admitted.rows[0] is None:
            assert admitted.invalid == {0: "fingerprint"}
            refused.append(columns)
        else:
            expect(now, admitted.rows[0], columns, newest, null)
    assert bool(refused) == breaks
    assert was.fingerprint == int.from_bytes(written[-1][1][4:8], "little")


def row_of(view: View, null: bool) -> tuple[bytes, bytes]:
    table = {column.name: [None if null else VALUES[str(column.dtype)[0]]] for column in view.columns}
    encoded = RowWriter(view, KeyCodec(view)).encode({"id": ["x"], **table}, 5, FOREVER)
    assert not encoded.bad_rows_total
    return encoded.keys[0], encoded.values[0]


def expect(view: View, row: bytes, before: list[Described], newest: list[Described], null: bool) -> None:
    block = np.frombuffer(row, view.layout.block_dtype)
    bits = np.unpackbits(block["valid"], axis=1, count=len(view.columns), bitorder="little")[0].astype(bool)
    had = {column.name for column in before}
    for position, (name, dtype, has_default) in enumerate(newest):
        place = view.layout.places[name]
        value = block[place.run][0, place.start]
        stored = name in had and not null
        if stored:
            expected: object = VALUES[dtype[0]] if dtype[0] == {c.name: c.dtype for c in before}[name][0] else 7
        else:
            expected = DEFAULTS[dtype[0]] if has_default else view.columns[position].substitute
        expected = expected.encode() if isinstance(expected, str) else expected
        assert value == expected or (expected != expected and value != value)  # noqa: PLR0124 - NaN
        # What was added since is its default, which is a value; a null stays one.
        assert bits[position] == (stored or (name not in had and has_default))
