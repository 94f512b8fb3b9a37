"""Manifest + catalogue + graph signature -> `FeaturePlan`: everything that has a name is resolved once, at load.

`TensorPlan` is the plan of callers who send the graph's own inputs."""

from gateway.plan.compiler import PlanError, compile_plan
from gateway.plan.manifest import Manifest
from gateway.plan.plan import Assembled, FeaturePlan, Plan
from gateway.plan.tensors import TensorPlan

__all__ = ["Assembled", "FeaturePlan", "Manifest", "Plan", "PlanError", "TensorPlan", "compile_plan"]
