"""Networks as values: what to build, apart from what the data and the method decide.

The shape and the classes come from the data, the second time and the log-variance head from the method; they are the
arguments of `build`. Everything else about a network is a field of its config, checked when the config is made.
"""

import difflib
from dataclasses import dataclass

from torch import nn

from shortflow.errors import ConfigError, ShortflowError
from shortflow.nn import mlp, sit

__all__ = ["MLPConfig", "NetworkConfig", "SiTConfig", "parameter_count"]


@dataclass(frozen=True, kw_only=True)
class SiTConfig:
    """A SiT for images of any shape.

    Attributes:
        size: a key of `shortflow.nn.SIZES`.
        width, depth, heads: replace those of the size where given.
        patch: side of a patch.
        qk_norm: normalise queries and keys.
        dropout: probability of dropping an entry of what attention or MLP adds.
        mlp_ratio: hidden units of a block's MLP over the width.

    Raises:
        ConfigError: for an unknown size (naming the nearest) and for every impossible setting.
    """

    size: str = "digits"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int = 2
    qk_norm: bool = False
    dropout: float = 0.0
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.size not in sit.SIZES:
            raise ConfigError(f"unknown size {self.size!r}{_nearest(self.size)}; sizes are {', '.join(sit.SIZES)}")
        depth, width, heads = self.dimensions
        found = sit.faults(
            width=width, depth=depth, heads=heads, patch=self.patch, mlp_ratio=self.mlp_ratio, dropout=self.dropout
        )
        if found:
            raise ConfigError("; ".join(found))

    @property
    def dimensions(self) -> sit.Size:
        """(depth, width, heads), those given in place of those of the size."""
        size = sit.SIZES[self.size]
        return sit.Size(
            depth=size.depth if self.depth is None else self.depth,
            width=size.width if self.width is None else self.width,
            heads=size.heads if self.heads is None else self.heads,
        )

    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
    ) -> nn.Module:
        """The network for images of `shape` (c, h, w).

        Raises:
            ShortflowError: if the shape is not that of an image or the patch does not divide it.
        """
        if len(shape) != 3:
            raise ShortflowError(
                f"a SiT takes images of shape (channels, height, width), got {tuple(shape)}; use an MLP for points"
            )
        depth, width, heads = self.dimensions
        return sit.SiT(
            shape=(shape[0], shape[1], shape[2]),
            patch=self.patch,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=self.mlp_ratio,
            num_classes=num_classes,
            null_class=null_class,
            second_time=second_time,
            log_variance=log_variance,
            qk_norm=self.qk_norm,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """An MLP for points of any dimension: units of a layer, residual blocks, dropout of hidden units.

    Raises:
        ConfigError: for every impossible setting.
    """

    width: int = 128
    depth: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        found = mlp.faults(width=self.width, depth=self.depth, dropout=self.dropout)
        if found:
            raise ConfigError("; ".join(found))

    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
    ) -> nn.Module:
        """The network for points of `shape` (d,).

        Raises:
            ShortflowError: if the shape has more than one axis.
        """
        return mlp.MLP(
            shape=shape,
            width=self.width,
            depth=self.depth,
            num_classes=num_classes,
            null_class=null_class,
            second_time=second_time,
            log_variance=log_variance,
            dropout=self.dropout,
        )


NetworkConfig = SiTConfig | MLPConfig
"""The config of any network here."""


def parameter_count(network: nn.Module) -> int:
    """Number of weights of a network; buffers such as fixed positions are not counted."""
    return sum(weight.numel() for weight in network.parameters())


def _nearest(size: str) -> str:
    # By lower case, so that "xl" finds "XL".
    names = {name.lower(): name for name in sit.SIZES}
    found = difflib.get_close_matches(size.lower(), list(names), n=1, cutoff=0.4)
    return f" (did you mean {names[found[0]]!r}?)" if found else ""
