"""Named random streams: each a function of (seed, images seen, process, name). Adding one does not shift the others."""

import hashlib
from dataclasses import dataclass

import torch

__all__ = ["Streams", "seed_of"]


def seed_of(seed: int, images: int, rank: int, name: str) -> int:
    """`Streams(seed=seed, images=images, rank=rank).seed_of(name)`, for who asks once an image."""
    digest = hashlib.blake2b(f"{seed}/{images}/{rank}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The random streams at one moment of a run. A run resumed at `images` is the run uninterrupted."""

    seed: int = 0
    images: int = 0
    rank: int = 0

    def seed_of(self, name: str) -> int:
        """A 63-bit seed for the stream `name`."""
        return seed_of(self.seed, self.images, self.rank, name)

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator at the start of the stream `name`; its numbers are the same for every device."""
        return torch.Generator().manual_seed(self.seed_of(name))
