"""The door to accelerate: devices, processes, backward passes, gradient clipping. Trackers have another."""

import atexit
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from shortflow.errors import DataError, ShortflowError
from shortflow.train.launcher import SHARD, asked_for, refuse
from shortflow.train.shards import shard, whole
from shortflow.train.step import TrainStep

__all__ = ["PATIENCE", "Engine"]

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long hosts wait for each other: one may have hours of work (shards, chunks of images) that others have not. Of a
process that dies they hear at once; torch's own limit is half an hour."""


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Within the context the environment has no such variable."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


class Engine:
    """The device and the processes of a run: one, or as many as a launcher (accelerate launch, torchrun) has started.

    The data loader and the schedule are not handed over to accelerate: both are functions of the step.

    Args:
        sharded: let each process hold a part of weights, gradients and moments (FSDP2) instead of all of them; also
            where `accelerate launch --use_fsdp` asks for it. Nothing with one process.

    Attributes:
        rank, world: the number of this process, from 0, and of all processes.
        main: whether this is the process that writes files.

    Raises:
        ConfigError: if the launcher asks for another engine, see `shortflow.train.launcher`.
    """

    def __init__(self, *, sharded: bool = False) -> None:
        refuse()
        sharded |= asked_for(SHARD)
        # Sharding is done here: accelerate would do it to an optimiser that is there before.
        with _hidden(SHARD):
            # What accelerate is not told it reads from the launcher: precision and compiler are a matter of the step,
            # and parts of a batch one of the loop, which weighs each by its share.
            self._accelerator = Accelerator(
                cpu=not torch.cuda.is_available(),
                mixed_precision="no",
                dynamo_plugin=TorchDynamoPlugin(backend="no"),  # pyright: ignore[reportArgumentType]
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                # Buffers never change; gradients need not be held twice.
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
            )
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        self.main = self._accelerator.is_main_process
        self.sharded = sharded and self.world > 1
        # What hosts tell one another must not wait for devices.
        self._prepared: dict[int, tuple[Any, Any]] = {}
        self._hosts: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def shard(self, step: TrainStep) -> None:
        """Divide the weights among the processes, if that is asked for; before an optimiser is made of them."""
        if self.sharded:
            shard(step)

    def prepare(self, step: TrainStep, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The step module and the optimiser, wrapped for the processes at hand; the same each time."""
        return (step, optimizer) if self.sharded else (self._once(step), self._once(optimizer))

    def _once(self, part: T) -> T:
        """What accelerate makes of a part: a second wrapper would exchange its gradients twice."""
        if id(part) not in self._prepared:
            with warnings.catch_warnings():
                # Newer versions of torch have another name for it, which older ones do not know.
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self._prepared[id(part)] = part, self._accelerator.prepare(part)  # held, so that its id stays its own
        return self._prepared[id(part)][1]

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    # -------------------------------------------------------------------------------------------- several processes

    def parts(self, count: int, batch: int) -> tuple[range, int]:
        """(the parts of a batch that this process computes, of how many parts): `count`, or one for each process.

        Raises:
            ShortflowError: if the processes cannot share the parts evenly, or the parts the rows.
        """
        count = self.world if count == 1 else count
        if batch % count:
            raise ShortflowError(
                f"train.batch = {batch} cannot be shared evenly by {count} processes; set train.batch to "
                f"{max(1, batch // count) * count} or {(batch // count + 1) * count}"
            )
        if count % self.world:
            near = sorted({max(1, count // self.world) * self.world, (count // self.world + 1) * self.world})
            raise ShortflowError(
                f"train.parts = {count} cannot be shared evenly by {self.world} processes; set train.parts to "
                f"{' or '.join(map(str, near))}, or start a number of processes that divides {count}"
            )
        each = count // self.world
        return range(self.rank * each, (self.rank + 1) * each), count

    def exchanging(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Within the context gradients are added up; those of the last part are averaged over the processes, too."""
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last or self.world == 1 else self._accelerator.no_sync(wrapped)

    def mean(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The mean of the processes' values, on the device."""
        if self.world == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value / self.world

    def gathered(self, value: T) -> list[T]:
        """The values (of JSON) of all processes, in the order of their ranks; waits for all of them."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._hosts)
        return found

    def any(self, value: bool) -> bool:
        """Whether it is so in any process: one number between the hosts, which a step can afford."""
        if self.world == 1:
            return value
        found = torch.tensor(int(value))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._hosts)
        return bool(found)

    def together(self, f: Callable[[], T]) -> T:
        """f() in every process. Where it fails in one, it fails in all of them, so that nobody waits for anybody.

        Raises:
            ShortflowError, OSError: that of this process, or `DataError` with the words of another one.
        """
        result, error = None, None
        try:
            result = f()
        except (ShortflowError, OSError) as found:
            error = found
        failures = [text for text in self.gathered(None if error is None else str(error)) if text is not None]
        if error is not None:
            raise error
        if failures:
            raise DataError(failures[0])
        return result  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier(group=self._hosts)

    def in_turn(self, f: Callable[[], T]) -> T:
        """f() in the first process, and then in all others: what it has mended is whole when they look."""
        if not self.main:
            self.wait()
        result = f()
        if self.main:
            self.wait()
        return result

    # ------------------------------------------------------------------------------------------------------- the rest

    @property
    def asynchronous(self) -> bool:
        """Whether the device works beside the host, so that reading a number from it is a wait."""
        return self.device.type != "cpu"

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> Float[Tensor, ""]:
        """Clip the gradient's norm to `limit` (None: leave it) and return the norm before clipping, on the device."""
        if self.sharded:
            return whole(torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))
        norm = self._accelerator.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        assert isinstance(norm, Tensor)  # it is with engines that clip by themselves that it is not
        return norm


@atexit.register
def _part() -> None:
    """Processes that end one after the other must not wait for each other."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
