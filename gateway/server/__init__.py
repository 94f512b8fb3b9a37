"""The edge: gRPC and HTTP in and out, settings, and the only constructor (`app.Gateway`)."""
