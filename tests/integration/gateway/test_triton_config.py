"""`config.pbtxt` beside a model: what is acted on, what is refused, and that nothing is ignored in silence."""

from pathlib import Path

import numpy as np
import pytest

from featureclient.schema import ConfigError
from tests.models import PLAIN, Rig, add_scaled

FITTING = """
name: "one"
platform: "onnxruntime_onnx"
max_batch_size: 16
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "score" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def problems(root: Path, config: str) -> list[str]:
    add_scaled(root, "one", 1, 2, config__pbtxt=config)
    with pytest.raises(ConfigError) as caught:
        Rig(root)
    return [str(problem).removeprefix(f"{root}/one/") for problem in caught.value.problems]


def test_a_config_that_fits(root: Path) -> None:
    for version in (1, 2):
        add_scaled(root, "one", version, version, config__pbtxt=FITTING + "instance_group [ { count: 3 } ]\n")
    rig = Rig(root)
    model = rig.models.latest("one")
    assert rig.serving() == [("one", 2)]
    assert (model.execution.max_batch_rows, model.execution.instances) == (16, 3)
    assert model.facts.warnings == ()
    assert model.plan.batched


@pytest.mark.parametrize(
    ("policy", "serving"),
    [
        ("latest { num_versions: 2 }", [2, 3]),
        ("all { }", [1, 2, 3]),
        ("specific { versions: [ 1, 3 ] }", [1, 3]),
    ],
)
def test_version_policy(root: Path, policy: str, serving: list[int]) -> None:
    for version in (1, 2, 3):
        add_scaled(root, "one", version, 1, config__pbtxt=f"version_policy: {{ {policy} }}\n")
    assert [version for _, version in Rig(root).serving()] == serving


def test_the_manifests_policy_wins_where_it_is_said(root: Path) -> None:
    for version in (1, 2):
        config = "version_policy { latest { num_versions: 1 } }\n"
        add_scaled(
            root, "said", version, 1, config__pbtxt=config, model__yaml=PLAIN.format(name="said") + "versions: all"
        )
        add_scaled(root, "unsaid", version, 1, config__pbtxt=config, model__yaml=PLAIN.format(name="unsaid"))
    assert Rig(root).serving() == [("said", 1), ("said", 2), ("unsaid", 2)]


def test_no_batches(root: Path) -> None:
    config = 'max_batch_size: 0\ninput { name: "x" data_type: TYPE_FP32 dims: [ -1, 1 ] }\n'
    add_scaled(root, "one", 1, 2, config__pbtxt=config)
    assert not Rig(root).models.latest("one").plan.batched


def test_a_config_that_says_nothing(root: Path) -> None:
    add_scaled(root, "one", 1, 2, config__pbtxt='backend: "onnxruntime"\n')
    assert Rig(root).models.latest("one").plan.batched


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name: "one"', 'name: "two"'), "config.pbtxt:2: name: is 'two' in the folder 'one'"),
        (("onnxruntime_onnx", "tensorrt_plan"), "config.pbtxt:3: platform: is 'tensorrt_plan'"),
        (
            ("TYPE_FP32 dims: [ 1 ] } ]\noutput", "TYPE_FP64 dims: [ 1 ] } ]\noutput"),
            "data_type is TYPE_FP64, the graph has x",
        ),
        (("dims: [ 1 ] } ]\noutput", "dims: [ 2 ] } ]\noutput"), "dims are [2], the graph has x: float32[?, 1]"),
        (('name: "x"', 'name: "y"'), "input 'y' is not one of the graph's (there are: x: float32[?, 1])"),
        (('name: "score"', 'name: "s"'), "output 's' is not one of the graph's"),
        (("dims: [ 1 ] } ]\noutput", "dims: [ 1 ] reshape { shape: [ 1, 1 ] } } ]\noutput"), "reshape: is set for x"),
        (
            ("max_batch_size: 16", "max_batch_sice: 16"),
            'config.pbtxt:4: Message type "inference.ModelConfig" has no field',
        ),
        (("max_batch_size: 16", "max_batch_size: -1"), "config.pbtxt:4: max_batch_size: is -1"),
        (
            ("max_batch_size: 16", "max_batch_size: 16\nsequence_batching { }"),
            "config.pbtxt:5: sequence_batching: is set",
        ),
        (("max_batch_size: 16", "max_batch_size: 16 }"), "config.pbtxt:4:"),
        (
            ("max_batch_size: 16", "max_batch_size: 16\nversion_policy { specific { } }"),
            "config.pbtxt:5: version_policy: is specific and names no version",
        ),
        (
            ("max_batch_size: 16", "max_batch_size: 16\n" + "instance_group { } " * 65),
            "config.pbtxt:5: instance_group: asks for 65 instances",
        ),
        (
            ("max_batch_size: 16", "max_batch_size: 16\n" + "model_warmup { } " * 101),
            "config.pbtxt:5: model_warmup: has 101 entries; there may be 100",
        ),
        (
            (
                "max_batch_size: 16",
                "max_batch_size: 16\nmodel_warmup { batch_size: 150000000 "
                'inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 1 ] random_data: true } } }',
            ),
            "config.pbtxt:5: model_warmup: warmup takes 600,000,000 bytes of inputs; there may be 128 MiB",
        ),
    ],
)
def test_what_does_not_fit_is_named(root: Path, change: tuple[str, str], said: str) -> None:
    found = problems(root, FITTING.replace(*change))
    assert any(said in problem for problem in found), found


def test_every_other_field_is_named_in_a_warning(root: Path) -> None:
    extra = """
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 }
optimization { graph { level: 1 } }
parameters { key: "intra_op_thread_count" value { string_value: "4" } }
instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]
"""
    add_scaled(root, "one", 1, 2, config__pbtxt=FITTING + extra)
    warnings = Rig(root).models.latest("one").facts.warnings
    named = [warning.split(" is set and not acted on")[0].rpartition(" ")[2] for warning in warnings]
    assert sorted(named) == [
        "dynamic_batching",
        "instance_group.gpus",
        "instance_group.kind",
        "optimization",
        "parameters",
    ]
    assert warnings[0].startswith("line ")


WARMUP = """
model_warmup [ {{
  name: "w" batch_size: 4 count: 2
  inputs {{ key: "x" value: {{ data_type: TYPE_FP32 dims: [ 1 ] {data} }} }}
}} ]
"""


def test_warm_ups_are_run(root: Path) -> None:
    (root / "one/warmup").mkdir(parents=True)
    np.float32([7]).tofile(root / "one/warmup/sample")
    for data in ("zero_data: true", "random_data: true", 'input_data_file: "sample"'):
        add_scaled(root, "one", 1, 2, config__pbtxt=FITTING + WARMUP.format(data=data))
        assert Rig(root).models.latest("one").facts.warnings == ()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('input_data_file: "../../../secret"', "lies outside the model's folder warmup/"),
        ('input_data_file: "missing"', "cannot be read"),
        ("dims: [ 2 ]", "model_warmup w raises"),
        ("dims: [ -1 ]", "a warm-up needs numbers above 0"),
    ],
)
def test_a_warm_up_that_fails_refuses(root: Path, data: str, said: str) -> None:
    (found,) = problems(root, FITTING + WARMUP.format(data=data))
    assert said in found
