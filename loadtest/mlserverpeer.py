"""The model of the benchmark as a runtime of MLServer, which `loadtest.infer` starts in MLServer's own Python.

It is the smallest runtime that MLServer's documentation shows, with onnxruntime set up as everywhere in the benchmark.
It imports MLServer and nothing of this repository.
"""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """Runs the graph at the `uri` of the model's settings."""

    async def load(self) -> bool:
        """Called once by MLServer."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        uri = self.settings.parameters.uri
        self._session = onnxruntime.InferenceSession(uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request, one run."""
        (x,) = payload.inputs
        (score,) = self._session.run(None, {"x": NumpyCodec.decode_input(x)})
        outputs = [NumpyCodec.encode_output("score", score)]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)
