"""Manifest + catalogue + graph signature -> `FeaturePlan`: everything that has a name is resolved once, at load."""

from gateway.plan.compiler import PlanError, compile_plan
from gateway.plan.manifest import Manifest
from gateway.plan.plan import Assembled, FeaturePlan

__all__ = ["Assembled", "FeaturePlan", "Manifest", "PlanError", "compile_plan"]
