"""What all networks here share: the conditioning vector, the heads, and the contract of `shortflow.nn`.

    c = E_t(time) + E_2(second) + E_y(label) + E_g(guidance)
    h = trunk(x, c),    output = output(h, c),    velocity = velocity(h, c),    log-variance = w · E_t(time) + w_0

The label is a class or a vector. A sequence is no part of c: its tokens, and which of them are there, are handed to the
trunk and the heads beside c. Each part exists only where it was asked for, so that no weight goes without a gradient.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shortflow.dropout import drops
from shortflow.dual import beside
from shortflow.errors import ShortflowError
from shortflow.nn.checkpointing import checkpointed
from shortflow.nn.embeddings import (
    GuidanceEmbedding,
    LabelEmbedding,
    SequenceEmbedding,
    TimeEmbedding,
    VectorEmbedding,
    full_precision,
    precise_linear,
)
from shortflow.typing import Condition, condition_words

__all__ = ["ConditionedNetwork"]

Time = Float[Tensor, "b"]
Second = Float[Tensor, "b"] | None
Label = Condition | None
Guidance = Float[Tensor, "b 3"] | None


class ConditionedNetwork(nn.Module, ABC):
    """Base of the networks: holds the embeddings and checks what is passed against what was built.

    A network is its `trunk` and the heads `output` and `velocity`, which read what the trunk returns.

    Args:
        shape: shape of one point.
        width: length of the conditioning vector.
        num_classes: number of classes; 0 for an unconditional network, which has no table of classes at all.
        condition: shape of a vector (d,) or a sequence of up to n tokens (n, d) that the network is told in place of a
            class; None for neither.
        null_class: add what stands for no class, or no condition; a missing label then means this.
        second_time: take a second time.
        log_variance: add the head of `log_variance`; it starts at zero.
        guidance: take the guidance (scale, low, high) of each row.
        velocity_head: add a head for the instantaneous velocity, see `both`; it starts at zero, too.
        embedding: makes the embedding of a time, given the width.

    Attributes:
        shape, num_classes, second_time, guidance, velocity_head: as given; condition_shape is `condition`.
        checkpoint: run blocks again in the backward pass instead of keeping their activations; False until it is set.
        null_label: what stands for none: index of the "no class" row (= num_classes), NaN for conditions; or None.

    Raises:
        ShortflowError: for a negative number of classes, a null class without classes, or a condition that is
            impossible
            or that this network does not take.
    """

    sequences: ClassVar = False
    """Whether the network can be told a sequence; else it is told vectors only."""

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        width: int,
        num_classes: int,
        null_class: bool,
        condition: tuple[int, ...] | None = None,
        second_time: bool,
        log_variance: bool,
        guidance: bool = False,
        velocity_head: bool = False,
        embedding: Callable[[int], TimeEmbedding] = TimeEmbedding,
    ) -> None:
        super().__init__()
        self.checkpoint = False
        if num_classes < 0:
            raise ShortflowError(f"num_classes must be 0 (unconditional) or positive, got {num_classes}")
        if condition is not None:
            self._check_condition(condition, num_classes)
        elif null_class and num_classes == 0:
            raise ShortflowError("null_class=True needs classes: set num_classes, or null_class=False")
        self.shape, self.num_classes, self.second_time = tuple(shape), num_classes, second_time
        self.guidance, self.velocity_head = guidance, velocity_head
        self.condition_shape = condition
        none = num_classes if condition is None else math.nan
        self.null_label: int | float | None = none if null_class else None
        self.t_embedder = embedding(width)
        self.r_embedder = embedding(width) if second_time else None
        self.y_embedder: LabelEmbedding | VectorEmbedding | SequenceEmbedding | None = None
        if condition is not None:
            made = VectorEmbedding if len(condition) == 1 else SequenceEmbedding
            self.y_embedder = made(condition, width, null=null_class)
        elif num_classes:
            self.y_embedder = LabelEmbedding(num_classes, width, null=null_class)
        self.g_embedder = GuidanceEmbedding(width) if guidance else None
        self.logvar_linear = nn.Linear(width, 1) if log_variance else None
        if self.logvar_linear is not None:
            nn.init.zeros_(self.logvar_linear.weight)
            nn.init.zeros_(self.logvar_linear.bias)

    # ------------------------------------------------------------------------------------------- what a network is

    @abstractmethod
    def trunk(self, x: Tensor, c: Float[Tensor, "b d"]) -> Tensor:
        """What the heads read, for points x and conditioning vectors c in the precision of the weights.

        A network that takes `sequences` is handed the tokens and which of them are there as well, after c, here and in
        the heads.
        """

    @abstractmethod
    def output(self, h: Tensor, c: Float[Tensor, "b d"]) -> Tensor:
        """The output, of the shape of x, from what the trunk returned."""

    @abstractmethod
    def velocity(self, h: Tensor, c: Float[Tensor, "b d"]) -> Tensor:
        """The velocity, of the shape of x, from what the trunk returned; only where that head was built."""

    def run(self, block: nn.Module, *args: Tensor) -> Tensor:
        """A block's result, with or without keeping its activations; for `trunk` and the heads."""
        return checkpointed(block, *args) if self.checkpoint else block(*args)

    # ------------------------------------------------------------------------------------------------ the contract

    def forward(
        self,
        x: Float[Tensor, "b *point"],
        time: Time,
        second: Second = None,
        label: Label = None,
        guidance: Guidance = None,
    ) -> Float[Tensor, "b *point"]:
        """The output of the network, of the shape of x.

        Raises:
            ShortflowError: if x has another shape, or an input is missing or was not built for.
        """
        c, *tokens = self._conditioned(x, time, second, label, guidance)
        return self.output(self.trunk(x, c, *tokens), c, *tokens)

    def both(
        self,
        x: Float[Tensor, "b *point"],
        time: Time,
        second: Second = None,
        label: Label = None,
        guidance: Guidance = None,
    ) -> tuple[Float[Tensor, "b *point"], Float[Tensor, "b *point"]]:
        """(output, velocity): what `forward` returns, and the estimate of the velocity by the auxiliary head.

        Dropout sees the masks of `forward` in the output, because the velocity is computed last. Where only the
        output is differentiated (`shortflow.dual`), the layers of the velocity alone run without tangents.

        Raises:
            ShortflowError: as `forward`, and if the network was built without the head.
        """
        self._check_head()
        c, *tokens = self._conditioned(x, time, second, label, guidance)
        h = self.trunk(x, c, *tokens)
        return self.output(h, c, *tokens), self.velocity(beside(h), beside(c), *tokens)

    def velocity_alone(
        self,
        x: Float[Tensor, "b *point"],
        time: Time,
        second: Second = None,
        label: Label = None,
        guidance: Guidance = None,
    ) -> Float[Tensor, "b *point"]:
        """The velocity of `both`, the same numbers without the layers that only the output needs.

        Raises:
            ShortflowError: as `both`.
        """
        self._check_head()
        if drops(self):  # the head takes the masks that come after those of the output
            return self.both(x, time, second, label, guidance)[1]
        c, *tokens = self._conditioned(x, time, second, label, guidance)
        return self.velocity(self.trunk(x, c, *tokens), c, *tokens)

    def _check_head(self) -> None:
        if not self.velocity_head:
            raise ShortflowError("the network has no velocity head: build the network with velocity_head=True")

    def log_variance(
        self, time: Time, second: Second = None, label: Label = None, guidance: Guidance = None
    ) -> Float[Tensor, "b"]:
        """The learned log-variance of the error at `time`, in float32 at least; zero before training.

        It depends on the first time only; the other inputs are there so that every network is called alike.

        Raises:
            ShortflowError: if the network was built without the head.
        """
        if self.logvar_linear is None:
            raise ShortflowError("the network has no log-variance head: build the network with log_variance=True")
        with full_precision(time.device):
            return precise_linear(self.logvar_linear, self.t_embedder(time)).squeeze(1)

    def silence_second(self) -> None:
        """Make the network independent of the second time, exactly, until training changes that.

        For a few-step model that starts from the weights of a flow-matching model, which knows one time.

        Raises:
            ShortflowError: if the network takes one time only.
        """
        if self.r_embedder is None:
            raise ShortflowError("the network takes one time only: there is no second time to silence")
        self.r_embedder.silence()

    # ------------------------------------------------------------------------------------------------- conditioning

    def condition(
        self, time: Time, second: Second = None, label: Label = None, guidance: Guidance = None
    ) -> Float[Tensor, "b d"]:
        """c = E_t(time) + E_2(second) + E_y(label) + E_g(guidance), in float32 at least; a sequence is no part of it.

        Raises:
            ShortflowError: if an input is missing or not one the network was built for.
        """
        c = self.t_embedder(time)
        if self.r_embedder is not None:
            if second is None:
                raise ShortflowError(
                    "the network takes a second time: pass second=, or build the network with second_time=False"
                )
            c = c + self.r_embedder(second)
        elif second is not None:
            raise ShortflowError("the network takes one time only: build it with second_time=True to pass second=")
        if self.y_embedder is None and label is not None:
            raise ShortflowError(
                "the network is unconditional (num_classes=0): pass label=None, or build it with num_classes"
            )
        if isinstance(self.y_embedder, LabelEmbedding | VectorEmbedding):
            c = c + self.y_embedder(self._known(label, time))
        if self.g_embedder is not None:
            if guidance is None:
                raise ShortflowError(
                    "the network takes a guidance: pass guidance= (scale, low, high) for each row, where (1, 0, 1) "
                    "means none, or build the network with guidance=False"
                )
            c = c + self.g_embedder(guidance)
        elif guidance is not None:
            raise ShortflowError("the network takes no guidance: build it with guidance=True to pass guidance=")
        return c

    def _conditioned(
        self, x: Tensor, time: Tensor, second: Second, label: Label, guidance: Guidance
    ) -> tuple[Tensor, ...]:
        """(c,), or (c, tokens, which of them are there) of a sequence."""
        if tuple(x.shape[1:]) != self.shape:
            raise ShortflowError(
                f"the network was built for points of shape {self.shape}, got a batch of shape {tuple(x.shape)}"
            )
        # float32 until here, then the precision of the weights (autocast lowers it from there on)
        c = self.condition(time, second, label, guidance).to(self.t_embedder.dtype)
        if not isinstance(self.y_embedder, SequenceEmbedding):
            return (c,)
        tokens, there = self.y_embedder(self._known(label, time))
        return c, tokens.to(c.dtype), there

    def _known(self, label: Tensor | None, time: Tensor) -> Tensor:
        if label is not None:
            return label
        if self.null_label is None:
            told = f"has {self.num_classes} classes and no null class"
            if self.condition_shape is not None:
                told = f"is told {condition_words(self.condition_shape)} and has nothing that stands for none"
            raise ShortflowError(f"the network {told}: pass label=, or build the network with null_class=True")
        # Made of a number, not of `time`: that may be a pair of a value and its tangent, which this has none of.
        kind = torch.long if self.condition_shape is None else torch.float32
        shape = (time.shape[0], *(self.condition_shape or ()))
        return torch.full(shape, self.null_label, dtype=kind, device=time.device)

    def _check_condition(self, condition: tuple[int, ...], num_classes: int) -> None:
        """Raise `ShortflowError` for a condition that the network cannot be told."""
        if num_classes:
            raise ShortflowError(
                f"a network is told a class or another condition, got num_classes={num_classes} and condition="
                f"{tuple(condition)}; give one of them"
            )
        if len(condition) not in (1, 2) or min(condition) < 1:
            raise ShortflowError(
                f"a condition is a vector of shape (d,) or a sequence of tokens of shape (n, d), got {tuple(condition)}"
            )
        if len(condition) == 2 and not self.sequences:
            raise ShortflowError(
                f"a {type(self).__name__} is told a vector, and the condition is {condition_words(tuple(condition))}: "
                "use a SiT, whose tokens attend to it, or make one vector of the sequence"
            )
