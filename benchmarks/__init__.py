"""Measurements of the training step, each a command: `python -m benchmarks.step`, `.scaling`, `.plugin`, `.gpu`."""
