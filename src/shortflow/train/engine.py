"""The one door to accelerate: devices, processes, backward passes, gradient clipping, trackers."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shortflow.train.step import TrainStep

__all__ = ["Engine"]


class Engine:
    """One process for now. The data loader and the schedule are not handed over: both are functions of the step.

    Args:
        directory: where trackers write; None for no tracker. TensorBoard is used if it is installed.
    """

    def __init__(self, directory: Path | None = None) -> None:
        boards = directory is not None and importlib.util.find_spec("tensorboard") is not None
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            log_with="tensorboard" if boards else None,
            project_dir=str(directory) if boards else None,
        )
        if boards:
            self._accelerator.init_trackers("tensorboard")

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def prepare(self, step: TrainStep, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The step module and the optimiser, wrapped for the processes at hand."""
        return self._accelerator.prepare(step, optimizer)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> float:
        """Clip the gradient's norm to `limit` (None: leave it) and return the norm before clipping."""
        norm = self._accelerator.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        return float(norm) if norm is not None else float("nan")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._accelerator.log(dict(values), step=step)

    def finish(self) -> None:
        self._accelerator.end_training()
