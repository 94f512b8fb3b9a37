"""A Feast registry as a catalogue. The file in tests/data is one that Feast has written."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from featureclient.feast.registry import ImportOptions, import_registry
from featureclient.feast.registry_pb2 import Entity, EntitySpec, FeatureSpec, FeatureView, FeatureViewMeta, Registry
from featureclient.feast.registry_pb2 import FeatureViewSpec as Spec
from featureclient.feast.value_pb2 import ValueType
from featureclient.schema import Catalogue, ConfigError, FeastSource
from gateway.server.features_cli import features

FILE = Path(__file__).resolve().parents[2] / "data" / "feast" / "registry.db"


def test_the_views_of_a_real_registry() -> None:
    lengths = {"all_types:floats": 3, "all_types:bools": 2, "all_types:times": 2, "all_types:a_string": 200}
    imported = import_registry(FILE.read_bytes(), ImportOptions(lengths=lengths))
    catalogue = Catalogue.parse(imported.catalogue)
    assert tuple(catalogue.views) == imported.views
    hourly = catalogue.view("driver_hourly_stats@1")
    assert hourly.feast == FeastSource("my_project", "driver_hourly_stats", 3)
    assert hourly.max_age_ms == 86_400_000
    assert [(column.name, str(column.dtype)) for column in hourly.columns] == [
        ("conv_rate", "float32"),
        ("acc_rate", "float32"),
        ("avg_daily_trips", "int64"),
    ]
    every = catalogue.view("all_types@1")
    assert every.max_age_ms is None
    dtypes = {column.name: str(column.dtype) for column in every.columns}
    assert dtypes == {
        "a_float": "float32",
        "a_double": "float64",
        "an_int32": "int32",
        "an_int64": "int64",
        "a_bool": "bool",
        "a_string": "string[200]",
        "some_bytes": "string[64]",
        "a_time": "timestamp",
        "a_json": "string[64]",
        "a_uuid": "string[64]",
        "a_decimal": "string[64]",
        "floats": "float32[3]",
        "bools": "int8[2]",
        "strings": "string[64]",
        "bytess": "string[64]",
        "times": "int64[2]",
    }
    assert catalogue.view("zone_stats@1").feast == FeastSource(
        "my_project", "zone_stats", 3, key_types={"zone_id": "int32"}
    )
    assert catalogue.view("customer_stats@1").feast == FeastSource(
        "my_project", "customer_stats", 3, features={"spent_eur": "spent-eur"}
    )
    assert [key.name for key in catalogue.view("trips@1").entity.join_keys] == ["driver_id", "city"]


def test_what_cannot_be_brought_over_is_named() -> None:
    imported = import_registry(FILE.read_bytes())
    said = "\n".join(imported.left_out)
    for name in ("all_types:floats: FLOAT_LIST has no length", "all_types:a_map: no column can hold Feast's type MAP",
                 "all_types:a_set: no column can hold Feast's type INT64_SET", "offline_only: is not online",
                 "scaled_stats: an on-demand feature view"):  # fmt: skip
        assert name in said
        assert f"# Left out: {name}" in imported.catalogue
    assert any("a_string: STRING has no size in Feast; 64 bytes" in note for note in imported.notes)


def spec(name: str = "stats", project: str = "p", **rest: object) -> Spec:
    features = [FeatureSpec(name="one", value_type=ValueType.INT64)]
    given: dict[str, object] = {"entities": ["driver"], "features": features, "online": True} | rest
    return Spec(name=name, project=project, **given)  # type: ignore[arg-type]  # by name


def registry(*specs: Spec, key: str = "driver_id", kind: "ValueType.Enum.ValueType" = ValueType.INT64) -> bytes:
    entities = [
        Entity(spec=EntitySpec(name="driver", join_key=key, value_type=kind, project=project)) for project in ("p", "q")
    ]
    return Registry(entities=entities, feature_views=[FeatureView(spec=one) for one in specs]).SerializeToString()


def test_the_project_has_to_be_said_where_there_are_two() -> None:
    data = registry(spec("a", "p"), spec("b", "q"))
    with pytest.raises(ConfigError, match="says no project; there are: p, q"):
        import_registry(data)
    with pytest.raises(ConfigError, match="has no project 'r'; there are: p, q"):
        import_registry(data, ImportOptions(project="r"))
    assert import_registry(data, ImportOptions(project="q")).views == ("b@1",)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xff", "is not a registry file of Feast"),
        (b"", "has no feature views"),
        (b"SQLite format 3\0" + bytes(80), "is an SQL registry of Feast"),
        (registry(spec(entities=[])), "stats: has no entity"),
        (registry(spec(entities=["other"])), "its entity other is not in the registry"),
        (registry(spec(), key="driver id"), "its join key 'driver id' is of type INT64"),
        (registry(spec(), kind=ValueType.BYTES), "its join key 'driver_id' is of type BYTES"),
        (registry(spec(disabled=True)), "stats: is disabled"),
        (
            registry(spec(features=[FeatureSpec(name="m", value_type=ValueType.MAP)])),
            "no feature of it can be a column",
        ),
    ],
)
def test_where_there_is_nothing_to_import_the_reason_is_named(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        import_registry(data)


def test_names_that_are_none_here() -> None:
    features = [
        FeatureSpec(name=name, value_type=ValueType.FLOAT) for name in ("a-b", "a b", "null", "1st", "driver_id", "é")
    ]
    imported = import_registry(registry(spec("on line\nviews: {}", features=features), spec("true")))
    catalogue = Catalogue.parse(imported.catalogue)
    assert list(catalogue.views) == ["on_line_views____@1", "true@1"]
    view = catalogue.view("on_line_views____@1")
    assert view.feast is not None
    assert view.feast.view == "on line\nviews: {}"
    assert view.feast.features == {"a_b": "a-b", "_1st": "1st", "_": "é"}
    assert [column.name for column in view.columns] == ["a_b", "null", "_1st", "_"]
    assert [one.rpartition(": ")[2] for one in imported.left_out] == [
        "a column cannot be called a_b here",
        "a column cannot be called driver_id here",
    ]


def test_a_view_with_versions_is_pointed_out() -> None:
    made = FeatureView(spec=spec(), meta=FeatureViewMeta(current_version_number=2))
    found = Registry.FromString(registry(spec()))
    del found.feature_views[:]
    found.feature_views.append(made)
    assert "stored as stats_v2" in import_registry(found.SerializeToString()).notes[0]


@pytest.mark.parametrize("wrong", [{"key_version": 1}, {"string_bytes": 0}, {"lengths": {"a:b": 0}}])
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"key_version|between"):
        ImportOptions(**wrong)  # type: ignore[arg-type]  # by name


def test_the_command_writes_a_catalogue_once_and_names_what_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "features.yaml"
    arguments = ["import-feast", str(FILE), "--length", "all_types:floats=3", "--key-version", "2", "-o", str(out)]
    first = CliRunner().invoke(features, arguments)
    assert (first.exit_code, first.stdout) == (0, "")
    assert "left out: all_types:a_map" in first.stderr
    catalogue = Catalogue.load(out)
    source = catalogue.view("all_types@1").feast
    assert source is not None
    assert source.key_version == 2
    second = CliRunner().invoke(features, arguments)
    assert second.exit_code == 1
    assert "is there already" in second.stderr


# ── The catalogue's side ────────────────────────────────────────────────────────────────────────────────────────────

CATALOGUE = """\
entities: {driver: {driver_id: int64, city: string}}
views:
  v@1:
    entity: driver
    feast:
      project: p
      view: v
"""


@pytest.mark.parametrize(
    ("more", "line", "said"),
    [
        ("      key_types: {drive_id: int32}\n", 8, "no join key 'drive_id'; there are: city, driver_id"),
        ("      key_types: {driver_id: string}\n", 8, "driver_id is of int64, which Feast cannot have as string"),
        ("      features: {b: B}\n", 8, "no column 'b'; there are: a"),
        ("      key_version: 1\n", 8, "2 or 3"),
        ("    ttl: 1h\n", 8, "Feast writes the rows"),
        ("    revisions: [{a: int16}]\n", 8, "Feast's rows have no revisions"),
        ("    on_missing: compute\n    compute: {python: 'm:f'}\n", 9, "read-only: set write_back: false"),
    ],
)
def test_a_feast_block_that_makes_no_sense_is_named_with_its_line(more: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Catalogue.parse(f"{CATALOGUE}{more}    columns: {{a: int32}}\n")
    assert [problem.line for problem in caught.value.problems] == [line]
    assert said in caught.value.problems[0].message
