"""How the journal's sinks are. Told by the second process, shown by telemetry."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SinkState:
    """One sink since the second process was started."""

    rows: int = 0
    """Rows that it took."""
    refused_rows: int = 0
    """Rows that it will never take, for example since they are too large."""
    dropped_rows: int = 0
    """Rows of segments that were dropped since too much waited."""
    waiting_bytes: int = 0
    """Bytes of segments that wait for it."""
    down: bool = False
    """Its last delivery failed. It is tried again."""
    error: str = ""
    """What the last failure was, also when it is over."""
