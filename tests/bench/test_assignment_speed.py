"""What assigning costs: `--benchmark-enable` measures; the page docs/experiments.md says what for.

Batches of 64 requests of one row. One experiment alone, one in a layer with another, and two layers.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from gateway.experiments.experiment import Experiment, load
from gateway.experiments.layer import Layer
from gateway.inference import Model
from gateway.inference.variants import IdsAt
from gateway.records.request import Request
from gateway.server.experiments.routes import Route, Way, deal

REQUESTS = 64


class Shape:
    versions = (1, 2)
    views: ClassVar[dict[str, str]] = {"plane": "plane_stats@1", "route": "route_stats@1"}
    columns = ("tailnum", "route")
    functions = ()


TEXT = """
layers: {planes: {two: 50, three: 50}}
experiments:
  one:
    model: delay
    variants: {a: {}, b: {version: 1}}
    split: {by: route, weights: {a: 50, b: 50}}
  two:
    model: delay
    variants: {a: {}, b: {views: {plane: plane_stats@1}}}
    split: {by: tailnum, weights: {a: 50, b: 50}}
  three:
    model: delay
    variants: {a: {}, b: {views: {plane: plane_stats@1}}}
    split: {by: tailnum, weights: {a: 50, b: 50}}
"""


def route_of(*layers: list[Experiment]) -> Route:
    made = [Layer.of(layer, {}) for layer in layers]
    model = cast("Model", SimpleNamespace(name="delay", variant="x"))
    numbers: list[tuple[int, ...]] = [()]
    for layer in made:
        numbers = [(*before, choice) for before in numbers for choice in range(len(layer.choices))]
    ways = {one: Way(model, (), None) for one in numbers if any(one)}
    return Route([(IdsAt(0 if layer.by == "tailnum" else 1, None), layer) for layer in made], ways)


@pytest.mark.parametrize("layers", ["one experiment", "one layer of two", "two layers"])
def test_assigning_64_requests(benchmark: Any, tmp_path: Path, layers: str) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(TEXT)
    one, two, three = load(path, {"delay": Shape()}, ("plane_stats@1",))
    route = {
        "one experiment": route_of([one]),
        "one layer of two": route_of([two, three]),
        "two layers": route_of([two, three], [one]),
    }[layers]
    model = cast("Model", object())
    caller: Any = None
    requests = [
        Request(caller, "delay", "", 0.0, 1.0, 1, ([f"N{number}"], [f"R{number}"]), (), (), (), return_features=False)
        for number in range(REQUESTS)
    ]

    def assign() -> list[tuple[Model, list[Request], Way | None]]:
        return list(deal({model: requests}, {model: route}))

    dealt = benchmark(assign)
    assert sum(len(some) for _, some, _ in dealt) == REQUESTS
    assert {id(request) for _, some, _ in dealt for request in some} == {*map(id, requests)}
