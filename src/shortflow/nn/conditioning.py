"""What all networks here share: the conditioning vector and the log-variance head.

    c = E_t(time) + E_2(second) + E_y(label),        log-variance = w · E_t(time) + w_0

Each part exists only where it was asked for, so that no weight goes without a gradient.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shortflow.errors import ShortflowError
from shortflow.nn.embeddings import LabelEmbedding, TimeEmbedding, full_precision, precise_linear

__all__ = ["ConditionedNetwork"]


class ConditionedNetwork(nn.Module):
    """Base of the networks: holds the embeddings and checks what is passed against what was built.

    Args:
        shape: shape of one point.
        width: length of the conditioning vector.
        num_classes: number of classes; 0 for an unconditional network, which has no table of classes at all.
        null_class: add a "no class" row; a missing label then means this row.
        second_time: take a second time.
        log_variance: add the head of `log_variance`; it starts at zero.

    Attributes:
        shape, num_classes, second_time: as given.
        null_label: index of the "no class" row (= num_classes), or None.

    Raises:
        ShortflowError: for a negative number of classes, or a null class without classes.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        width: int,
        num_classes: int,
        null_class: bool,
        second_time: bool,
        log_variance: bool,
    ) -> None:
        super().__init__()
        if num_classes < 0:
            raise ShortflowError(f"num_classes must be 0 (unconditional) or positive, got {num_classes}")
        if null_class and num_classes == 0:
            raise ShortflowError("null_class=True needs classes: set num_classes, or null_class=False")
        self.shape, self.num_classes, self.second_time = tuple(shape), num_classes, second_time
        self.null_label: int | None = num_classes if null_class else None
        self.t_embedder = TimeEmbedding(width)
        self.r_embedder = TimeEmbedding(width) if second_time else None
        self.y_embedder = LabelEmbedding(num_classes, width, null=null_class) if num_classes else None
        self.logvar_linear = nn.Linear(width, 1) if log_variance else None
        if self.logvar_linear is not None:
            nn.init.zeros_(self.logvar_linear.weight)
            nn.init.zeros_(self.logvar_linear.bias)

    def condition(
        self, time: Float[Tensor, "b"], second: Float[Tensor, "b"] | None, label: Int[Tensor, "b"] | None
    ) -> Float[Tensor, "b d"]:
        """c = E_t(time) + E_2(second) + E_y(label), in float32 at least.

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
        if self.y_embedder is not None:
            c = c + self.y_embedder(self._known(label, time))
        elif label is not None:
            raise ShortflowError(
                "the network is unconditional (num_classes=0): pass label=None, or build it with num_classes"
            )
        return c

    def _known(self, label: Tensor | None, time: Tensor) -> Tensor:
        if label is not None:
            return label
        if self.null_label is None:
            raise ShortflowError(
                f"the network has {self.num_classes} classes and no null class: pass label=, "
                "or build the network with null_class=True"
            )
        return torch.full(time.shape, self.null_label, dtype=torch.long, device=time.device)

    def log_variance(
        self, time: Float[Tensor, "b"], second: Float[Tensor, "b"] | None = None, label: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b"]:
        """The learned log-variance of the error at `time`, in float32 at least; zero before training.

        It depends on the first time only; `second` and `label` are there so that every network is called alike.

        Raises:
            ShortflowError: if the network was built without the head.
        """
        if self.logvar_linear is None:
            raise ShortflowError("the network has no log-variance head: build the network with log_variance=True")
        with full_precision(time.device):
            return precise_linear(self.logvar_linear, self.t_embedder(time)).squeeze(1)

    def check_point(self, x: Tensor) -> None:
        """Raises `ShortflowError` if x is not a batch of points of the shape the network was built for."""
        if tuple(x.shape[1:]) != self.shape:
            raise ShortflowError(
                f"the network was built for points of shape {self.shape}, got a batch of shape {tuple(x.shape)}"
            )
