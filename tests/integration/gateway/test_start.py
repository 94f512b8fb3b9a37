"""Refusing to start says everything that is wrong, with file, line and field."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from featureclient.schema import ConfigError
from gateway.server import settings
from gateway.server.cli import main
from tests.running import WEIGHTS, Site, make_site, running, write_graph


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Site:
    return make_site(tmp_path, redis_url)


def problems(site: Site) -> list[str]:
    with pytest.raises(ConfigError) as caught, running(site):
        pass
    return [str(problem).removeprefix(str(site.folder) + "/") for problem in caught.value.problems]


def test_every_wrong_setting_is_named_with_its_line(site: Site) -> None:
    with site.config.open("a") as file:
        file.write("colour: red\nlimits: 5\n")
    text = site.config.read_text().replace("listen: [", "lissen: [").replace("1000", "soon")
    site.config.write_text(text)
    found = problems(site)
    assert [line.split(": ")[0:2] for line in found] == [
        ["headrace.yaml:4", "grpc.lissen"],
        ["headrace.yaml:7", "pipeline.store_timeout_ms"],
        ["headrace.yaml:8", "colour"],
        ["headrace.yaml:9", "limits"],
    ]
    assert "there are: backlog" in found[0]


def test_broken_yaml(site: Site) -> None:
    site.config.write_text("catalogue: [\n")
    assert problems(site)[0].startswith("headrace.yaml:")
    assert "is not valid YAML" in problems(site)[0]


def test_every_wrong_manifest_is_named(site: Site) -> None:
    manifest = site.models / "ranker/model.yaml"
    manifest.write_text(manifest.read_text().replace("user.age", "user.agee").replace("stable: 1", "stable: 3"))
    site.add_model("broken", "name: other\ninputs: {x: [c]}\n", WEIGHTS)
    site.add_model("odd", "name: odd\nviews: 5\n", WEIGHTS)
    assert [problem.partition(" ")[0] for problem in problems(site)] == [
        "models/broken/model.yaml:1:",
        "models/broken/model.yaml:2:",
        "models/odd/model.yaml:1:",
        "models/odd/model.yaml:2:",
        "models/ranker/model.yaml:9:",
        "models/ranker/model.yaml:10:",
    ]
    assert any("there are: user.age, user.visits" in problem for problem in problems(site))


def test_models_that_cannot_be_run(site: Site) -> None:
    (site.models / "ranker/1/model.onnx").write_bytes(b"this is not a graph")
    total = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["score"])],
        "total",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, 1])],
    )
    write_graph(site.models / "total/1/model.onnx", total)
    (site.models / "total/model.yaml").write_text("name: total\ncontext: {c: float32}\ninputs: {x: [c]}\n")
    found = problems(site)
    assert found[0].startswith("models/ranker/1/model.onnx: ONNX Runtime cannot load it")
    assert "its first dimension must be the rows" in found[1]


def test_transforms_outside_the_allowed_modules(site: Site) -> None:
    site.add_model(
        "evil",
        "name: evil\ncontext: {c: float32}\ntransforms:\n"
        "  - {function: 'os:system', inputs: {command: c}, outputs: {o: float32}}\ninputs: {x: [o]}\n",
        np.float32([[1]]),
    )
    assert (
        "models/evil/model.yaml:4: transforms[0].function: module 'os' is not in the setting transform_modules "
        "(it has: none)"
    ) in problems(site)


def test_a_transform_module_that_cannot_be_imported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.folder / "broken_transforms.py").write_text("def f(:\n")
    site.add_model(
        "derived",
        "name: derived\ncontext: {c: float32}\ntransforms:\n"
        "  - {function: 'broken_transforms:f', inputs: {c: c}, outputs: {o: float32}}\ninputs: {x: [o]}\n",
        np.float32([[1]]),
    )
    monkeypatch.syspath_prepend(site.folder)
    with site.config.open("a") as file:
        file.write("transform_modules: [broken_transforms]\n")
    assert "cannot import 'broken_transforms': SyntaxError" in problems(site)[0]


def test_environment_that_is_not_yaml(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_GRPC__LISTEN", "[")
    with pytest.raises(ConfigError, match=r"\$HEADRACE_GRPC__LISTEN: is not valid YAML"):
        settings.load(site.config)


@pytest.mark.parametrize("text", ["~", "&Secret1", "abc #def", "12345", "0123", "true", "!x", "'quoted'", "{a: b}", ""])
def test_a_string_in_the_environment_is_taken_as_it_is(site: Site, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HEADRACE_STORE__PASSWORD", text)
    monkeypatch.setenv("HEADRACE_STOP_GRACE_S", "2.5")
    loaded = settings.load(site.config)
    assert loaded.store.password == text
    assert loaded.stop_grace_s == 2.5


def test_a_wrong_section_names_the_variables_that_set_some_of_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_STORE__URL", "http://elsewhere")
    monkeypatch.setenv("HEADRACE_WARMUP__REPLICA", "a")
    with pytest.raises(ConfigError, match=r"store: url.* \(from the environment: \$HEADRACE_STORE__URL\)$"):
        settings.load(site.config)
    monkeypatch.setenv("HEADRACE_STORE__URL", "redis://elsewhere")
    monkeypatch.setenv("HEADRACE_STOP_GRACE_S", "-1")
    with pytest.raises(ConfigError, match=r"must not be negative \(from the environment: .*\$HEADRACE_STOP_GRACE_S"):
        settings.load(site.config)


def test_no_models(site: Site, tmp_path: Path) -> None:
    empty = tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no model here"), running(site, {"models": str(empty)}):
        pass


def test_environment_overrides_the_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_STORE__URL", "redis://elsewhere:1")
    monkeypatch.setenv("HEADRACE_GRPC__LISTEN", '["127.0.0.1:7"]')
    loaded = settings.load(site.config)
    assert loaded.store.url == "redis://elsewhere:1"
    assert loaded.grpc.listen == ("127.0.0.1:7",)
    assert loaded.models == site.models


def test_command_prints_problems_and_no_traceback(site: Site) -> None:
    site.config.write_text(site.config.read_text() + "colour: red\n")
    result = CliRunner().invoke(main, ["serve", "--config", str(site.config)])
    assert result.exit_code == 1
    assert result.stderr.startswith("headrace: ")
    assert "headrace.yaml:8: colour: is not known; there are: admin_token, catalogue" in result.stderr


def test_a_port_that_is_taken(site: Site) -> None:
    with running(site) as first:
        result = CliRunner().invoke(
            main, ["serve", "--config", str(site.config)], env={"HEADRACE_GRPC__LISTEN": f'["{first.target}"]'}
        )
    assert result.exit_code == 1
    assert first.target.rpartition(":")[2] in result.stderr
