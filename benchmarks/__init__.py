"""Measures Callscope beside its peers: `python -m benchmarks`."""
