"""The training loop: a generator of step records. Whatever looks at a run (logs, previews, checkpoints) consumes it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from shortflow.data.loader import pinned
from shortflow.draw import Draw
from shortflow.errors import ShortflowError
from shortflow.modules import Parts
from shortflow.optimizer import Optimizer
from shortflow.prefetch import prefetched
from shortflow.streams import Streams
from shortflow.train.checks import Checks
from shortflow.train.ema import Average
from shortflow.train.engine import Engine
from shortflow.train.failures import NotFinite, Skips, what_is_not_finite
from shortflow.train.record import Measured, StepRecord
from shortflow.train.settings import TrainSettings
from shortflow.train.step import TrainStep
from shortflow.typing import Batch, LossTerms, Progress, Times

__all__ = ["build_optimizer", "learning_rate", "train"]


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
    slowed: float = 1.0,
    skips: Skips | None = None,
) -> Iterator[StepRecord]:
    """Train from step `start` to the end of the budget, yielding a record after every step.

    At the yield of step k all weights, averages and the teacher are those after k steps, so a consumer may save,
    sample or stop at any record. A step whose loss or gradient is not finite moves neither weights nor optimiser
    (averages and teacher follow the weights that there are), and its record says so.

    Args:
        batch_of: the batch of step k (from 0), a pure function of k; called by one background thread, some steps ahead.
            Where this process has n parts of every batch to compute (`Engine.parts`), it is part k mod n of its parts,
            of step k div n.
        engine, adamw: a new one each, unless given (to resume).
        averages: averages of the weights to keep up to date.
        slowed: a factor on the learning rate.
        skips: counts the steps that are skipped; with those before `start`, unless it is a new one.

    Raises:
        ShortflowError: if processes have other weights or gradients than each other, or a derivative is none
            (`shortflow.train.checks`); if a batch has the wrong size.
        NotFinite: if more than `settings.skips` of the last 100 steps were skipped. On a processor it comes from the
            step itself; a device is asked only at the steps of the log, of previews and of states.
    """
    engine = engine or Engine()
    wrapped, stepper = engine.prepare(module, adamw or build_optimizer(module, optimizer))
    for average in (*averages, *module.averages.values()):
        average.module.to(engine.device)
    for model in module.frozen:
        model.to(engine.device)
    checks = Checks(engine, module)
    total, window = settings.steps, _Window(settings, engine, stepper, skips)
    (mine, count), made = engine.parts(settings.parts, settings.batch), _Made(wrapped, engine)
    each, whole, network = len(mine), Parts(wrapped), Parts(module.flow)

    def clock(k: int) -> Progress:
        return Progress(images=k * settings.batch, total=total * settings.batch, batch=settings.batch)

    def drawn(batch: Batch, k: int, part: int) -> Draw:
        """The draw of a part of step k."""
        batch = _batch(batch, settings.batch // count, k, engine.device)
        streams = Streams(seed=settings.seed, images=clock(k).images, rank=part)
        return module.draw(batch, streams, clock(k))

    def draws(step: int) -> dict[int, Draw]:
        """Those of step `step` (from 1), made anew."""
        return {part: drawn(prepared((step - 1) * each + i), step - 1, part) for i, part in enumerate(mine)}

    def prepared(k: int) -> Batch:
        return pinned(batch_of(k)) if engine.device.type == "cuda" else batch_of(k)

    began = time.perf_counter()
    with closing(prefetched(prepared, range(start * each, total * each))) as batches:
        for k in range(start, total):
            if not whole.training:
                wrapped.train()  # a consumer may have looked at the network in evaluation mode
            for i, part in enumerate(mine):
                draw = drawn(next(batches), k, part)
                if i == 0:
                    checks.before(wrapped, draw)
                made.add(draw, share=1 / each, last=i == each - 1)
            checks.after()
            loss, logs, t, r = made.take()
            norm = engine.clip(network.parameters, optimizer.clip)
            measured = Measured.of(k + 1, loss, norm, logs, t, r)
            moves = window.add(measured, loss, norm, draws)
            lr = slowed * learning_rate(optimizer, (k + 1) / total)
            for group in stepper.param_groups:
                group["lr"] = lr
            if moves:
                stepper.step()
            stepper.zero_grad(set_to_none=True)
            after = clock(k + 1)
            module.update_teacher(after)
            for average in averages:
                average.update(module.flow, k)
            yield StepRecord(
                step=k + 1,
                images=after.images,
                batch=settings.batch,
                lr=lr,
                seconds=time.perf_counter() - began,
                measured=measured.numbers if measured.known else measured,
            )
            began = time.perf_counter()


class _Made:
    """What the parts of a step have found, whose gradients are added up as they come."""

    def __init__(self, wrapped: nn.Module, engine: Engine) -> None:
        self.wrapped, self.engine = wrapped, engine
        self.found: list[tuple[Tensor, LossTerms, Times]] = []

    def add(self, draw: Draw, share: float, last: bool) -> None:
        """Loss and gradient of a part that is this share of the process's rows."""
        with self.engine.exchanging(self.wrapped, last):
            loss, terms = self.wrapped(draw)
            loss = loss * share
            self.engine.backward(loss)
        self.found.append((loss.detach(), terms, draw.times))

    def take(self) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """(mean loss of all processes; quantities, t and r of all rows of this one); forgotten afterwards."""
        losses = [loss for loss, _, _ in self.found]
        terms, times = [each for _, each, _ in self.found], [times for _, _, times in self.found]
        self.found.clear()
        loss = self.engine.mean(torch.stack(losses).sum() if len(losses) > 1 else losses[0])
        if len(terms) == 1:
            return loss, dict(terms[0].logs), times[0].t, times[0].r
        names = dict.fromkeys(name for each in terms for name in each.logs)
        nothing = [torch.full_like(each.t, math.nan) for each in times]  # of a quantity that a part has not
        logs = {
            name: torch.cat([each.logs.get(name, none).to(none) for each, none in zip(terms, nothing, strict=True)])
            for name in names
        }
        return loss, logs, torch.cat([each.t for each in times]), torch.cat([each.r for each in times])


class _Window:
    """The steps whose numbers are still on the device, and what keeps the weights from those that are not finite.

    Where the device works beside the host, numbers are read at the steps of the log, of previews and of states, and at
    the last one. The optimiser is told to skip a step by a number on the device (as gradient scaling does it); only its
    fused forms can be told. In all other cases every step is read before the weights move.
    """

    def __init__(
        self, settings: TrainSettings, engine: Engine, stepper: torch.optim.Optimizer, skips: Skips | None
    ) -> None:
        self.settings = settings
        self.skips = skips or Skips(allowed=settings.skips)
        self.steps: list[Measured] = []
        self.optimizer: Any = getattr(stepper, "optimizer", stepper)  # inside the wrapper of several processes
        self.waits = not engine.asynchronous or not self.optimizer.defaults.get("fused")

    def add(self, measured: Measured, loss: Tensor, norm: Tensor, draws: Callable[[int], dict[int, Draw]]) -> bool:
        """Take the numbers of a step before the optimiser's; they are read if it is time. Whether the weights may move.

        Args:
            draws: those of a step, for a failure.

        Raises:
            NotFinite: where too many steps were skipped.
        """
        self.steps.append(measured)
        if not (self.waits or self._due(measured.step)):
            self.optimizer.found_inf = (~torch.isfinite(loss.detach() + norm)).float()
            return True
        self.optimizer.found_inf = None
        Measured.read(self.steps)
        found, self.steps = self.steps, []
        for each in found:
            if each.numbers.skipped and self.skips.add(each.step):
                what, value = what_is_not_finite(each.numbers.loss, each.numbers.grad_norm)
                raise NotFinite(what, value, self.skips.steps, draws(each.step))
        return not measured.numbers.skipped

    def _due(self, step: int) -> bool:
        rhythms = (self.settings.log_every, self.settings.preview_every, self.settings.save_every)
        return step == self.settings.steps or any(every and step % every == 0 for every in rhythms)


def _batch(batch: Batch, size: int, step: int, device: torch.device) -> Batch:
    """The batch, or a part of it, on the device."""
    if len(batch.x) != size:
        raise ShortflowError(
            f"the batch of step {step + 1} has {len(batch.x)} rows, but train.batch is {size} (over train.parts and "
            "processes), by which images are counted; make them equal"
        )
    # A copy that blocks would wait for all that the device has yet to do; from page-locked memory none does.
    x, label, eps = (
        None if value is None else value.to(device, non_blocking=True) for value in (batch.x, batch.label, batch.eps)
    )
    assert x is not None
    return Batch(x=x, label=label, eps=eps)
