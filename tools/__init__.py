"""What `make` and CI run on the repository. Nothing here is installed."""
