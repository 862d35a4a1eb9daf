"""Measurements, each a command: `python -m benchmarks.step`, `.scaling`, `.gpu`; `.report` puts them into the docs."""
