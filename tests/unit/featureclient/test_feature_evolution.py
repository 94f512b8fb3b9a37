"""What differs between catalogues, and what of it would break somebody."""

from collections import Counter

import pytest

from featureclient.evolution import Change, Finding, StoredRows, catalogue_changes, check, row_pattern, view_changes
from featureclient.schema import Catalogue

BASE = """\
entities:
  plane: {tailnum: string}
views:
  stats@1:
    entity: plane
    columns:
      flights: {dtype: int16, default: 0}
      late: {dtype: float32, default: 0.25}
      name: "string[8]"
  old@1: {entity: plane, columns: {x: int8}}
"""


def changed(*replacements: tuple[str, str]) -> Catalogue:
    text = BASE
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after)
    return Catalogue.parse(text)


OLD = changed()
OLD_FINGERPRINT = OLD.view("stats@1").fingerprint


def findings(new: Catalogue, severity: str, **known: object) -> list[Finding]:
    return [finding for finding in check(new, OLD, **known) if finding.severity == severity]  # type: ignore[arg-type]


class TestDifference:
    def test_the_same(self) -> None:
        assert catalogue_changes(OLD, changed()) == []

    def test_columns(self) -> None:
        new = changed(
            ("      flights: {dtype: int16, default: 0}\n", ""),
            ("float32, default: 0.25", "float64, default: 0.5"),
            ('"string[8]"', '"string[4]"\n      flights: int8\n      extra: bool'),
        )
        assert catalogue_changes(OLD, new) == [
            Change("narrowed", "stats@1", "columns.flights", "int16", "int8"),
            Change("changed", "stats@1", "columns.flights.default", "0", "-"),
            Change("widened", "stats@1", "columns.late", "float32", "float64"),
            Change("changed", "stats@1", "columns.late.default", "0.25", "0.5"),
            Change("narrowed", "stats@1", "columns.name", "string[8]", "string[4]"),
            Change("added", "stats@1", "columns.extra", "-", "bool"),
            Change("reordered", "stats@1", "columns", "flights, late, name", "late, name, flights"),
        ]

    def test_everything_else(self) -> None:
        new = changed(
            ("tailnum: string", "tailnum: int64"),
            (
                "  stats@1:\n    entity: plane\n",
                "  stats@1:\n    entity: plane\n    max_age: 36h\n    ttl: 90s\n    soft_age: 1500ms\n"
                "    hard_age: 1d\n"
                "    on_missing: compute\n    compute: {python: 'm:f'}\n    prefetch: [new@1]\n"
                "    revisions: [{flights: int8}]\n",
            ),
            ("old@1: {entity: plane, columns: {x: int8}}", "new@1: {entity: plane, columns: {x: bool}}"),
            ("views:\n", "sources: {w: {duckdb: {}}}\nviews:\n"),
        )
        found = {
            (change.subject, change.field): (change.before, change.after) for change in catalogue_changes(OLD, new)
        }
        revision = new.view("stats@1").revisions[0].fingerprint
        assert found.pop(("source w", ""))[0] == "-"
        assert found.pop(("old@1", ""))[1] == "-"
        assert found.pop(("new@1", ""))[0] == "-"
        assert found == {
            ("entity plane", ""): ("plane (tailnum: string)", "plane (tailnum: int64)"),
            ("stats@1", "entity"): ("plane (tailnum: string)", "plane (tailnum: int64)"),
            ("stats@1", f"revisions.{revision:08x}"): ("-", "{flights: int8}"),
            ("stats@1", "max_age"): ("-", "36h"),
            ("stats@1", "ttl"): ("-", "90s"),
            ("stats@1", "soft_age"): ("-", "1500ms"),
            ("stats@1", "hard_age"): ("-", "1d"),
            ("stats@1", "on_missing"): ("default", "compute"),
            ("stats@1", "compute"): ("-", "python m:f (timeout 200ms, 1000 rows a batch, 2 at once, write-back)"),
            ("stats@1", "prefetch"): ("-", "new@1"),
        }

    def test_two_versions_of_one_catalogue(self) -> None:
        changes = view_changes(OLD.view("stats@1"), OLD.view("old@1"))
        assert {change.subject for change in changes} == {"stats@1 old@1"}
        assert [change.field for change in changes] == ["columns.flights", "columns.late", "columns.name", "columns.x"]


class TestCheck:
    def test_nothing_changed(self) -> None:
        assert check(changed(), OLD) == []

    def test_changed_columns_without_a_revision(self) -> None:
        new = changed(("flights: {dtype: int16", "flights: {dtype: int32"))
        (finding,) = findings(new, "breaking")
        assert f"fingerprint {OLD_FINGERPRINT:08x} are INVALID" in finding.what
        assert finding.advice == (
            'under stats@1 set\n    revisions:\n      - {flights: int16, late: float32, name: "string[8]"}'
        )

    def test_the_advice_is_what_makes_it_right(self) -> None:
        new = changed(("flights: {dtype: int16", "flights: {dtype: int32"))
        (finding,) = findings(new, "breaking")
        listed = "\n".join(finding.advice.splitlines()[1:]) + "\n"
        mended = changed(
            ("flights: {dtype: int16", "flights: {dtype: int32"),
            ("  stats@1:\n    entity: plane\n", f"  stats@1:\n    entity: plane\n{listed}"),
        )
        assert findings(mended, "breaking") == []
        (warning,) = findings(mended, "warning")
        assert warning.advice == "load the new catalogue into every reader first, then into what writes"

    def test_columns_that_cannot_be_widened_need_a_new_version(self) -> None:
        new = changed(("flights: {dtype: int16", "flights: {dtype: int8"))
        (finding,) = findings(new, "breaking")
        assert finding.advice == "make it a new version, stats@2: flights cannot be widened from int16 to int8"

    def test_a_revision_that_is_dropped(self) -> None:
        listed = (
            "  stats@1:\n    entity: plane\n",
            "  stats@1:\n    entity: plane\n    revisions: [{flights: int8}]\n",
        )
        (finding,) = [one for one in check(OLD, changed(listed)) if one.severity == "breaking"]
        assert "are INVALID" in finding.what
        assert "      - {flights: int8}" in finding.advice

    def test_what_is_stored_decides_about_a_lost_layout(self) -> None:
        new = changed(("flights: {dtype: int16", "flights: {dtype: int32"))
        none = {"stats@1": StoredRows("stats@1")}
        assert findings(new, "breaking", stored=none) == []
        (note,) = findings(new, "note", stored=none)[:1]
        assert "(0 are stored)" in note.what
        some = {"stats@1": StoredRows("stats@1", 3, Counter({OLD_FINGERPRINT: 3}))}
        (finding,) = findings(new, "breaking", stored=some)
        assert "(3 are stored)" in finding.what
        sample = {"stats@1": StoredRows("stats@1", 3, Counter({1: 3}), complete=False)}
        assert ["(0 were seen)" in one.what for one in findings(new, "breaking", stored=sample)] == [False, True]

    def test_stored_rows_alone(self) -> None:
        rows = Counter({OLD_FINGERPRINT: 5, 0xABCD: 2})
        found = check(OLD, stored={"stats@1": StoredRows("stats@1", 8, rows, Counter({"crc": 1}))})
        assert [(one.severity, one.what) for one in found] == [
            ("breaking", "2 have the fingerprint 0000abcd, which no revision has: INVALID"),
            ("warning", "1 are INVALID (crc)"),
        ]

    def test_removed_columns_and_views_that_models_read(self) -> None:
        new = changed(
            ("      late: {dtype: float32, default: 0.25}\n", ""),
            ("  old@1: {entity: plane, columns: {x: int8}}\n", ""),
        )
        pins = {"stats@1": {"delay": frozenset({"late"})}, "old@1": {"delay": frozenset({"x"})}}
        assert [finding.what for finding in findings(new, "breaking", pins=pins)][1:] == [
            "column late is removed, and models read it: delay",
            "is removed, and models pin it: delay",
        ]
        said = [finding.what for finding in findings(new, "warning")]
        assert said == ["column late is removed", "is removed: readers get an error that names the views that exist"]
        assert "headrace features drop old@1" in findings(new, "warning")[1].advice

    @pytest.mark.parametrize(
        ("before", "after", "severity", "said"),
        [
            ("tailnum: string", "tailnum: int64", "breaking", "changes its entity from plane (tailnum: string)"),
            ("entities:", "namespace: x\nentities:", "breaking", "the namespace changes from 'hr' to 'x'"),
            ("default: 0.25", "default: 0.5", "warning", "the default of late changes from 0.25 to 0.5"),
            ("columns: {x: int8}", "columns: {x: {dtype: int8, default: 1}}", "warning", "absent rows are DEFAULTED"),
            ("columns: {x: int8}", "columns: {x: int8}, on_missing: reject", "warning", "absent rows are rejected"),
            ("columns: {x: int8}", "columns: {x: int8}, max_age: 1h", "warning", "rows are STALE from an age of 1h on"),
            ("columns: {x: int8}", "columns: {x: int8}, ttl: 1h", "note", "the ttl is 1h instead of -"),
            (
                "columns: {x: int8}",
                "columns: {x: int8}, on_missing: compute, compute: {python: 'm:f'}",
                "note",
                "rows are computed differently",
            ),
            ("columns: {x: int8}", "columns: {x: int16}", "note", "column x is read as int16 instead of int8"),
            ("columns: {x: int8}", "columns: {x: int8, y: int8}", "note", "column y is added without a default"),
            ("  old@1", "  more@1: {entity: plane, columns: {x: int8}}\n  old@1", "note", "is new"),
        ],
    )
    def test_each_change(self, before: str, after: str, severity: str, said: str) -> None:
        assert [one.what for one in findings(changed((before, after)), severity) if said in one.what]

    def test_combined_views(self) -> None:
        def combined(members: str) -> Catalogue:
            text = BASE + "  third@1: {entity: plane, columns: {y: int8}}\n"
            return Catalogue.parse(text + f"  plane@1: {{entity: plane, combine: [{members}]}}\n")

        old = combined("stats@1, old@1")
        found = check(combined("stats@1, third@1"), old)
        assert [(one.severity, one.subject) for one in found if "combines" in one.what] == [("breaking", "plane@1")]
        assert [one.advice for one in found if "combines" in one.what] == [
            "make it a new version, plane@2, and run `headrace features combine` for it"
        ]


def test_the_pattern_of_a_version_that_no_catalogue_has() -> None:
    assert row_pattern(OLD.view("old@1"), "old@1", "hr") == b"hr:{plane:*}:old:1"
    assert row_pattern(None, "gone@12", "hr") == b"hr:{*:*}:gone:12"
