"""Measurements, each a command such as `python -m benchmarks.step`; `.report` puts the results into the docs."""
