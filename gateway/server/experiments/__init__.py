"""Experiments while they run: who gets which variant, live edits, canaries, and what is shown of them."""

from gateway.server.experiments.live import Live
from gateway.server.experiments.routes import Route, deal
from gateway.server.experiments.wiring import Experiments

__all__ = ["Experiments", "Live", "Route", "deal"]
