"""Batch orders as pure functions of (seed, step, rank, world): nothing to save, nothing to restore.

A permutation is the order of n random 64-bit words keyed by (seed, stream, epoch). The words come from Philox, whose
stream NumPy guarantees for ever, so an order is the same with every version. What the samplers keep is a cache.

`batch_size` is that of all processes together; process `rank` of `world` takes its contiguous share of it.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, UInt64

from shortflow.errors import DataError, ShortflowError

__all__ = ["ClassConsistent", "Shuffled", "coins", "normals"]

Rows = Int64[np.ndarray, "k"]

# First entry of the key of each stream of random words, so that no two streams are the same.
_EPOCHS, _DRAWS, _CLASS_EPOCHS, _COINS, _NORMALS = range(5)

# Class draws are counted in blocks of about this many: a random access to step 10⁶ counts a few dozen of them.
_BLOCK = 1 << 16


def _words(n: int, seed: int, *key: int) -> UInt64[np.ndarray, "n"]:
    bits = np.random.Philox(np.random.SeedSequence(entropy=seed, spawn_key=key))
    return np.asarray(bits.random_raw(n))


def _permutation(n: int, seed: int, *key: int) -> Int64[np.ndarray, "n"]:
    return np.argsort(_words(n, seed, *key), kind="stable")


def coins(n: int, seed: int, step: int) -> Bool[np.ndarray, "n"]:
    """n fair coins, a function of (seed, step): one for each row of a step, all processes together."""
    return _words(n, seed, _COINS, step) >> np.uint64(63) == 1


def normals(rows: range, size: int, seed: int, step: int) -> Float32[np.ndarray, "k d"]:
    """`size` standard normal numbers for each of the rows of a step: functions of (seed, step, row).

    Box & Muller 1958: a word has two uniform numbers, u ∈ (0, 1] and v ∈ [0, 1), of which √(−2 ln u)·(cos 2πv, sin 2πv)
    are two normal ones. With 32 bits each they end at ±6.7.
    """
    half = -(-size // 2)
    words = np.stack([_words(half, seed, _NORMALS, step, row) for row in rows])
    unit = np.float32(2.0**-32)
    length = np.sqrt(-2 * np.log((words >> np.uint64(32)).astype(np.float32) * unit + unit))
    angle = (words & np.uint64(2**32 - 1)).astype(np.float32) * (unit * np.float32(2 * np.pi))
    return np.concatenate([length * np.cos(angle), length * np.sin(angle)], axis=1)[:, :size]


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Every sample once per epoch, in an order new for each epoch; batches run on over the end of an epoch.

    The global order is perm_0 ++ perm_1 ++ …, and step k takes the positions [k·batch_size, (k+1)·batch_size) of it.
    A batch may be larger than the data.

    Attributes:
        n: number of samples.
        batch_size: rows of a step, all processes together; divisible by `world`.
        seed: key of the order, ≥ 0.
        rank, world: this process and the number of processes.

    Raises:
        ShortflowError: if a value is out of range.
    """

    n: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    _epochs: dict[int, Rows] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise DataError(f"a batch order needs at least one sample, got n={self.n}")
        _check(self.batch_size, self.seed, self.rank, self.world)

    def indices(self, step: int) -> Rows:
        """The samples of this process at `step` ≥ 0, (batch_size / world,) int64."""
        _check_step(step)
        share = self.batch_size // self.world
        position = step * self.batch_size + self.rank * share
        parts = []
        while share > 0:
            epoch, start = divmod(position, self.n)
            part = self._epoch(epoch)[start : start + share]
            parts.append(part)
            position, share = position + len(part), share - len(part)
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> Rows:
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = _permutation(self.n, self.seed, _EPOCHS, epoch)
        return self._epochs[epoch]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassConsistent:
    """Groups of rows that share one class; the class of each group is uniform over the classes.

    A class is read without replacement: its images in the order perm_{c,0} ++ perm_{c,1} ++ …, each group going on
    where the last group of the class, on whichever process, has stopped. A group may be larger than the class. Where
    `group` divides a process's batch, the batches of all processes together do not depend on their number.

    Attributes:
        labels: class of each sample, 0…num_classes−1.
        batch_size: rows of a step, all processes together; divisible by `world`.
        seed: key of the order, ≥ 0.
        group: consecutive rows of one class; the last group of a process's batch may be smaller. None: the whole
            batch of the process, so each process has one class a step.
        num_classes: number of classes; None: the largest label plus one.
        rank, world: this process and the number of processes.

    Raises:
        DataError: if a class has no image.
        ShortflowError: if a value is out of range.
    """

    labels: Int[np.ndarray, "n"]
    batch_size: int
    seed: int
    group: int | None = None
    num_classes: int | None = None
    rank: int = 0
    world: int = 1
    _members: list[Rows] = field(init=False, repr=False)
    _sizes: Rows = field(init=False, repr=False)
    _before: list[Rows] = field(init=False, repr=False)
    _starts: dict[int, tuple[Rows, Rows]] = field(init=False, repr=False, default_factory=dict)
    _epochs: dict[int, tuple[int, Rows]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.batch_size, self.seed, self.rank, self.world)
        if self.group is not None and self.group < 1:
            raise ShortflowError(f"group must be at least 1, or None for the whole batch, got {self.group}")
        members = _members(self.labels, self.num_classes)
        share = self.batch_size // self.world
        group = min(share, self.group or share)
        sizes = np.full(-(-share // group), group, dtype=np.int64)
        sizes[-1] = share - group * (len(sizes) - 1)
        object.__setattr__(self, "_members", members)
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_before", [np.zeros(len(members), dtype=np.int64)])

    def indices(self, step: int) -> Rows:
        """The samples of this process at `step` ≥ 0, (batch_size / world,) int64, group after group."""
        _check_step(step)
        block, inside = divmod(step, self._steps_per_block)
        classes, starts = self._block(block)
        first = (inside * self.world + self.rank) * len(self._sizes)
        groups = slice(first, first + len(self._sizes))
        return np.concatenate(
            [
                self._take(int(c), int(start), int(size))
                for c, start, size in zip(classes[groups], starts[groups], self._sizes, strict=True)
            ]
        )

    @property
    def _steps_per_block(self) -> int:
        return max(1, _BLOCK // (self.world * len(self._sizes)))

    def _draws(self, block: int) -> tuple[Rows, Rows]:
        """Class and size of every group of a block of steps, all processes, in the global order."""
        n = self._steps_per_block * self.world
        # The modulo favours a class by less than one part in 10¹⁵.
        classes = _words(n * len(self._sizes), self.seed, _DRAWS, block) % len(self._members)
        return classes.astype(np.int64), np.tile(self._sizes, n)

    def _block(self, block: int) -> tuple[Rows, Rows]:
        """Class of every group of a block, and how many rows of that class were taken before the group."""
        if block not in self._starts:
            while len(self._before) <= block:
                classes, sizes = self._draws(len(self._before) - 1)
                taken = np.bincount(classes, weights=sizes, minlength=len(self._members)).astype(np.int64)
                self._before.append(self._before[-1] + taken)
            classes, sizes = self._draws(block)
            order = np.argsort(classes, kind="stable")
            running = np.cumsum(sizes[order]) - sizes[order]
            first = np.searchsorted(classes[order], classes[order])
            starts = np.empty_like(running)
            starts[order] = running - running[first]
            self._starts.clear()
            self._starts[block] = (classes, starts + self._before[block][classes])
        return self._starts[block]

    def _take(self, label: int, start: int, count: int) -> Rows:
        """The samples at the positions [start, start + count) of the endless order of a class."""
        members = self._members[label]
        parts = []
        while count > 0:
            epoch, offset = divmod(start, len(members))
            if self._epochs.get(label, (-1,))[0] != epoch:
                order = _permutation(len(members), self.seed, _CLASS_EPOCHS, label, epoch)
                self._epochs[label] = (epoch, members[order])
            part = self._epochs[label][1][offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)


def _members(labels: Int[np.ndarray, "n"], num_classes: int | None) -> list[Rows]:
    """The samples of each class, in ascending order."""
    if len(labels) == 0 or labels.min() < 0:
        lowest = "none" if len(labels) == 0 else f"a label {labels.min()}"
        raise DataError(f"class-consistent batches need a label ≥ 0 for every sample, got {lowest}")
    top = int(labels.max()) + 1
    if num_classes is not None and num_classes < top:
        raise DataError(f"label {top - 1} is not one of num_classes={num_classes} classes; labels start at 0")
    counts = np.bincount(labels, minlength=num_classes or top)
    empty = np.flatnonzero(counts == 0)
    if len(empty) > 0:
        raise DataError(
            f"class-consistent batches need an image in every class, but {len(empty)} of {len(counts)} classes have "
            f"none: {', '.join(map(str, empty[:5]))}{'…' if len(empty) > 5 else ''}; "
            "number the classes without gaps, or leave the empty ones out"
        )
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])


def _check(batch_size: int, seed: int, rank: int, world: int) -> None:
    if batch_size < 1:
        raise ShortflowError(f"batch_size must be at least 1, got {batch_size}")
    if seed < 0:
        raise ShortflowError(f"seed must not be negative, got {seed}")
    if not 0 <= rank < world:
        raise ShortflowError(f"rank must be in 0…world−1, got rank {rank} of world {world}")
    if batch_size % world:
        raise ShortflowError(
            f"batch_size {batch_size} cannot be shared evenly by {world} processes; "
            f"take {max(1, batch_size // world) * world} or {(batch_size // world + 1) * world}"
        )


def _check_step(step: int) -> None:
    if step < 0:
        raise ShortflowError(f"step must not be negative, got {step}")
