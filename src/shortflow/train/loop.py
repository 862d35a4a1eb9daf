"""The training loop: a generator of step records. Whatever looks at a run (logs, previews, checkpoints) consumes it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.optimizer import Optimizer
from shortflow.streams import Streams
from shortflow.train.ema import Average
from shortflow.train.engine import Engine
from shortflow.train.settings import TrainSettings
from shortflow.train.step import TrainStep
from shortflow.typing import Batch, LossTerms, Progress

__all__ = ["BINS", "StepRecord", "build_optimizer", "learning_rate", "train"]

BINS = 8  # of the time axis, for the loss by time


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did. `step` counts from 1; `images` is the clock after the step.

    Attributes:
        batch: images of the step.
        loss, grad_norm, lr: of the step (the norm before clipping).
        logs: mean over the rows that have the quantity.
        by_time: mean error per bin of t (BINS equal bins of [0, 1]), None where a bin is empty.
        seconds: wall time of the step.
    """

    step: int
    images: int
    batch: int
    loss: float
    grad_norm: float
    lr: float
    logs: Mapping[str, float]
    by_time: tuple[float | None, ...]
    seconds: float


def learning_rate(optimizer: Optimizer, share: float) -> float:
    """The learning rate at a share of the run: lr, with a linear rise at the start and a linear fall at the end."""
    rise = 1.0 if optimizer.warmup == 0 else min(1.0, share / optimizer.warmup)
    fall = 1.0 if optimizer.cooldown == 0 else min(1.0, (1 - share) / optimizer.cooldown)
    return optimizer.lr * rise * fall


def build_optimizer(step: TrainStep, settings: Optimizer) -> torch.optim.Optimizer:
    """The algorithm of the settings over the trained weights, in its fused form where torch has one."""
    weights = [p for p in step.flow.parameters() if p.requires_grad]
    shared: dict[str, Any] = {
        "lr": settings.lr,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.algorithm == "radam":
        return torch.optim.RAdam(weights, **shared)
    algorithm = torch.optim.Adam if settings.algorithm == "adam" else torch.optim.AdamW
    return algorithm(weights, **shared, fused=True)


def train(
    module: TrainStep,
    settings: TrainSettings,
    optimizer: Optimizer,
    batch_of: Callable[[int], Batch],
    *,
    engine: Engine | None = None,
    adamw: torch.optim.Optimizer | None = None,
    averages: tuple[Average, ...] = (),
    start: int = 0,
) -> Iterator[StepRecord]:
    """Train from step `start` to the end of the budget, yielding a record after every step.

    At the yield of step k all weights, averages and the teacher are those after k steps, so a consumer may save,
    sample or stop at any record.

    Args:
        batch_of: the batch of step k (from 0), a pure function of k.
        engine, adamw: a new one each, unless given (to resume).
        averages: averages of the weights to keep up to date.

    Raises:
        ShortflowError: if the loss or its gradient is not finite, or a batch has the wrong size; the weights, averages
            and optimiser are those of the step before.
    """
    engine = engine or Engine()
    wrapped, stepper = engine.prepare(module, adamw or build_optimizer(module, optimizer))
    for average in (*averages, *module.averages.values()):
        average.module.to(engine.device)
    for model in module.frozen:
        model.to(engine.device)
    total = settings.steps
    for k in range(start, total):
        began = time.perf_counter()
        wrapped.train()  # a consumer may have looked at the network in evaluation mode
        progress = Progress(images=k * settings.batch, total=total * settings.batch, batch=settings.batch)
        batch = _batch(batch_of(k), settings.batch, k, engine.device)
        draw = module.draw(batch, Streams(seed=settings.seed, images=progress.images), progress)
        loss, terms = wrapped(draw)
        value = float(loss.detach())
        _check_finite("loss", value, k)
        engine.backward(loss)
        norm = engine.clip(module.flow.parameters(), optimizer.clip)
        _check_finite("norm of the gradient", norm, k)
        lr = learning_rate(optimizer, (k + 1) / total)
        for group in stepper.param_groups:
            group["lr"] = lr
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        after = Progress(images=progress.images + settings.batch, total=progress.total, batch=settings.batch)
        module.update_teacher(after)
        for average in averages:
            average.update(module.flow, k)
        yield StepRecord(
            step=k + 1,
            images=after.images,
            batch=settings.batch,
            loss=value,
            grad_norm=norm,
            lr=lr,
            logs=_means(terms),
            by_time=_by_time(terms.logs["error"], draw.times.t),
            seconds=time.perf_counter() - began,
        )


def _batch(batch: Batch, size: int, step: int, device: torch.device) -> Batch:
    """The batch on the device."""
    if len(batch.x) != size:
        raise ShortflowError(
            f"the batch of step {step + 1} has {len(batch.x)} rows, but train.batch is {size}, by which images are "
            "counted; make them equal"
        )
    label, eps = (None if value is None else value.to(device) for value in (batch.label, batch.eps))
    return Batch(x=batch.x.to(device), label=label, eps=eps)


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise ShortflowError(
            f"the {what} is {value} at step {step + 1}; the weights are those after step {step}. "
            "Try a smaller learning rate, gradient clipping (optimizer.clip) or a tangent warm-up"
        )


def _means(terms: LossTerms) -> dict[str, float]:
    """The mean of each logged quantity over the rows that have it; quantities that no row has are left out."""
    means = {name: float(values.detach().float().nanmean()) for name, values in terms.logs.items()}
    return {name: value for name, value in means.items() if not math.isnan(value)}


def _by_time(error: Tensor, t: Tensor) -> tuple[float | None, ...]:
    index = (t * BINS).long().clamp(0, BINS - 1)
    sums = torch.zeros(BINS, device=t.device).index_add(0, index, error.float()).tolist()
    counts = torch.bincount(index, minlength=BINS).tolist()
    return tuple(s / c if c else None for s, c in zip(sums, counts, strict=True))
