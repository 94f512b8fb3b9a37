"""The Open Inference Protocol v2 and a part of Triton's extension: `grpc_service_pb2`, `model_config_pb2`, stubs."""
