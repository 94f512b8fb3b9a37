"""The model repository, ONNX sessions, and when a run may happen on the loop. Only this room knows ONNX Runtime."""

import os

# Releases of ONNX Runtime for Linux report usage to their makers unless this is set before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from gateway.inference.loading import ModelsNotLoaded
from gateway.inference.model import Model, ModelFacts, ModelState, Swap
from gateway.inference.repository import ModelRepository, RepositoryOptions
from gateway.inference.runner import Runner
from gateway.inference.session import InferenceOptions

__all__ = [
    "InferenceOptions",
    "Model",
    "ModelFacts",
    "ModelRepository",
    "ModelState",
    "ModelsNotLoaded",
    "RepositoryOptions",
    "Runner",
    "Swap",
]
