"""Folders that MLflow wrote. `tests/data/mlflow/MLmodel` is from `mlflow.onnx.save_model` of MLflow 3.17."""

import shutil
from pathlib import Path

import pytest

from featureclient.schema import ConfigError
from tests.models import Rig, add_scaled

WRITTEN = Path(__file__).parents[2] / "data/mlflow/MLmodel"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def add_mlflow(folder: Path, factor: float, text: str = "") -> None:
    """A folder as MLflow writes it."""
    path = add_scaled(folder.parent / ".made", "m", 1, factor)
    folder.mkdir(parents=True)
    shutil.move(path, folder / "model.onnx")
    shutil.rmtree(folder.parent / ".made")
    (folder / "MLmodel").write_text(text or WRITTEN.read_text())
    (folder / "requirements.txt").write_text("onnx\n")


async def test_a_folder_is_version_1(root: Path) -> None:
    add_mlflow(root / "scored", 3)
    rig = Rig(root)
    assert (rig.serving(), rig.factor("scored")) == ([("scored", 1)], 3)


async def test_folders_under_numbers_are_versions(root: Path) -> None:
    add_mlflow(root / "scored/1", 3)
    rig = Rig(root)
    add_mlflow(root / "scored/2", 4)
    await rig.models.load("scored")
    assert (rig.serving(), rig.factor("scored")) == ([("scored", 2)], 4)


async def test_an_mlmodel_that_names_another_graph_of_its_folder(root: Path) -> None:
    folder = root / "scored" / "1"
    for name, factor in (("a", 3), ("b", 4)):
        add_mlflow(root / "made" / name, factor)
        (folder / name).mkdir(parents=True)
        (root / "made" / name / "model.onnx").rename(folder / name / "model.onnx")
    shutil.rmtree(root / "made")
    (folder / "MLmodel").write_text(WRITTEN.read_text().replace("data: model.onnx", "data: a/model.onnx", 1))
    rig = Rig(root)
    assert rig.factor("scored") == 3
    (folder / "MLmodel").write_text(WRITTEN.read_text().replace("data: model.onnx", "data: b/model.onnx", 1))
    await rig.models.load("scored")
    assert rig.factor("scored") == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("  onnx:", "  sklearn:"), "has no onnx flavour (it has: sklearn, python_function)"),
        (("data: model.onnx", "data: ../../../etc/passwd"), "has to be a path inside the model's folder"),
        (("data: model.onnx", "data: /etc/passwd"), "has to be a path inside the model's folder"),
        (("flavors:", "flavors: ["), "is not valid YAML"),
        (("data: model.onnx", "data: other.onnx"), "other.onnx"),
    ],
)
def test_what_cannot_be_served(root: Path, change: tuple[str, str], said: str) -> None:
    add_mlflow(root / "scored", 3, WRITTEN.read_text().replace(*change, 1))
    with pytest.raises(ConfigError) as caught:
        Rig(root)
    assert said in str(caught.value)
