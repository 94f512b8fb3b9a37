"""A graph that would end the server is refused while the server runs, and what serves goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from gateway.inference import InferenceOptions, layout
from gateway.inference.loading import Loader, ModelsNotLoaded
from gateway.plan.transform import resolver
from tests import graphs
from tests.executing import NO_VIEWS
from tests.models import Rig, add_scaled


async def test_a_version_that_crashes_never_reaches_the_server(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    add_scaled(root, "plain", 1, 2)
    rig = Rig(root, check=True)
    folder = root / "plain" / "2"
    folder.mkdir()
    graphs.saved(graphs.deep_tree(), folder)
    (problem,) = await rig.models.refresh()
    assert "crashes with SIGSEGV while it was loaded in a process of its own" in str(problem)
    assert (rig.serving(), rig.factor("plain")) == ([("plain", 1)], 2)
    assert rig.states()["plain", 2] == "UNAVAILABLE"
    add_scaled(root, "plain", 2, 3)
    assert await rig.models.refresh() == []
    assert (rig.serving(), rig.factor("plain")) == ([("plain", 2)], 3)


def counting(folder: Path) -> None:
    """A graph that counts to the number that it is given."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [graphs.tensor(name, (), kind) for name, kind in (("i", TensorProto.INT64), ("go", TensorProto.BOOL))]
        + [graphs.tensor("v", (None,), TensorProto.INT64)],
        [graphs.tensor("go_on", (), TensorProto.BOOL), graphs.tensor("w", (None,), TensorProto.INT64)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["times"], keepdims=0),
        helper.make_node("Loop", ["times", "true", "x"], ["y"], body=body),
    ]
    x, y = (graphs.tensor(name, (None,), TensorProto.INT64) for name in "xy")
    graphs.saved(graphs.graph(nodes, [x], [y], {"true": np.array(True)}), folder)


WARMUP = """
max_batch_size: 8
model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_INT64 dims: [] input_data_file: "far" } } }
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["golden", "model_warmup"])
def test_what_a_server_runs_at_a_load_is_run_elsewhere_first(tmp_path: Path, what: str) -> None:
    """Zeros end at once. Only the files of the model have numbers that do not."""
    folder = tmp_path / "one" / "1"
    folder.mkdir(parents=True)
    counting(folder)
    if what == "golden":
        (folder / "golden.json").write_text(json.dumps({"inputs": {"x": [10**12]}}))
    else:
        (tmp_path / "one" / "config.pbtxt").write_text(WARMUP)
        (tmp_path / "one" / "warmup").mkdir()
        np.array([10**12]).tofile(tmp_path / "one" / "warmup" / "far")
    loader = Loader(tmp_path, NO_VIEWS, resolver(()), InferenceOptions(check_timeout_s=5))
    loader.hot = True
    entry = layout.look(tmp_path, "one")
    assert entry is not None
    with pytest.raises(ModelsNotLoaded, match=r"did not end within check_timeout_s, 5 s") as caught:
        loader.load(loader.describe(entry), 1)
    assert caught.value.reason == "probe"
