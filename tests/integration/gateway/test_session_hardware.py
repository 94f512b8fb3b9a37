"""A session runs on what was asked for, or says what is less; here with the CPU provider alone."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from prometheus_client.core import Metric

from gateway.inference.providers import Hardware
from gateway.inference.session import InferenceOptions, Session, SessionError
from gateway.telemetry.model_families import Repository, repository_families
from tests import graphs
from tests.models import PLAIN, Rig, add_scaled

X = {"x": np.float32([[1, 2, 3, 4]])}

without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)


def opened(folder: Path, **hardware: Any) -> Session:
    return Session(graphs.saved(graphs.dense(), folder), InferenceOptions(), Hardware(**hardware))


def test_the_cpu_is_what_auto_finds_here(tmp_path: Path) -> None:
    session = opened(tmp_path, providers=("cpu",), require=True)
    assert (session.asked, session.providers) == (("cpu",), ("cpu",))
    assert session.on_asked
    assert session.warnings == ()
    assert set(session.nodes) == {"cpu"}


@without_cuda
def test_less_than_asked_is_a_warning(tmp_path: Path) -> None:
    session = opened(tmp_path, providers=("cuda", "cpu"))
    assert (session.asked, session.providers) == (("cuda", "cpu"), ("cpu",))
    assert not session.on_asked
    (warning,) = session.warnings
    assert "cuda is not in this build of ONNX Runtime" in warning
    assert "install onnxruntime-gpu" in warning
    np.testing.assert_array_equal(session.run(X)[0], opened(tmp_path).run(X)[0])


@without_cuda
def test_less_than_asked_is_refused_where_it_is_required(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="asks for hardware that is not there: cuda is not in this build"):
        opened(tmp_path, providers=("cuda", "cpu"), require=True)


def test_the_servers_hardware_is_the_default(tmp_path: Path) -> None:
    path = graphs.saved(graphs.dense(), tmp_path)
    session = Session(path, InferenceOptions(hardware=Hardware(("xnnpack",))))
    assert session.asked == ("xnnpack",)
    assert "a build of ONNX Runtime with --use_xnnpack" in session.warnings[0]


def test_optimization_can_be_turned_off(tmp_path: Path) -> None:
    plain, fused = opened(tmp_path, graph_optimization="off"), opened(tmp_path)
    assert sum(plain.nodes.values()) == 3
    assert sum(fused.nodes.values()) < 3
    np.testing.assert_allclose(plain.run(X)[0], fused.run(X)[0])


def test_without_an_arena(tmp_path: Path) -> None:
    np.testing.assert_array_equal(opened(tmp_path, arena=False).run(X)[0], opened(tmp_path).run(X)[0])


def test_float16(tmp_path: Path) -> None:
    session = Session(graphs.saved(graphs.dense(np.float16), tmp_path), InferenceOptions())
    assert [spec.dtype for spec in session.signature.inputs] == ["float16"]
    (output,) = session.run({"x": X["x"].astype(np.float16)})
    assert output.dtype == np.float16
    np.testing.assert_allclose(output, opened(tmp_path).run(X)[0], rtol=1e-2)


def test_int8(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = graphs.saved(graphs.dense(width=64), tmp_path)
    quantize_dynamic(path, tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    x = {"x": np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 64)}
    exact, quantised = (Session(one, InferenceOptions()) for one in (path, tmp_path / "int8.onnx"))
    np.testing.assert_allclose(quantised.run(x)[0], exact.run(x)[0], rtol=0.05)


def test_a_dtype_that_numpy_does_not_have(tmp_path: Path) -> None:
    kind = TensorProto.BFLOAT16
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    model = graphs.graph(nodes, [graphs.tensor("x", ("n", 4), kind)], [graphs.tensor("y")])
    with pytest.raises(SessionError, match=r"x is a tensor\(bfloat16\).*cast it in the graph"):
        Session(graphs.saved(model, tmp_path), InferenceOptions())


def test_memory_of_runs_is_bounded(tmp_path: Path) -> None:
    """In a process of its own, as the bound is the process's."""
    path = graphs.saved(graphs.squares(5000), tmp_path)
    program = f"""
        import numpy as np
        from pathlib import Path
        from gateway.inference.session import InferenceOptions, Session, SessionError

        options = InferenceOptions(memory_max_mb=64)
        session = Session(Path({str(path)!r}), options)
        session.try_out({{"x": np.zeros((2, 4), np.float32)}}, 2)
        try:
            session.try_out({{"x": np.zeros((64, 4), np.float32)}}, 64)
        except SessionError as error:
            print(error)
        session.try_out({{"x": np.zeros((2, 4), np.float32)}}, 2)
        Session(Path({str(path)!r}), options)
        try:
            Session(Path({str(path)!r}), InferenceOptions(memory_max_mb=65))
        except SessionError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert "a trial run of 64 rows raises" in first
    assert "Available memory" in first
    assert "inference.memory_max_mb" in first
    assert second == "memory_max_mb is 64 in this process already; a change needs a restart"


def test_usage_is_not_reported_to_its_makers() -> None:
    """Releases for Linux read it once, at the import; so the package sets it before."""
    program = "import os; os.environ.pop('ORT_DISABLE_TELEMETRY', 0); import gateway.inference.session; " + (
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"1\n"


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_max_mb": -1},
        {"check_memory_mb": 0},
        {"check_timeout_s": 0},
    ],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InferenceOptions(**wrong)


@without_cuda
async def test_the_manifest_asks_and_the_model_tells(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    add_scaled(root, "asks", 1, 2, model__yaml=PLAIN.format(name="asks") + "hardware: {providers: [cuda, cpu]}\n")
    add_scaled(root, "plain", 1, 2)
    rig = Rig(root)
    facts = rig.models.latest("asks").facts
    assert (facts.asked_providers, facts.providers, dict(facts.nodes)) == (("cuda", "cpu"), ("cpu",), {"cpu": 1})
    assert not facts.on_asked
    assert "cuda is not in this build" in facts.warnings[0]
    shown = Repository(
        rig.models.states(), rig.models.counts, {(m.name, m.version): m.facts.on_asked for m in rig.models}
    )
    assert _gauge([*repository_families(shown)]) == {("asks", "1"): 0, ("plain", "1"): 1}


@without_cuda
async def test_a_model_that_requires_what_is_not_there_never_serves(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    text = PLAIN.format(name="asks")
    add_scaled(root, "asks", 1, 2, model__yaml=text)
    rig = Rig(root)
    for hardware, said in (
        ("{providers: [cuda], require: true}", "cuda is not in this build"),
        ("{providers: [cudo]}", "hardware: no provider 'cudo' (there are: auto, tensorrt"),
        ("{providers: [{cuda: {user_compute_stream: 1}}]}", "only the server's settings may set it"),
    ):
        add_scaled(root, "asks", 1, 3, model__yaml=text + f"hardware: {hardware}\n")
        (problem,) = await rig.models.refresh()
        assert said in str(problem)
        assert rig.factor("asks") == 2


def _gauge(families: list[Metric]) -> dict[tuple[str, str], float]:
    (family,) = (one for one in families if one.name == "headrace_model_on_asked_hardware")
    return {(sample.labels["model"], sample.labels["version"]): sample.value for sample in family.samples}
