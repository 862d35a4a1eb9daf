"""Measurements, each a command such as `python -m benchmarks.step`; `.report` puts the results into the docs."""

from shortflow.memory import keep_memory

keep_memory()  # as the commands of shortflow do, before anything makes a tensor
