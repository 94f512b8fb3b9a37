"""The model repository, ONNX sessions, and when a run may happen on the loop. Only this room knows ONNX Runtime."""

from gateway.inference.repository import Model, ModelRepository, ModelsNotLoaded
from gateway.inference.runner import Runner
from gateway.inference.session import InferenceOptions

__all__ = ["InferenceOptions", "Model", "ModelRepository", "ModelsNotLoaded", "Runner"]
