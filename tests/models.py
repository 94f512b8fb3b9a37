"""Model repositories for tests: small graphs, a repository that is open, and what became of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from featureclient.schema import Catalogue
from gateway.inference import InferenceOptions, ModelRepository, RepositoryOptions, Swap
from gateway.plan.transform import resolver
from tests.running import CATALOGUE, write_graph

PLAIN = "name: {name}\ncontext: {{c: float32}}\ninputs: {{x: [c]}}\n"


def add_scaled(root: Path, name: str, version: int, factor: float, **files: str) -> Path:
    """Write a version that gives `score = factor * x`, x float32 [rows, 1]; `files` go into the model's folder."""
    node = helper.make_node("Mul", ["x", "f"], ["score"])
    graph = helper.make_graph(
        [node],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(np.float32([factor]), "f")],
    )
    path = root / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    write_graph(unfinished, graph)
    unfinished.replace(path)
    for file, text in files.items():
        (root / name / file.replace("__", ".")).write_text(text)
    return path


def make_catalogue(folder: Path) -> Catalogue:
    """The catalogue of the tests."""
    path = folder / "features.yaml"
    path.write_text(CATALOGUE)
    return Catalogue.load(path)


class Rig:
    """An open repository and the swaps that it told of."""

    def __init__(self, root: Path, *, modules: Sequence[str] = (), check: bool = False, **options: Any) -> None:
        self.root = root
        self.swaps: list[Swap] = []
        catalogue = make_catalogue(root.parent)
        self.models = ModelRepository.open(
            root, catalogue, resolver(modules), InferenceOptions(check_in_process=check), RepositoryOptions(**options)
        )
        self.models.on_swap.append(self.swaps.append)

    def serving(self) -> list[tuple[str, int]]:
        """(name, version) of what serves."""
        return sorted((model.name, model.version) for model in self.models)

    def states(self) -> dict[tuple[str, int], str]:
        """(name, version) -> state."""
        return {(one.name, one.version): one.state for one in self.models.states()}

    def reason(self, name: str, version: int) -> str:
        """Why a version is not what it should be."""
        return next(one.reason for one in self.models.states() if (one.name, one.version) == (name, version))

    def factor(self, name: str, version: int | None = None) -> float:
        """What a scaled model multiplies with."""
        model = self.models.latest(name) if version is None else self.models.version(name, version)
        return float(model.runner.session.run({"x": np.float32([[1]])})[0][0, 0])
