"""The server that the benchmark compares with: what a good engineer writes by hand in a day."""
