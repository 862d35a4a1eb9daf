"""Everything that a GPU has to show, in one command of less than eight minutes: python -m benchmarks.gpu

Correctness first (dual passes, gradients, compiled networks), then which attention kernels run, what a step costs at
the published sizes in each precision, compiled and not, how often it waits for the device, and how fast it samples.
The results are written after every part. A part that fails is recorded with its error and the others go on; what the
budget of time does not reach is recorded as skipped.
"""
