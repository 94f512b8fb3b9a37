"""What serves, and how that changes while it does."""

import asyncio
import gc
import json
import os
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from featureclient.schema import ConfigError
from gateway.inference.reloading import Outcome
from gateway.inference.repository import COUNTED_MAX, LoadCounts
from gateway.inference.session import Session
from gateway.plan.tensors import TensorPlan
from gateway.records.errors import DeadlinePassed, ModelNotFound, Overloaded
from tests.models import PLAIN, Rig, add_scaled
from tests.running import write_graph
from tests.waiting import soon


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


async def test_a_folder_without_a_manifest_is_a_plain_model(root: Path) -> None:
    path = add_scaled(root, "plain", 1, 2)
    rig = Rig(root)
    model = rig.models.latest("plain")
    assert isinstance(model.plan, TensorPlan)
    assert model.tensors is model
    assert (model.facts.source, len(model.facts.sha256), model.facts.manifest_hash) == (str(path), 64, "")
    assert rig.states() == {("plain", 1): "READY"}


async def test_a_manifest_and_the_graphs_own_inputs_share_a_runner(root: Path) -> None:
    add_scaled(root, "both", 1, 2, model__yaml=PLAIN.format(name="both"))
    model = Rig(root).models.latest("both")
    assert model.tensors is not model
    assert isinstance(model.tensors.plan, TensorPlan)
    assert model.tensors.runner is model.runner
    assert len(model.facts.manifest_hash) == 64


async def test_without_a_manifest_the_latest_serves_and_with_one_all_do(root: Path) -> None:
    for version in (1, 2, 10):
        add_scaled(root, "plain", version, version)
        add_scaled(root, "all", version, version, model__yaml=PLAIN.format(name="all"))
        add_scaled(root, "two", version, version, model__yaml=PLAIN.format(name="two") + "versions: {latest: 2}\n")
        add_scaled(root, "some", version, version, model__yaml=PLAIN.format(name="some") + "versions: [1, 2]\n")
    rig = Rig(root)
    assert rig.serving() == [
        *(("all", version) for version in (1, 2, 10)),
        ("plain", 10),
        ("some", 1),
        ("some", 2),
        ("two", 2),
        ("two", 10),
    ]
    assert rig.factor("plain") == 10


async def test_a_version_that_the_policy_names_has_to_be_there(root: Path) -> None:
    add_scaled(root, "some", 1, 1, model__yaml=PLAIN.format(name="some") + "versions: [1, 3]\nlabels: {live: 2}\n")
    with pytest.raises(ConfigError) as caught:
        Rig(root)
    assert [str(problem).partition("model.yaml:")[2] for problem in caught.value.problems] == [
        "4: versions: names 3, which are not there (there are: 1)",
        "5: labels.live: no version 2 (there are: 1)",
    ]


async def test_a_new_version_is_swapped_in(root: Path) -> None:
    add_scaled(root, "plain", 1, 2)
    rig = Rig(root)
    old = rig.models.latest("plain")
    add_scaled(root, "plain", 2, 3)
    assert await rig.models.refresh() == []
    assert (rig.serving(), rig.factor("plain")) == ([("plain", 2)], 3)
    (swap,) = rig.swaps
    assert ([model.version for model in swap.added], list(swap.removed)) == ([2], [old])
    assert rig.states() == {("plain", 1): "UNLOADING", ("plain", 2): "READY"}
    rig.models.retire(old)
    assert rig.states() == {("plain", 1): "UNAVAILABLE", ("plain", 2): "READY"}


async def test_what_has_not_changed_is_not_loaded_again(root: Path) -> None:
    add_scaled(root, "one", 1, 2, model__yaml=PLAIN.format(name="one"))
    add_scaled(root, "two", 1, 2)
    rig = Rig(root)
    before = [*rig.models]
    await rig.models.refresh()
    await rig.models.load("one")
    assert ([*rig.models], rig.swaps, rig.models.counts.loaded) == (before, [], 2)
    add_scaled(root, "one", 1, 5)
    await rig.models.refresh()
    assert (rig.factor("one"), rig.models.counts.loaded) == (5, 3)
    assert len(rig.swaps) == 1


async def test_load_and_unload(root: Path) -> None:
    add_scaled(root, "one", 1, 2)
    rig = Rig(root)
    add_scaled(root, "two", 1, 3)
    await rig.models.load("two")
    assert rig.serving() == [("one", 1), ("two", 1)]
    await rig.models.unload("one")
    assert rig.serving() == [("two", 1)]
    with pytest.raises(ModelNotFound, match=r"no model 'one' \(there are: two\)"):
        rig.models.latest("one")
    # It stays away, whatever is found, until it is asked for.
    add_scaled(root, "one", 2, 4)
    await rig.models.refresh()
    assert rig.serving() == [("two", 1)]
    await rig.models.load("one")
    assert rig.factor("one") == 4
    with pytest.raises(ModelNotFound, match="no model 'three'"):
        await rig.models.unload("three")


async def test_a_model_that_goes_and_a_repository_that_goes(root: Path, tmp_path: Path) -> None:
    add_scaled(root, "one", 1, 2)
    add_scaled(root, "two", 1, 3)
    rig = Rig(root)
    (root / "two").rename(tmp_path / "two")
    assert await rig.models.refresh() == []
    assert rig.serving() == [("one", 1)]
    (root / "one").rename(tmp_path / "one")  # the last one: that is rather a volume that went
    (problem,) = await rig.models.refresh()
    assert "what serves goes on" in str(problem)
    root.rename(tmp_path / "elsewhere")  # noqa: ASYNC240 - nobody waits for this loop
    (problem,) = await rig.models.refresh()
    assert "No such file" in str(problem)
    assert (rig.serving(), rig.factor("one")) == ([("one", 1)], 2)


async def test_a_manifest_that_does_not_fit_changes_nothing(root: Path) -> None:
    add_scaled(root, "one", 1, 2, model__yaml=PLAIN.format(name="one"))
    rig = Rig(root)
    add_scaled(root, "one", 2, 3, model__yaml=PLAIN.format(name="one").replace("[c]", "[d]"))
    problems = await rig.models.refresh()
    assert "no column 'd'" in str(problems[0])
    assert (rig.serving(), rig.swaps) == ([("one", 1)], [])
    assert "no column 'd'" in rig.reason("one", 1)
    assert rig.states()["one", 1] == "READY"
    (root / "one/model.yaml").write_text(PLAIN.format(name="one") + "labels: {live: 2}\n")
    await rig.models.refresh()
    assert rig.models.labelled("one", "live").version == 2
    assert rig.reason("one", 1) == ""


async def test_start_strictly_or_with_what_loads(root: Path) -> None:
    add_scaled(root, "good", 1, 2)
    (root / "bad/1").mkdir(parents=True)
    (root / "bad/1/model.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="ONNX Runtime cannot load it"):
        Rig(root)
    rig = Rig(root, models_must_load=False)
    assert rig.states() == {("good", 1): "READY", ("bad", 1): "UNAVAILABLE"}
    assert rig.models.counts.failed == 1
    add_scaled(root, "bad", 1, 7)
    await rig.models.load("bad")
    assert rig.factor("bad") == 7


def write_golden(root: Path, name: str, version: int, content: object) -> None:
    (root / name / str(version) / "golden.json").write_text(json.dumps(content))


async def test_the_golden_example_decides(root: Path) -> None:
    add_scaled(root, "one", 1, 2)
    write_golden(root, "one", 1, {"inputs": {"x": [[1], [2]]}, "outputs": {"score": [[2], [4]]}})
    rig = Rig(root)
    add_scaled(root, "one", 2, 3)
    write_golden(root, "one", 2, {"inputs": {"x": [[1], [2]]}, "outputs": {"score": [[2], [4]]}})
    with pytest.raises(ConfigError, match=r"output score\[0, 0\] is 3, expected is 2 .*2 of 2 values differ"):
        await rig.models.load("one")
    assert (rig.serving(), rig.states()["one", 2]) == ([("one", 1)], "UNAVAILABLE")
    write_golden(root, "one", 2, {"inputs": {"x": [[1], [2]]}, "outputs": {"score": [[3.1], [6]]}, "atol": 0.2})
    await rig.models.refresh()
    assert rig.serving() == [("one", 2)]


async def test_nan_in_the_golden_example_refuses(root: Path) -> None:
    add_scaled(root, "one", 1, float("nan"))
    write_golden(root, "one", 1, {"inputs": {"x": [[1], [2]]}})
    with pytest.raises(ConfigError, match="2 of 2 values of output score are NaN or infinite"):
        Rig(root)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"inputs": {"y": [[1]]}}, "has to name the graph's inputs"),
        ({"inputs": {"x": [1]}}, "have the shape"),
        ({"inputs": {"x": [["a"]]}}, "cannot be read"),
        ({"inputs": {"x": [[1]]}, "outputs": {"z": [[1]]}}, "may name the graph's outputs only: score"),
        ({"inputs": {"x": [[1]]}, "rtol": -1}, "rtol has to be a number"),
        ({"inputs": {"x": [[1]]}, "tolerance": 1}, "tolerance is not known"),
        ([], "has to be"),
    ],
)
async def test_a_golden_example_that_is_wrong(root: Path, content: object, said: str) -> None:
    add_scaled(root, "one", 1, 2)
    write_golden(root, "one", 1, content)
    with pytest.raises(ConfigError, match=said):
        Rig(root)


@pytest.mark.parametrize("values", [[0.7], ["1"], [True, 0.5]])
async def test_a_golden_example_is_not_made_to_fit_integers(root: Path, values: list[object]) -> None:
    """What is tried would not be what is written."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [None])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [None])],
    )
    write_graph(root / "same/1/model.onnx", graph)
    write_golden(root, "same", 1, {"inputs": {"x": values}})
    with pytest.raises(ConfigError, match="nothing is cut off"):
        Rig(root)
    write_golden(root, "same", 1, {"inputs": {"x": [1, 2.0]}, "outputs": {"y": [1, 2]}})
    assert Rig(root).models.latest("same").version == 1


async def test_changed_transform_code_needs_a_restart(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "pinned_transforms.py"
    source.write_text("def double(c):\n    return {'d': c * 2}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pinned_transforms", raising=False)
    manifest = (
        "name: one\ncontext: {c: float32}\ntransforms:\n"
        "  - {function: 'pinned_transforms:double', inputs: {c: c}, outputs: {d: float32}}\ninputs: {x: [d]}\n"
    )
    add_scaled(root, "one", 1, 2, model__yaml=manifest)
    rig = Rig(root, modules=["pinned_transforms"])
    add_scaled(root, "one", 2, 3)
    await rig.models.load("one")
    assert rig.serving() == [("one", 1), ("one", 2)]
    source.write_text("def double(c):\n    return {'d': c * 3}\n")
    add_scaled(root, "one", 3, 4)
    with pytest.raises(
        ConfigError, match="has changed since pinned_transforms was imported; the new code needs a rest"
    ):
        await rig.models.load("one")
    assert rig.serving() == [("one", 1), ("one", 2)]
    assert rig.models.counts.reasons == {("one", "changed_code"): 1}


async def test_code_that_was_imported_by_other_code_is_as_old_as_that(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner_transforms.py").write_text("def double(c):\n    return {'d': c * 2}\n")
    (tmp_path / "outer_transforms.py").write_text("from inner_transforms import double\n")
    monkeypatch.syspath_prepend(tmp_path)
    manifest = (
        "name: {name}\ncontext: {{c: float32}}\ntransforms:\n"
        "  - {{function: '{name}_transforms:double', inputs: {{c: c}}, outputs: {{d: float32}}}}\ninputs: {{x: [d]}}\n"
    )
    for name in ("inner", "outer"):
        monkeypatch.delitem(sys.modules, f"{name}_transforms", raising=False)
    add_scaled(root, "outer", 1, 2, model__yaml=manifest.format(name="outer"))
    rig = Rig(root, modules=["inner_transforms", "outer_transforms"])
    (tmp_path / "inner_transforms.py").write_text("def double(c):\n    return {'d': c * 3}\n")
    add_scaled(root, "inner", 1, 2, model__yaml=manifest.format(name="inner"))
    with pytest.raises(ConfigError, match="has changed since another module imported it"):
        await rig.models.load("inner")


async def test_a_pipe_is_no_graph(root: Path) -> None:
    """Opening one would wait for a writer, for ever."""
    add_scaled(root, "one", 1, 2, model__yaml=PLAIN.format(name="one"))
    rig = Rig(root)
    (root / "one" / "2").mkdir()
    os.mkfifo(root / "one" / "2" / "model.onnx")
    with pytest.raises(ConfigError, match=r"model\.onnx is no regular file"):
        await asyncio.wait_for(rig.models.load("one"), 30)
    (root / "one" / "2" / "model.onnx").unlink()
    add_scaled(root, "one", 2, 3)
    os.mkfifo(root / "one" / "2" / "golden.json")
    with pytest.raises(ConfigError, match=r"golden\.json is no regular file"):
        await asyncio.wait_for(rig.models.load("one"), 30)


async def test_external_data_however_deep_is_looked_at(root: Path) -> None:
    graph = add_scaled(root, "one", 1, 2)
    deep = graph.parent / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "weights").write_bytes(b"1")
    rig = Rig(root)
    (deep / "weights").write_bytes(b"22")
    await rig.models.refresh()
    assert [[model.version for model in swap.added] for swap in rig.swaps] == [[1]]


@pytest.mark.parametrize(
    "name", ["../one", "..", ".", "", "/etc", "a/b", "a\\b", "a\0b", ".hidden", "n" * 201, "line\nbreak", "\ud800"]
)
async def test_names_that_lead_elsewhere(root: Path, name: str) -> None:
    add_scaled(root, "one", 1, 2)
    add_scaled(root.parent, "outside", 1, 2)
    rig = Rig(root)
    for ask in (rig.models.load, rig.models.unload):
        with pytest.raises(ModelNotFound):
            await ask(name)
    assert rig.serving() == [("one", 1)]


@pytest.mark.parametrize("link", ["two", "one/2", "one/2/model.onnx", "one/model.yaml", "one/1/model.data"])
async def test_a_link_out_of_the_repository(root: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    target = add_scaled(outside, "m", 1, 9)
    (outside / "model.yaml").write_text(PLAIN.format(name="one"))
    add_scaled(root, "one", 1, 2)
    rig = Rig(root)
    path = root / link
    path.parent.mkdir(exist_ok=True)
    to = {"two": target.parent.parent, "one/2": target.parent, "one/model.yaml": outside / "model.yaml"}
    path.symlink_to(to.get(link, target))
    (problem,) = await rig.models.refresh()
    assert "is a link to" in str(problem)
    assert "outside the model repository" in str(problem)
    assert (rig.serving(), rig.factor("one")) == ([("one", 1)], 2)


async def test_a_link_inside_the_repository_is_followed(root: Path) -> None:
    add_scaled(root, "one", 1, 2)
    (root / "alias").symlink_to(root / "one")
    assert Rig(root).serving() == [("alias", 1), ("one", 1)]


async def test_loads_take_turns_and_a_long_one_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_scaled(root, "one", 1, 2)
    rig = Rig(root, load_timeout_s=0.2)
    begun, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    real = Session.__init__

    def slow(self: Session, *arguments: object, **named: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(30)
        real(self, *arguments, **named)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(Session, "__init__", slow)
    add_scaled(root, "one", 2, 3)
    with pytest.raises(DeadlinePassed, match=r"load one takes longer than load_timeout_s=0\.2 s"):
        await rig.models.load("one")
    assert begun.is_set()
    assert rig.states()["one", 2] == "LOADING"
    with pytest.raises(DeadlinePassed, match="load one is in progress"):
        await rig.models.unload("one")
    waiting = [asyncio.ensure_future(rig.models.refresh()) for _ in range(62)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await rig.models.refresh()
    go.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    # What was given up by its callers is done all the same: the load, and then the unload.
    await soon(lambda: rig.models.counts.loaded == 2 and not rig.serving(), 20)


async def test_a_removed_model_is_freed_though_frozen(root: Path) -> None:
    add_scaled(root, "one", 1, 2, model__yaml=PLAIN.format(name="one"))
    rig = Rig(root)
    gc.collect()
    gc.freeze()
    try:
        session = weakref.ref(rig.models.latest("one").runner.session)
        add_scaled(root, "one", 1, 3)
        await rig.models.load("one")
        rig.models.retire(rig.swaps[0].removed[0])
        rig.swaps.clear()
        await asyncio.sleep(0.01)  # the task of the load ends with this turn of the loop
        assert session() is None
    finally:
        gc.unfreeze()


async def test_a_graph_without_rows_is_run_request_by_request(root: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["score"], keepdims=0)],
        "total",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [])],
    )
    write_graph(root / "total/1/model.onnx", graph)
    model = Rig(root).models.latest("total")
    assert not model.plan.batched
    assert np.shape(model.runner.session.run(model.plan.blank(1))[0]) == ()


async def test_free_dimensions_that_zeros_do_not_fit(root: Path) -> None:
    """A kernel of 3 by 3 does not fit the image of 1 by 1 that a trial run guesses."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1, None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1, None, None])],
        [helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)],
    )
    write_graph(root / "conv/1/model.onnx", graph)
    model = Rig(root).models.latest("conv")
    assert "not warmed up" in model.facts.warnings[0]
    assert model.plan.batched


async def test_nothing_is_kept_of_models_that_are_gone(root: Path) -> None:
    add_scaled(root, "plain", 1, 2)
    rig = Rig(root)
    for name in ("a", "b"):
        graph = root / name / "1" / "model.onnx"
        graph.parent.mkdir(parents=True)
        graph.write_bytes(b"no graph")
        assert len(await rig.models.refresh()) == 1
        assert rig.states()[name, 1] == "UNAVAILABLE"
        shutil.rmtree(root / name)
    await rig.models.refresh()
    assert rig.states() == {("plain", 1): "READY"}
    assert not rig.models._failed


async def test_a_label_is_what_the_newest_description_says(root: Path) -> None:
    manifest = PLAIN.format(name="one") + "labels: {stable: %d}\nversions: %s\n"
    for version in (2, 5):
        add_scaled(root, "one", version, version, model__yaml=manifest % (5, "all"))
    rig = Rig(root)
    assert rig.models.labelled("one", "stable").version == 5
    broken = root / "one" / "9" / "model.onnx"
    broken.parent.mkdir()
    broken.write_bytes(b"no graph")
    (root / "one" / "model.yaml").write_text(manifest % (2, "[2, 9]"))
    assert len(await rig.models.refresh()) == 1
    assert rig.serving() == [("one", 2), ("one", 5)]  # what failed has taken nothing away
    assert rig.models.labelled("one", "stable").version == 2
    (root / "one" / "model.yaml").write_text(manifest % (9, "[2, 9]"))
    assert len(await rig.models.refresh()) == 1
    assert rig.models.labelled("one", "stable").version == 2  # refused whole


@pytest.mark.parametrize(
    ("reason", "file", "content"),
    [
        ("graph", "1/model.onnx", "no graph"),
        ("manifest", "model.yaml", "name: ["),
        ("manifest", "model.yaml", PLAIN.format(name="other")),
        ("manifest", "model.yaml", "name: one\ncontext: {c: float32}\ninputs: {y: [c]}\n"),
        ("golden", "1/golden.json", '{"inputs": {"x": [[1]]}, "outputs": {"score": [[7]]}}'),
        ("golden", "1/golden.json", "{"),
        ("warm_up", "config.pbtxt", 'model_warmup { inputs { key: "x" value { data_type: TYPE_FP32 dims: [2] } } }'),
        ("warm_up", "config.pbtxt", 'model_warmup { inputs { key: "y" value { data_type: TYPE_FP32 dims: [1] } } }'),
    ],
)
async def test_what_a_load_failed_for_is_counted(root: Path, reason: str, file: str, content: str) -> None:
    add_scaled(root, "plain", 1, 2)
    rig = Rig(root)
    add_scaled(root, "one", 1, 2)
    (root / "one" / file).write_text(content)
    assert await rig.models.refresh()
    assert rig.models.counts.reasons == {("one", reason): 1}
    await rig.models.refresh()
    assert rig.models.counts.failed == 1


def test_failures_are_counted_by_name_for_so_many_models() -> None:
    counts = LoadCounts()
    for number in range(COUNTED_MAX + 2):
        counts.add(f"m{number}", Outcome({}, {}, (), (), ("graph",)))
    assert len(counts.reasons) == COUNTED_MAX + 1
    assert counts.reasons["other", "graph"] == 2
