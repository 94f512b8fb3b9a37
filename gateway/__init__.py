"""The server: entity ids in, predictions out.

The folders are the rooms of the architecture, and imports go one way:
server -> transport | pipeline -> inference | telemetry -> plan -> records.
"""
