"""What the checks cost: `pytest tests/bench/test_checks_speed.py --benchmark-enable`. The flights example's plan.

`ranges` is a range for each of the 25 columns; `all` adds NaN, nulls, a category domain, an age and a status.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from ruamel.yaml import YAML

from examples.flights.flight_transforms import cyclical_hour
from featureclient.schema import Catalogue, status
from gateway.plan import Assembled, FeaturePlan, Manifest, compile_plan
from gateway.plan.manifest import ValidationUse
from gateway.plan.plan import Values
from gateway.records.request import Array
from gateway.records.signature import Signature, TensorSpec
from gateway.validation.compiler import compile_checks

ROOT = Path(__file__).parents[2]
RANGE = {"range": {"min": -1000, "max": 3000}}
USES: dict[str, dict[str, Any]] = {
    "ranges": {"every": RANGE},
    "all": {
        "every": {**RANGE, "nan": "refuse", "nulls": "refuse"},
        "columns": {"weekday": {"range": {"min": 0, "max": 6}, "categories": [0, 1, 2, 3, 4, 5, 6]}},
        "views": {"airport_weather": {"age_max": "3h", "statuses": ["PRESENT", "STALE", "COMPUTED", "DEFAULTED"]}},
    },
}
SIGNATURE = Signature(
    (TensorSpec("features", "float32", (None, 21)),), (TensorSpec("probability", "float32", (None,)),)
)


@pytest.fixture(scope="module")
def plan() -> FeaturePlan:
    manifest = YAML(typ="safe").load((ROOT / "models/flight_delay/model.yaml").read_text())
    catalogue = Catalogue.load(ROOT / "examples/flights/features.yaml")
    return compile_plan(Manifest.model_validate(manifest), catalogue, SIGNATURE, lambda _: cyclical_hour)


def batch(plan: FeaturePlan, rows: int, dep_delay: float = 1.0) -> Assembled:
    blocks = []
    for binding in plan.bindings:
        block = np.zeros(rows, binding.view.layout.block_dtype)
        columns = len(binding.view.columns)
        valid = ((1 << columns) - 1).to_bytes(binding.view.layout.valid_bytes, "little")
        block["status"], block["event_ms"] = status.PRESENT, 1000
        block["valid"] = np.frombuffer(valid, np.uint8)
        blocks.append(block)
    context: list[Array] = [np.ones(rows, np.float32) for _ in plan.context]
    context[-1][0] = dep_delay  # type: ignore[call-overload]  # numpy's stubs do not know that it is a float32
    values = Values(plan, blocks, context, rows)
    inputs = {matrix.spec.name: matrix.fill(blocks, rows, values) for matrix in plan.matrices}
    codes = tuple(block["status"] for block in blocks)
    events = tuple(block["event_ms"] for block in blocks)
    return Assembled(inputs, codes, events, 2000, None, tuple(blocks), tuple(context))


@pytest.mark.parametrize("rows", [1, 64, 3200])
@pytest.mark.parametrize("use", USES)
def test_nothing_is_violated(benchmark: BenchmarkFixture, plan: FeaturePlan, use: str, rows: int) -> None:
    checks = compile_checks(plan, ValidationUse.model_validate(USES[use]), None, SIGNATURE)
    assert checks is not None
    given = batch(plan, rows)
    assert benchmark(checks.apply, given).violations is None


@pytest.mark.parametrize("rows", [1, 64, 3200])
def test_one_cell_is_clipped(benchmark: BenchmarkFixture, plan: FeaturePlan, rows: int) -> None:
    use = {"every": {**RANGE, "policy": "clip"}}
    checks = compile_checks(plan, ValidationUse.model_validate(use), None, SIGNATURE)
    assert checks is not None
    checked = benchmark(checks.apply, batch(plan, rows, 5000.0))
    assert checked.violations is not None
    assert checked.violations.mask.sum() == 1
