"""From ids to a model's input, warm. `pytest tests/bench/test_feature_cache_speed.py --benchmark-enable`.

`same` asks for the same objects again and again: Python has their hashes, the processor has everything at hand, and
what is measured is the work. `new` asks for other users each time, with ids as a message brings them: new objects whose
hashes nobody has computed, among 20,000 rows; the memory's latency is most of it.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from featureclient.cache import CacheOptions, ViewCache
from featureclient.schema import Catalogue, Id, View, status
from featureclient.wire import KeyCodec, RowReader, RowWriter
from gateway.plan.compiler import compile_plan
from gateway.plan.manifest import Manifest
from gateway.plan.plan import FeaturePlan
from gateway.records.request import Request
from gateway.records.signature import Signature, TensorSpec

USERS = 20_000
NEW_BATCHES = 500
FLOATS = "".join(f"      f{i}: float32\n" for i in range(50))
MIXED = "".join(
    f"      a{i}: {{dtype: float32, default: 0}}\n      b{i}: {{dtype: int32, default: 1}}\n      c{i}: bool\n"
    for i in range(19)
)
IDS: dict[str, list[Id]] = {
    "string": [f"u{i:06}" for i in range(USERS)],
    "int64": [10**6 + i for i in range(USERS)],
}


class Caller:
    """Who asks. Never leaves."""

    cancelled = False


def catalogue_of(dtype: str) -> Catalogue:
    return Catalogue.parse(
        f"""
entities: {{user: {{user: {dtype}}}}}
views:
  floats@1:
    entity: user
    columns:
{FLOATS}
  mixed@1:
    entity: user
    columns:
{MIXED}
      vector: float32[16]
      name: string[16]
      big: float64
"""
    )


def table(view: View, ids: Sequence[Id]) -> dict[str, Any]:
    values = np.arange(len(ids))
    made: dict[str, Any] = {"user": ids}
    for column in view.columns:
        if column.dtype.kind == "string":
            made[column.name] = ["name"] * len(ids)
        elif column.dtype.kind == "bool":
            made[column.name] = values % 2 == 0
        elif column.dtype.length is not None:
            made[column.name] = np.ones((len(ids), column.dtype.length), np.float32)
        else:
            made[column.name] = values.astype(column.dtype.numpy)
    return made


def warm(dtype: str, ref: str) -> tuple[ViewCache, FeaturePlan]:
    catalogue = catalogue_of(dtype)
    view = catalogue.view(ref)
    encoded = RowWriter(view, KeyCodec(view, 512), 20).encode(table(view, IDS[dtype]), 5, 10)
    reader = RowReader(view)
    cache = ViewCache(CacheOptions(), 1 << 30, reader.substitute(status.ABSENT))
    rows, _ = reader.admit(list(encoded.keys), list(encoded.values), cache.stamp(0.0, 0.0), 10)
    cache.put_all(IDS[dtype], [row for row in rows if row is not None])
    inputs: dict[str, list[str]] = {}
    widths: dict[str, int] = {}
    for column in view.columns:
        name = "text" if column.dtype.kind == "string" else "x"
        inputs.setdefault(name, []).append(f"user.{column.name}")
        widths[name] = widths.get(name, 0) + column.dtype.width
    specs = [TensorSpec(name, "float32" if name == "x" else "string", (None, widths[name])) for name in inputs]
    manifest = Manifest.model_validate({"name": "bench", "views": {"user": {"view": ref}}, "inputs": inputs})
    return cache, compile_plan(manifest, catalogue, Signature(tuple(specs), ()), lambda _: dict)


def renewed(one: Id) -> Id:
    """An equal object, made as a decoder makes it."""
    return one.encode().decode() if isinstance(one, str) else int(str(one))


def requests_of(ids: Sequence[Id], each: int) -> list[Request]:
    """The ids, so many to a request."""
    return [
        Request(Caller(), "bench", "", 0.0, 0.0, each, (ids[start : start + each],), (), (), (), False)
        for start in range(0, len(ids), each)
    ]


def batches(dtype: str, count: int, rows: int) -> list[list[Id]]:
    chance = random.Random(1)
    return [list(map(renewed, chance.choices(IDS[dtype], k=rows))) for _ in range(count)]


@pytest.mark.parametrize("ids", ["same", "new"])
@pytest.mark.parametrize(("rows", "each"), [(200, 200), (64, 1), (1, 1)], ids=["200", "64x1", "1"])
@pytest.mark.parametrize("dtype", ["string", "int64"])
@pytest.mark.parametrize("ref", ["floats@1", "mixed@1"])
def test_ids_to_model_input(benchmark: BenchmarkFixture, ref: str, dtype: str, rows: int, each: int, ids: str) -> None:
    cache, plan = warm(dtype, ref)

    def run(some: Sequence[Id], requests: Sequence[Request]) -> Any:
        return plan.assemble(requests, [cache.lookup(some, 1.0)], 1000)  # type: ignore[list-item]  # no None among them

    x = measured(benchmark, run, [(some, requests_of(some, each)) for some in batches(dtype, NEW_BATCHES, rows)], ids)
    assert x.inputs["x"].shape[0] == rows


@pytest.mark.parametrize("ids", ["same", "new"])
@pytest.mark.parametrize("rows", [200, 64, 1])
@pytest.mark.parametrize("dtype", ["string", "int64"])
def test_lookup(benchmark: BenchmarkFixture, dtype: str, rows: int, ids: str) -> None:
    cache, _ = warm(dtype, "floats@1")

    def run(some: Sequence[Id]) -> Any:
        return cache.lookup(some, 1.0)

    assert None not in measured(benchmark, run, [(some,) for some in batches(dtype, NEW_BATCHES, rows)], ids)


def test_lookup_of_rows_that_are_due_and_on_their_way(benchmark: BenchmarkFixture) -> None:
    """What a lookup costs while the store does not answer and everything is beyond its soft age."""
    cache, _ = warm("string", "floats@1")
    cache.expire_all(0.5)
    some = batches("string", 1, 200)[0]
    assert None not in cache.lookup(some, 2.0)
    cache.take_due()
    assert None not in benchmark(cache.lookup, some, 2.0)


def measured(benchmark: BenchmarkFixture, run: Callable[..., Any], made: list[Any], ids: str) -> Any:
    if ids == "same":
        return benchmark(run, *made[0])
    # Each batch once: the second time its strings would know their hashes.
    remaining = itertools.cycle(made) if benchmark.disabled else iter(made)
    return benchmark.pedantic(run, setup=lambda: (next(remaining), {}), rounds=len(made))
