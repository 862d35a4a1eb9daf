"""Measurements of the training step, each a command: `python -m benchmarks.step`, `.loader`, `.sampling` and so on."""
