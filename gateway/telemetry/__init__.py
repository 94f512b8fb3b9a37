"""Metrics: the only room that knows Prometheus."""

from gateway.telemetry.telemetry import Telemetry

__all__ = ["Telemetry"]
