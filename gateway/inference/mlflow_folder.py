"""A folder that MLflow wrote with its ONNX flavour: which file in it is the graph. MLflow itself is not needed.

`MLmodel` is YAML: `flavors: {onnx: {data: model.onnx, ...}, python_function: {...}}`; `data` is relative to its folder.
"""

from pathlib import Path

from featureclient.schema import ConfigError, document
from gateway.inference.model import Refused


def graph_of(mlmodel: Path) -> Path:
    """The graph that an MLmodel file names. Raises Refused where it has none that can be served."""
    try:
        content = document.read(mlmodel).content
    except ConfigError as error:
        raise Refused(str(error)) from error
    flavors = content.get("flavors")
    onnx = flavors.get("onnx") if isinstance(flavors, dict) else None
    if not isinstance(onnx, dict):
        known = ", ".join(map(str, flavors)) if isinstance(flavors, dict) else "none"
        raise Refused(f"{mlmodel} has no onnx flavour (it has: {known}); log the model with mlflow.onnx.log_model")
    data = onnx.get("data", "model.onnx")
    if not isinstance(data, str) or not data or Path(data).is_absolute() or ".." in Path(data).parts:
        raise Refused(f"{mlmodel}: flavors.onnx.data is {data!r}; it has to be a path inside the model's folder")
    return mlmodel.parent / data
