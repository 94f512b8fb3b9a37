"""The limits of the Open Inference Protocol that `Predict` has not."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OipOptions:
    """The Open Inference Protocol. Its requests have the limits of `predict`."""

    stream_in_flight_max: int = 64
    """Requests of one ModelStreamInfer call that have no answer yet. Beyond it the stream is read no further until one
    is answered, so the client waits."""
    classes_max: int = 1000
    """How many classes of an output a request may ask for with `classification`."""

    def __post_init__(self) -> None:
        if self.stream_in_flight_max < 1 or self.classes_max < 1:
            raise ValueError("stream_in_flight_max and classes_max must be at least 1")
