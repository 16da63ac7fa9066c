"""What the package costs, each figure a ratio against a named peer in the same run: `python benchmarks/run.py`."""
