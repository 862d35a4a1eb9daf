"""The stages of a long measurement as one progress."""

from collections.abc import Sequence

from shortflow.typing import Report

__all__ = ["Stages"]

UNITS = 100  # of a stage


class Stages:
    """Stages with shares of the whole.

    Args:
        shares: how long each stage takes, in any unit.
        report: is told (done, in all).
    """

    def __init__(self, shares: Sequence[float], report: Report | None) -> None:
        self.ends = [sum(shares[: k + 1]) / sum(shares) for k in range(len(shares))]
        self.report, self.stage = report, -1

    def next(self) -> Report:
        """The report of the next stage."""
        self.stage += 1
        first = self.ends[self.stage - 1] if self.stage else 0.0
        last, total = self.ends[self.stage], UNITS * len(self.ends)

        def told(done: int, of: int) -> None:
            if self.report is not None:
                self.report(round(total * (first + (last - first) * done / max(1, of))), total)

        told(0, 1)
        return told

    def done(self) -> None:
        if self.report is not None:
            self.report(UNITS * len(self.ends), UNITS * len(self.ends))
