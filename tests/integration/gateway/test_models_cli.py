"""`headrace models`, as a user types it: the overview, `check`, `init`, and a running gateway's repository."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from gateway.server.cli import main
from tests import zoo
from tests.running import Running, Site, linear, make_site, running


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, "redis://127.0.0.1:1")  # no store is asked


def models(site: Site, *words: str) -> Result:
    return CliRunner().invoke(
        main, ["models", *words, *(["--config", str(site.config)] if words[:1] != ("init",) else [])]
    )


def checked(site: Site, *words: str) -> list[dict[str, Any]]:
    return json.loads(models(site, "check", "--json", *words).stdout)


def manifest(site: Site, name: str, text: str) -> None:
    (site.models / name).mkdir(exist_ok=True)
    (site.models / name / "model.yaml").write_text(f"name: {name}\n{text}")


def test_the_overview_says_state_and_what_each_takes(site: Site) -> None:
    shown = models(site, "--json")
    (model,) = json.loads(shown.stdout)
    assert (model["model"], model["version"], model["state"], model["labels"]) == ("ranker", 1, "READY", ["stable"])
    assert model["context"] == {"hour": "float32"}
    assert "READY" in models(site).stdout


def test_the_overview_says_why_a_model_does_not_load_and_shows_the_others(site: Site) -> None:
    site.add_model("broken", "name: broken\ncontext: {a: float32}\ninputs: {x: [a]}", np.float32([[1]]))
    (site.models / "broken/1/model.onnx").write_bytes(b"not a graph")
    shown = models(site)
    assert shown.exit_code == 1
    assert "broken" in shown.stdout
    assert "UNAVAILABLE" in shown.stdout
    assert "ranker" in shown.stdout
    assert f"headrace: {site.models}/broken/1/model.onnx: " in shown.stderr


def test_check_explains_each_input(site: Site) -> None:
    shown = models(site, "check")
    assert shown.exit_code == 0, shown.output
    assert "versions 1, problems 0" in shown.stdout
    (version,) = checked(site)
    columns = {column["column"]: column for column in version["columns"]["x"]}
    assert columns["user.visits"] == {
        "column": "user.visits",
        "dtype": "int32",
        "from": "user_stats@1 by user",
        "place": "2",
        "cast": "int32 → float32",
        "missing": "0",
        "advice": "",
    }
    assert columns["user.taste"]["place"] == "3:5"
    assert columns["hour"]["from"] == "the request"


def test_check_names_every_problem_with_line_and_advice(site: Site) -> None:
    linear(site.models / "two/1/model.onnx", np.zeros((4, 1), np.float32))
    manifest(
        site,
        "two",
        "views:\n  user: {view: user_stats@1}\ninputs:\n  x:\n    - user.agee\n    - TODO_price\n  z: [user.age]\n",
    )
    shown = models(site, "check", "--model", "two")
    assert shown.exit_code == 1
    file = site.models / "two/model.yaml"
    assert f"problem: {file}:6: inputs.x[0]: no column 'user.agee'" in shown.stdout
    assert "advice: is it user.age?" in shown.stdout
    assert f"problem: {file}:7: inputs.x[1]: no column 'TODO_price'" in shown.stdout
    assert "advice: a column that is still to be chosen" in shown.stdout
    assert f"problem: {file}:8: inputs.z: the graph has no input 'z' (it has: x: float32[?, 4])" in shown.stdout


def test_check_names_a_wrong_dtype_beside_the_right_columns(site: Site) -> None:
    linear(site.models / "text/1/model.onnx", np.zeros((2, 1), np.float32))
    manifest(site, "text", 'context: {name: "string[8]", hour: float32}\ninputs: {x: [name, hour]}')
    (version,) = checked(site, "--model", "text")
    (problem,) = version["problems"]
    assert problem["message"].startswith("column name is string[8], the graph's input is x: float32[?, 2]")
    assert problem["advice"].startswith("encode it inside the graph")
    assert [column["advice"] == "" for column in version["columns"]["x"]] == [False, True]


def test_check_of_a_manifest_that_is_not_one(site: Site) -> None:
    manifest(site, "ranker", "inputs: {x: []}\nvew: {}\n")
    shown = models(site, "check")
    assert shown.exit_code == 1
    assert f"{site.models}/ranker/model.yaml:2: inputs.x:" in shown.stdout
    assert "model.yaml:3: vew: is not known" in shown.stdout


def test_check_of_a_model_that_is_not_there(site: Site) -> None:
    shown = models(site, "check", "--model", "rankr")
    assert shown.exit_code == 1
    assert shown.stderr.endswith("no model 'rankr' (there are: ranker)\n")


def test_check_warns_of_a_graph_whose_rows_are_not_independent(site: Site) -> None:
    one = zoo.specimen("dynamic_int8")
    zoo.add(site, one)
    (site.models / one.name / "model.yaml").unlink()
    (version,) = checked(site, "--model", one.name)
    assert version["problems"] == []
    assert any("quantised dynamically" in warning["message"] for warning in version["warnings"])


def test_options_of_the_overview_before_a_subcommand_are_refused(site: Site) -> None:
    shown = CliRunner().invoke(main, ["models", "--config", str(site.config), "check"])
    assert shown.exit_code == 2
    assert "write the options behind the subcommand" in shown.stderr


def test_no_settings_file(tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["models", "--config", str(tmp_path / "none.yaml")])
    assert shown.exit_code == 2
    assert "does not exist" in shown.stderr


def test_init_writes_what_check_then_finds_right(site: Site) -> None:
    """A graph whose metadata names its columns needs nothing of its user."""
    path = site.models / "named/1/model.onnx"
    linear(path, np.zeros((3, 1), np.float32))
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {"feature_names": "age, price, visits"})
    onnx.save(graph, path)
    target = site.models / "named/model.yaml"
    catalogue = str(site.folder / "features.yaml")
    made = models(site, "init", str(path), "--catalogue", catalogue, "-o", str(target))
    assert (made.exit_code, made.stdout) == (0, f"{target}\n"), made.output
    (version,) = checked(site, "--model", "named")
    assert version["problems"] == []
    assert [column["column"] for column in version["columns"]["x"]] == [
        "user_stats.age",
        "item_stats.price",
        "user_stats.visits",
    ]
    again = models(site, "init", str(path), "-o", str(target))
    assert again.exit_code == 1
    assert "--force" in again.stderr


def test_init_takes_the_names_of_columns_from_a_file(site: Site, tmp_path: Path) -> None:
    names = tmp_path / "columns.json"
    names.write_text('["clicks", "hour"]')
    graph = site.models / "given/1/model.onnx"
    linear(graph, np.zeros((2, 1), np.float32))
    words = ("init", str(graph), "--catalogue", str(site.folder / "features.yaml"), "--columns", str(names))
    made = models(
        site, *words, "--view", "pair_stats@1", "--rest-from-request", "-o", str(site.models / "given/model.yaml")
    )
    assert made.exit_code == 0, made.output
    (version,) = checked(site, "--model", "given")
    assert version["problems"] == []
    assert version["context"] == {"hour": "float32"}


def test_init_leaves_todos_that_check_names(site: Site) -> None:
    graph = site.models / "left/1/model.onnx"
    linear(graph, np.zeros((5, 1), np.float32))
    target = site.models / "left/model.yaml"
    made = models(site, "init", str(graph), "--catalogue", str(site.folder / "features.yaml"), "-o", str(target))
    assert "1 TODO left" in made.stdout
    (version,) = checked(site, "--model", "left")
    assert "a column that is still to be chosen" in version["problems"][0]["advice"]


@pytest.mark.parametrize(
    "name",
    [
        "lightgbm",
        "sklearn_columns",
        "sklearn_matrix",
        "sklearn_text",
        "float16",
        "magika",
        "speech_embedding",
        "shapes",
    ],
)
def test_init_of_real_models_loads(site: Site, name: str) -> None:
    """Its columns by the names of its inputs or by a list, or else from the request."""
    one = zoo.specimen(name)
    path = zoo.add(site, one)
    (site.folder / "features.yaml").write_text(
        f"entities: {{thing: {{thing: int64}}, user: {{user: string}}}}\nviews:\n{one.view() if one.stored else ''}"
        "  user_stats@1: {entity: user, columns: {unlike: float32}}\n"
    )
    wide = max(one.inputs.values(), key=len)
    words = ["--catalogue", str(site.folder / "features.yaml"), "--rest-from-request"]
    if len(wide) > 1:
        (site.folder / "names").write_text("\n".join(wide))
        words += ["--columns", str(site.folder / "names")]
    target = site.models / name / "model.yaml"
    made = models(site, "init", str(path), *words, "-o", str(target), "--force")
    assert made.exit_code == 0, made.output
    (version,) = checked(site, "--model", name)
    assert version["problems"] == [], target.read_text()


def test_init_of_what_is_no_graph(site: Site, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no")
    made = models(site, "init", str(tmp_path / "model.onnx"))
    assert made.exit_code == 1
    assert made.stderr.startswith(f"headrace: {tmp_path}/model.onnx: ")


def remote(gateway: Running, *words: str) -> Result:
    return CliRunner().invoke(main, ["models", *words, "--target", gateway.target])


def test_a_running_gateway_lists_loads_and_unloads(redis_url: str, tmp_path: Path) -> None:
    site = make_site(tmp_path, redis_url)
    with running(site) as gateway:
        assert json.loads(remote(gateway, "list", "--json").stdout) == [
            {"model": "ranker", "version": "1", "state": "READY", "reason": ""}
        ]
        zoo.add(site, zoo.specimen("int8"), model=b"not a graph")
        refused = remote(gateway, "load", "int8")
        assert refused.exit_code == 1
        assert refused.stderr.startswith(f"headrace: {gateway.target}: FAILED_PRECONDITION: {site.models}/int8/")
        assert "UNAVAILABLE" in remote(gateway, "list").stdout
        assert "int8" not in remote(gateway, "list", "--ready").stdout
        linear(site.models / "plain/1/model.onnx", np.zeros((3, 1), np.float32))
        assert remote(gateway, "load", "plain").stdout == "plain is loaded\n"
        assert "plain" in remote(gateway, "list", "--ready").stdout
        assert remote(gateway, "unload", "plain").stdout == "plain is unloaded\n"
        assert "plain" not in remote(gateway, "list", "--ready").stdout
        gone = remote(gateway, "unload", "plain")
        assert gone.exit_code == 1
        assert "NOT_FOUND" in gone.stderr


def test_a_gateway_for_others_wants_its_token(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path, redis_url)
    with running(site, {"grpc": {"listen": ["0.0.0.0:0"]}, "admin_token": "correct horse battery staple"}) as gateway:
        words = ["models", "list", "--target", gateway.target.replace("0.0.0.0", "127.0.0.1")]
        without = CliRunner().invoke(main, words)
        assert without.exit_code == 1
        assert "PERMISSION_DENIED" in without.stderr
        assert "PERMISSION_DENIED" in CliRunner().invoke(main, [*words, "--token", "wrong"]).stderr
        assert CliRunner().invoke(main, [*words, "--token", "correct horse battery staple"]).exit_code == 0
        monkeypatch.setenv("HEADRACE_ADMIN_TOKEN", "correct horse battery staple")
        assert CliRunner().invoke(main, words).exit_code == 0


def test_list_of_a_gateway_that_is_not_there() -> None:
    shown = CliRunner().invoke(main, ["models", "list", "--target", "127.0.0.1:1", "--timeout-s", "5"])
    assert shown.exit_code == 1
    assert shown.stderr.startswith("headrace: 127.0.0.1:1: UNAVAILABLE")
