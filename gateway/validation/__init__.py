"""Columns against what they were in training: the reference profile, and the checks before the model. Pure."""
