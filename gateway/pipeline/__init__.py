"""The story of a prediction, told for every request that has arrived at once."""

from gateway.pipeline.lane import Answers, Sink
from gateway.pipeline.pipeline import Pipeline, PipelineOptions

__all__ = ["Answers", "Pipeline", "PipelineOptions", "Sink"]
