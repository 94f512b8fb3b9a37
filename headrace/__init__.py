"""Code that protoc generated from proto/, and nothing else. `make stubs` writes it."""
