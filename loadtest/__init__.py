"""Load tests and the side-by-side benchmark. Nothing here is imported by the server."""
