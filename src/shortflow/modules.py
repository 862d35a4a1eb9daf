"""The parts of a network, found once: a walk through all of them in every step takes longer than a small layer."""

from torch import Tensor, nn

__all__ = ["Parts"]


class Parts:
    """The modules of a tree as they stand now. Their weights and buffers are looked up anew each time.

    Modules that are exchanged later are not seen; weights and buffers that are, are.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = tuple(module.modules())

    @property
    def parameters(self) -> list[Tensor]:
        """`list(module.parameters())`: each once, in that order."""
        return list(dict.fromkeys(p for part in self._modules for p in part._parameters.values() if p is not None))

    @property
    def buffers(self) -> list[Tensor]:
        """`list(module.buffers())`: each once, in that order."""
        return list(dict.fromkeys(b for part in self._modules for b in part._buffers.values() if b is not None))

    @property
    def training(self) -> bool:
        """Whether every one of them is in training mode."""
        return all(part.training for part in self._modules)
