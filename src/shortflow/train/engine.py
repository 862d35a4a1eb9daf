"""The one door to accelerate: devices, processes, backward passes, gradient clipping, trackers."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from shortflow.errors import ShortflowError
from shortflow.train.step import TrainStep

__all__ = ["Engine"]


class Engine:
    """One process for now. The data loader and the schedule are not handed over: both are functions of the step.

    Args:
        directory: where trackers write; None for no tracker. TensorBoard is used if it is installed.
    """

    def __init__(self, directory: Path | None = None) -> None:
        tracker = "tensorboard" if directory is not None and importlib.util.find_spec("tensorboard") else None
        # accelerate reads the precision from its own settings unless told; here it is a matter of the step.
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",
            log_with=tracker,
            project_dir=None if directory is None else str(directory),
        )
        if self._accelerator.num_processes > 1:
            raise ShortflowError(
                f"training runs in one process for now, and {self._accelerator.num_processes} were started; leave out "
                "the launcher (accelerate launch, torchrun)"
            )
        self._tracker = tracker

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def prepare(self, step: TrainStep, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The step module and the optimiser, wrapped for the processes at hand."""
        return self._accelerator.prepare(step, optimizer)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    @property
    def asynchronous(self) -> bool:
        """Whether the device works beside the host, so that reading a number from it is a wait."""
        return self.device.type != "cpu"

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> Float[Tensor, ""]:
        """Clip the gradient's norm to `limit` (None: leave it) and return the norm before clipping, on the device."""
        norm = self._accelerator.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        assert isinstance(norm, Tensor)  # it is with engines that clip by themselves that it is not
        return norm

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Hand the numbers among the values to the tracker, which is opened with the first of them."""
        if self._tracker is None:
            return
        if not self._accelerator.trackers:
            self._accelerator.init_trackers(self._tracker)
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self._accelerator.log(numbers, step=step)

    def finish(self) -> None:
        """Close the tracker."""
        self._accelerator.end_training()
