"""How long to train, on how much at a time, and how often to look and to save."""

from dataclasses import dataclass
from typing import Literal

from shortflow.errors import ShortflowError

__all__ = ["TrainSettings"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The budget and rhythm of a run. The clock is images seen.

    Args:
        images: the budget, in images.
        batch: images a step, over all processes.
        parts: how many parts a batch is drawn and computed in, each with random streams of its own; the processes share
            them, and each adds the gradients of its parts up. The numbers of a run depend on the parts, and not on how
            many processes share them. Where there are more processes than parts, there is a part for each.
        group: in class-consistent batches, how many consecutive rows share a class; None: a whole part of the batch.
        seed: of the weights, the order of the data and every draw.
        precision: "fp32", or "bf16" for autocast (time and derivatives stay in fp32).
        compile: compile the networks with torch.compile, or the whole loss where objective.layout is "fixed"; where
            that fails the run goes on without, and says so.
        checkpoint: run the blocks of the network again in the backward pass instead of keeping their activations: much
            less memory for one more forward pass, and the same numbers.
        log_every, preview_every, save_every: in steps; 0 turns previews off.
        keep: how many training states to keep, the newest.
        skips: how many of the last 100 steps may be skipped because their loss or gradient is not finite. After one
            more the run goes back to its newest state, once, with half the learning rate; the next time it stops.
        keep_best: a quantity of the log, such as "velocity_error": the state at which it was smallest is kept beyond
            the newest, and its averaged weights as model-best.safetensors. What counts is the line of the log at a
            saved step, the mean over log_every steps, so save_every must be a multiple of log_every.
        trackers: where the lines of the log go beside stats.jsonl: "tensorboard", "wandb", and so on, by their names in
            accelerate; empty for nowhere.
    """

    images: int = 256_000
    batch: int = 128
    parts: int = 1
    group: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    checkpoint: bool = False
    log_every: int = 50
    preview_every: int = 500
    save_every: int = 500
    keep: int = 2
    skips: int = 3
    keep_best: str | None = None
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        for name, least in {
            "images": 1,
            "batch": 1,
            "parts": 1,
            "log_every": 1,
            "preview_every": 0,
            "save_every": 1,
            "keep": 1,
            "skips": 0,
            "seed": 0,
        }.items():
            value = getattr(self, name)
            if value < least:
                raise ShortflowError(f"train.{name} must be at least {least}, got {value}")
        if self.batch % self.parts:
            raise ShortflowError(
                f"train.batch = {self.batch} cannot be split into train.parts = {self.parts} equal parts"
            )
        if self.group is not None and not 1 <= self.group <= self.batch:
            raise ShortflowError(f"train.group must be between 1 and the batch of {self.batch}, got {self.group}")
        if self.keep_best is not None and self.save_every % self.log_every:
            raise ShortflowError(
                f"train.keep_best = {self.keep_best!r} compares the log's lines at saved steps, so train.save_every "
                f"must be a multiple of train.log_every, got {self.save_every} and {self.log_every}"
            )
        if len(set(self.trackers)) != len(self.trackers):
            raise ShortflowError(f"train.trackers must have each name once, got {list(self.trackers)}")
        if self.precision not in ("fp32", "bf16"):
            raise ShortflowError(f"train.precision must be 'fp32' or 'bf16', got {self.precision!r}")

    @property
    def steps(self) -> int:
        """The number of optimiser steps: the budget over the batch, rounded up."""
        return -(-self.images // self.batch)
