"""The story of a prediction, told for every request that has arrived at once."""

from gateway.pipeline.pipeline import Answers, Pipeline, PipelineOptions, Sink

__all__ = ["Answers", "Pipeline", "PipelineOptions", "Sink"]
