"""The Open Inference Protocol v2 and Triton's extension to it: the service `inference.GRPCInferenceService`.

    ModelInfer, ModelStreamInfer ──▶ `infer`: decode (`form`, `request`) ──▶ pipeline ──▶ encode (`encoder`)
    everything else ──▶ `service`: coroutines on what the repository and `statistics` know

Messages of the standard stay in this room.
"""

from gateway.server.oip.access import Access
from gateway.server.oip.infer import METHOD, InferHandler
from gateway.server.oip.options import OipOptions
from gateway.server.oip.service import SERVICE, InferenceService
from gateway.server.oip.statistics import Statistics
from gateway.server.oip.stream import Streams

__all__ = ["Access", "InferHandler", "InferenceService", "METHOD", "OipOptions", "SERVICE", "Statistics", "Streams"]
