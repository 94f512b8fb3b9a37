"""The public API, version 1: `prediction_pb2`, `features_pb2`, `tensor_pb2` and the stubs of their services."""
