"""What a view says beside its columns: where missing rows come from, ages, prefetching, and combined views."""

from pathlib import Path

import numpy as np
import pytest

from featureclient.schema import (
    Catalogue,
    ConfigError,
    DuckdbSource,
    PostgresSource,
    PythonCompute,
    SqlCompute,
    status,
)
from featureclient.schema.combination import COMBINED_REVISIONS_MAX, event_times

ENTITIES = "entities:\n  plane: {tailnum: string}\n  route: {origin: string, dest: string}\n"
HEAD = ENTITIES + "views:\n"


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Catalogue.parse(text, "f.yaml")
    return [str(problem) for problem in caught.value.problems]


def view_problem(body: str, head: str = HEAD) -> str:
    """The one problem of the view v@1, without its file and line."""
    (problem,) = problems_of(f"{head}  v@1: {{entity: plane, columns: {{a: int8}}, {body}}}\n")
    return problem.partition(": ")[2]


class TestCompute:
    def test_values(self) -> None:
        catalogue = Catalogue.parse(
            ENTITIES
            + """\
sources:
  warehouse: {duckdb: {path: data/flights.duckdb}}
  billing: {postgres: {dsn: "postgresql://user:secret@host/db"}}
  other: {postgres: {dsn_env: OTHER_DSN}}
views:
  a@1:
    entity: plane
    columns: {a: {dtype: int8, default: 0}}
    on_missing: compute
    compute: {python: "planes:age", timeout_ms: 50, batch_rows_max: 10, concurrency_max: 1, write_back: false}
  b@1:
    entity: plane
    columns: {a: int8}
    on_missing: default_now_compute_later
    compute: {sql: "SELECT 1 WHERE tailnum IN $ids", on: warehouse}
  c@1:
    entity: route
    columns: {a: int8}
    on_missing: compute
    compute: {sql: "SELECT 1 WHERE origin IN $origin AND dest IN $dest"}
""",
            "there/features.yaml",
        )
        python = catalogue.view("a@1").compute
        assert python == PythonCompute(
            function="planes:age", timeout_ms=50, batch_rows_max=10, concurrency_max=1, write_back=False
        )
        assert catalogue.view("b@1").compute == SqlCompute(sql="SELECT 1 WHERE tailnum IN $ids", source="warehouse")
        embedded = catalogue.view("c@1").compute
        assert isinstance(embedded, SqlCompute)
        assert catalogue.sources == {
            "duckdb": DuckdbSource(None, Path("there")),
            "warehouse": DuckdbSource(Path("there/data/flights.duckdb"), Path("there")),
            "billing": PostgresSource("postgresql://user:secret@host/db"),
            "other": PostgresSource(None, "OTHER_DSN"),
        }
        assert embedded.source in catalogue.sources

    def test_what_is_absent_is_what_default_would_say(self) -> None:
        one = "  {0}@1: {{entity: plane, columns: {{a: {1}}}, on_missing: {2}, compute: {{python: 'm:f'}}}}\n"
        catalogue = Catalogue.parse(
            HEAD
            + one.format("all", "{dtype: int8, default: 0}", "compute")
            + one.format("none", "int8", "default_now_compute_later")
            + "  no@1: {entity: plane, columns: {a: {dtype: int8, default: 0}}, on_missing: reject}\n"
        )
        outcomes = {ref: view.absent_outcome for ref, view in catalogue.views.items()}
        assert outcomes == {"all@1": status.DEFAULTED, "none@1": status.MISSING, "no@1": status.MISSING}

    def test_a_dsn_is_found_and_not_shown(self) -> None:
        assert PostgresSource(None, "DSN").dsn_in({"DSN": "postgresql://x"}) == "postgresql://x"
        assert "secret" not in repr(PostgresSource("postgresql://u:secret@h"))
        with pytest.raises(KeyError, match="DSN"):
            PostgresSource(None, "DSN").dsn_in({})

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("on_missing: compute", "views.v@1.on_missing: is compute, and the view names no compute"),
            (
                "on_missing: default_now_compute_later",
                "views.v@1.on_missing: is default_now_compute_later, and the view names no compute",
            ),
            (
                "compute: {python: 'm:f'}",
                "views.v@1.compute: is never used while on_missing is default; set on_missing: compute or "
                "default_now_compute_later",
            ),
            ("on_missing: compute, compute: {}", "views.v@1.compute: is one of python and sql"),
            (
                "on_missing: compute, compute: {python: 'm:f', sql: '$ids'}",
                "views.v@1.compute: is one of python and sql",
            ),
            (
                "on_missing: compute, compute: {python: 'm:f', on: duckdb}",
                "views.v@1.compute.on: is where SQL runs; a python compute has none",
            ),
            (
                "on_missing: compute, compute: {sql: 'SELECT $ids', on: nowhere}",
                "views.v@1.compute.on: no source 'nowhere'; there are: duckdb",
            ),
            (
                "on_missing: compute, compute: {sql: 'SELECT 1'}",
                "views.v@1.compute.sql: names no $ids, so it would read the rows of every id each time",
            ),
            (
                "on_missing: compute, compute: {python: 'f'}",
                r"views.v@1.compute.python: String should match pattern '^[A-Za-z_][\w.]*:[A-Za-z_]\w*$'",
            ),
            (
                "on_missing: compute, compute: {python: 'm:f', timeout_ms: 0}",
                "views.v@1.compute.timeout_ms: Input should be greater than or equal to 1",
            ),
        ],
    )
    def test_problems(self, body: str, said: str) -> None:
        assert view_problem(body) == said

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("x: {}", "f.yaml:5: sources.x: is one of duckdb and postgres"),
            ("x: {duckdb: {}, postgres: {dsn: d}}", "f.yaml:5: sources.x: is one of duckdb and postgres"),
            (
                "x: {postgres: {}}",
                "f.yaml:5: sources.x.postgres: needs one of dsn and dsn_env, the variable that holds it",
            ),
            (
                "x: {postgres: {dsn: d, dsn_env: e}}",
                "f.yaml:5: sources.x.postgres: needs one of dsn and dsn_env, the variable that holds it",
            ),
            (
                "x-y: {duckdb: {}}",
                "f.yaml:5: sources.x-y: a source's name is letters, digits and _, and starts with no digit",
            ),
        ],
    )
    def test_sources(self, source: str, said: str) -> None:
        assert problems_of(f"{ENTITIES}sources:\n  {source}\nviews: {{}}\n") == [said]


class TestAgesAndPrefetch:
    def test_values(self) -> None:
        catalogue = Catalogue.parse(
            HEAD
            + "  a@1: {entity: plane, columns: {a: int8}, soft_age: 500ms, hard_age: 1m, prefetch: [b@1]}\n"
            + "  b@1: {entity: route, columns: {a: int8}}\n"
        )
        view = catalogue.view("a@1")
        assert (view.soft_age_ms, view.hard_age_ms, view.prefetch) == (500, 60_000, ("b@1",))
        assert catalogue.view("b@1").soft_age_ms is None

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (
                "soft_age: 60s, hard_age: 60s",
                "views.v@1.soft_age: has to be shorter than hard_age: it is when a row is read again",
            ),
            ("hard_age: 0s", "views.v@1.hard_age: has to be at least a millisecond"),
            ("soft_age: 0.1ms", "views.v@1.soft_age: has to be at least a millisecond"),
            ("prefetch: [w@1]", "views.v@1.prefetch[0]: no view 'w@1'; there are: v@1"),
            ("prefetch: [v@1]", "views.v@1.prefetch[0]: is the view itself"),
        ],
    )
    def test_problems(self, body: str, said: str) -> None:
        assert view_problem(body) == said


MEMBERS = (
    HEAD
    + """\
  stats@1:
    entity: plane
    max_age: 36h
    ttl: 30d
    columns: {flights: int32, late: {dtype: float32, default: 0.5}}
    revisions: [{flights: int16}, {flights: int32}]
  age@2: {entity: plane, max_age: 7d, columns: {built: int16}, revisions: [{old: bool}]}
  route@1: {entity: route, columns: {distance: float32}}
"""
)


class TestCombined:
    def test_columns_ages_and_revisions(self) -> None:
        catalogue = Catalogue.parse(
            MEMBERS.replace("views:\n", "views:\n  plane@1: {entity: plane, combine: [stats@1, age@2]}\n")
        )
        view = catalogue.view("plane@1")
        assert [column.name for column in view.columns] == ["flights", "late", "built"]
        assert (view.max_age_ms, view.ttl_ms) == (36 * 3_600_000, 30 * 86_400_000)
        assert [[column.name for column in revision.columns] for revision in view.revisions] == [
            ["flights", "old"],
            ["flights", "built"],
            ["flights", "old"],
            ["flights", "built"],
            ["flights", "late", "old"],
        ]
        declared = Catalogue.parse(
            HEAD + "  plane@1: {entity: plane, columns: {flights: int32, late: float32, built: int16}}\n"
        ).view("plane@1")
        assert view.fingerprint == declared.fingerprint

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("combine: [stats@1, nope@1]", "combine[1]: no view 'nope@1'; there are: age@2, c@1, route@1, stats@1"),
            ("combine: [stats@1, route@1]", "combine[1]: route@1 is a view of route, a row of plane has no key for it"),
            ("combine: [stats@1]", "combine: needs two views or more, each once"),
            ("combine: [stats@1, stats@1]", "combine: needs two views or more, each once"),
            ("combine: [stats@1, c@1]", "combine[1]: a combined view cannot combine itself"),
            (
                "combine: [stats@1, age@2], columns: {x: int8}",
                "columns: a combined view has no columns of its own, they are its members'",
            ),
            (
                "combine: [stats@1, age@2], revisions: [{x: int8}]",
                "revisions: a combined view has no revisions of its own, they are its members'",
            ),
            (
                "combine: [stats@1, age@2], max_age: 1d",
                "max_age: a combined view has no max_age of its own, they are its members'",
            ),
            (
                "combine: [stats@1, age@2], compute: {python: 'm:f'}, on_missing: compute",
                "compute: a combined view has no compute of its own, they are its members'",
            ),
            ("combine: [stats@1, age@2], on_missing: compute", "on_missing: is compute, and the view names no compute"),
        ],
    )
    def test_problems(self, body: str, said: str) -> None:
        (problem,) = problems_of(f"{MEMBERS}  c@1: {{entity: plane, {body}}}\n")
        assert problem == f"f.yaml:13: views.c@1.{said}"

    def test_a_combined_view_of_a_combined_view(self) -> None:
        text = MEMBERS + "  c@1: {entity: plane, combine: [stats@1, age@2]}\n"
        (problem,) = problems_of(text + "  d@1: {entity: plane, combine: [c@1, age@2]}\n")
        assert problem == (
            "f.yaml:14: views.d@1.combine[0]: a combined view cannot combine c@1, a combined view; name its members"
        )

    def test_columns_of_one_name_collide_also_with_those_of_before(self) -> None:
        text = MEMBERS + "  x@1: {entity: plane, columns: {late: int8, old: bool}}\n"
        said = problems_of(text + "  c@1: {entity: plane, combine: [stats@1, age@2, x@1]}\n")
        place, why = "f.yaml:14: views.c@1.combine[2]:", "a row has one of each name"
        assert said == [
            f"{place} stats@1 and x@1 both have or had a column 'late'; {why}",
            f"{place} age@2 and x@1 both have or had a column 'old'; {why}",
        ]

    def test_layouts_are_bounded(self) -> None:
        many = ", ".join(f"{{a{i}: int8}}" for i in range(COMBINED_REVISIONS_MAX))
        (said,) = problems_of(
            f"{HEAD}  a@1: {{entity: plane, columns: {{a: int8}}, revisions: [{many}]}}\n"
            "  b@1: {entity: plane, columns: {b: int8}}\n  c@1: {entity: plane, combine: [a@1, b@1]}\n"
        )
        assert said.endswith(f"the members' revisions make 65 layouts, the limit is {COMBINED_REVISIONS_MAX}")

    def test_a_combined_row_grows_stale_with_the_first_of_its_members(self) -> None:
        catalogue = Catalogue.parse(MEMBERS + "  free@1: {entity: plane, columns: {x: int8}}\n")
        members = [catalogue.view(ref) for ref in ("stats@1", "age@2", "free@1")]
        hour = 3_600_000
        stats, age, free = [100, 100, -1, 5, 5], [90, 1, 90, -1, 7], [200, 200, 200, -1, 9]
        events = [np.array(column, np.int64) * hour for column in (stats, age, free)]
        events = [np.where(column < 0, -1, column) for column in events]
        there = [np.array(row) for row in ([1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0])]
        found = event_times(members, events, [one.astype(np.bool_) for one in there])
        # Row 0: stats is stale at 136 h, age at 258 h. Row 1: age is stale at 169 h, so as if of 133 h, but stats comes
        # first. Row 2: only age, stale at 258 h, as if of 222 h: no later than the newest. Row 4: no member at all.
        assert [one // hour if one >= 0 else -1 for one in found.tolist()] == [100, 100, 200, 5, -1]
        assert event_times(members[2:], events[2:], [there[2].astype(np.bool_)]).tolist()[0] == 200 * hour
