"""Measurements: ours, the peer and the limit in one run. `python -m benchmarks.NAME --json FILE [--quick]`."""
