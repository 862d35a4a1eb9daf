"""Pairs of noise and what a teacher makes of it, on disk: the data of reflow.

    x = X_{1,0}(ε)  in `steps` jumps of the teacher;  a network trained on x_t = α_t x + σ_t ε learns straighter paths.

    RUN/pairs/000000.safetensors   eps, x (network units of the student) and label of the first pairs, and so on

Every shard is written whole or not at all and is a function of the settings alone, so an interrupted generation goes on
where it stopped and ends with the same bits, by however many processes. Its header says what it was made with, the
teacher's file included.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shortflow.data import Conditions, Shuffled
from shortflow.errors import CheckpointError, SamplerError, ShortflowError
from shortflow.files import atomic_path
from shortflow.flowmap import FlowMap
from shortflow.guidance import guide
from shortflow.sample import PushForward, grid_times, noise
from shortflow.streams import Streams
from shortflow.typing import Batch, Report

__all__ = ["PairMaker", "Pairs", "check_pairs", "pair_conditions", "pair_labels"]

FORMAT = 1
BATCH = 256  # pairs a pass; a shard's bits depend on it
SHARD = 2**23  # numbers of a shard's images at most, …
ROWS = 1024  # … and pairs


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How many pairs a teacher makes, and how.

    Args:
        count: number of pairs.
        steps: jumps from noise to data (128 in Frans et al., arXiv 2410.12557; Euler steps for flow matching).
        guidance: scale of classifier-free guidance; 1 is none.
        precision: of the stored numbers. Noise is rounded before the teacher sees it, so a pair belongs together.
    """

    count: int = 50_000
    steps: int = 128
    guidance: float = 1.0
    precision: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        for name in ("count", "steps"):
            if getattr(self, name) < 1:
                raise ShortflowError(f"pairs.{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in ("float16", "float32"):
            raise ShortflowError(f"pairs.precision must be 'float16' or 'float32', got {self.precision!r}")


def check_pairs(teacher: FlowMap, settings: Pairs) -> None:
    """Raise `ShortflowError` if the teacher cannot make such pairs; it may be without weights."""
    guided = guide(teacher, settings.guidance)
    if guided.ends == "zero" and settings.steps > 1:
        raise SamplerError(
            f"a pair needs one noise, and in {settings.steps} steps this teacher, which was trained for jumps to the "
            "data only, would add new noise in between; set pairs.steps to 1"
        )
    PushForward().check(guided, grid_times(guided, settings.steps))


def pair_labels(labels: Int[np.ndarray, "n"] | None, count: int, seed: int) -> Int[np.ndarray, "count"] | None:
    """The classes of the pairs: those of the data, in an order of their own, as often as in the data."""
    return None if labels is None else labels[Shuffled(n=len(labels), batch_size=count, seed=seed).indices(0)]


def pair_conditions(conditions: Conditions | None, count: int, seed: int) -> Conditions | None:
    """The vectors or sequences of the pairs, in the order of `pair_labels`."""
    if conditions is None:
        return None
    return conditions.subset(Shuffled(n=len(conditions), batch_size=count, seed=seed).indices(0))


@dataclass(frozen=True, kw_only=True, eq=False)
class PairMaker:
    """The pairs of one teacher in one directory.

    Attributes:
        directory: where the shards are.
        teacher: as it was trained, on its own path and in its own units.
        identity: the SHA-256 of the teacher's file.
        shape: of one sample.
        settings, seed: what the pairs are a function of.
        labels: class of each pair; conditions: its vector or sequence. None: there are none.
        scale, shift: the teacher's data are scale · x + shift.
    """

    directory: Path
    teacher: FlowMap
    identity: str
    shape: tuple[int, ...]
    settings: Pairs = Pairs()
    seed: int = 0
    labels: Int[np.ndarray, "n"] | None = None
    conditions: Conditions | None = None
    scale: float = 1.0
    shift: float = 0.0
    _shards: dict[int, dict[str, Tensor]] = field(init=False, repr=False, default_factory=dict)

    @property
    def rows(self) -> int:
        """Pairs of a shard."""
        return max(1, min(ROWS, SHARD // int(np.prod(self.shape))))

    @property
    def shards(self) -> int:
        return -(-self.settings.count // self.rows)

    def path(self, shard: int) -> Path:
        return self.directory / f"{shard:06d}.safetensors"

    def describe(self, shard: int) -> dict[str, Any]:
        """The header of a shard."""
        return {
            "format": FORMAT,
            "teacher": self.identity,
            **asdict(self.settings),
            "seed": self.seed,
            "shape": list(self.shape),
            "scale": self.scale,
            "shift": self.shift,
            "first": shard * self.rows,
            "rows": self.rows,
        }

    def missing(self) -> list[int]:
        """The shards that are not there yet.

        Raises:
            CheckpointError: if the directory holds pairs made otherwise.
            ShortflowError: if the teacher cannot make such pairs.
        """
        check_pairs(self.teacher, self.settings)
        return [shard for shard in range(self.shards) if not self._there(shard)]

    def make(
        self,
        report: Report | None = None,
        *,
        missing: Sequence[int] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Make what is missing, or the share of process `rank` of `world` in it. No bit depends on who makes a shard.

        Args:
            report: called after every shard with (pairs that are there, pairs in all); of several processes each takes
                the others to be as far as itself.
            missing: the shards to make, the same for all processes; None: `missing()`.

        Raises:
            CheckpointError: if the directory holds pairs made otherwise.
            ShortflowError: if the teacher cannot make such pairs, or they are not finite numbers of that precision.
        """
        missing = self.missing() if missing is None else missing
        there = self.shards - len(missing)
        for done, shard in enumerate(missing[rank::world], 1):
            tensors = self._made(shard)
            with atomic_path(self.path(shard)) as temporary:
                save_file(tensors, str(temporary), {"shortflow": json.dumps(self.describe(shard))})
            if report is not None:
                report(min((there + done * world) * self.rows, self.settings.count), self.settings.count)

    def check_whole(self) -> None:
        """Raise `CheckpointError` if a shard is not there, though all were made."""
        for shard in range(self.shards):
            if not self.path(shard).is_file():
                raise CheckpointError(
                    f"{self.path(shard)} is not there, though another process has made it; all processes must see the "
                    "same --out"
                )

    def _there(self, shard: int) -> bool:
        """Whether the shard is there. Raises `CheckpointError` if it is another one."""
        path = self.path(shard)
        if not path.is_file():
            return False
        try:
            with safe_open(str(path), "pt") as opened:
                found = json.loads((opened.metadata() or {})["shortflow"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); remove this file, and it is made again") from error
        wanted = self.describe(shard)
        changed = [
            f"{name} was {found.get(name)}, is {wanted[name]}" for name in wanted if found.get(name) != wanted[name]
        ]
        if changed:
            raise CheckpointError(
                f"{path} holds pairs made otherwise ({'; '.join(changed)}); start a new run in another directory, or "
                f"remove {self.directory}"
            )
        return True

    @torch.no_grad()
    def _made(self, shard: int) -> dict[str, Tensor]:
        first = shard * self.rows
        count = min(self.rows, self.settings.count - first)
        parts = [self._part(first + at, min(BATCH, count - at)) for at in range(0, count, BATCH)]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name in ("eps", "x"):
            if not bool(tensors[name].isfinite().all()):
                raise ShortflowError(
                    f"the teacher made values of {name} that {self.settings.precision} cannot hold, or that are no "
                    "numbers; set pairs.precision to float32, or look at its samples"
                )
        return tensors

    def _part(self, first: int, count: int) -> dict[str, Tensor]:
        store = torch.float16 if self.settings.precision == "float16" else torch.float32
        # Another seed than that of samples: these must not be the pairs that the student was trained on.
        seed = Streams(seed=self.seed).seed_of("pairs")
        eps = noise(seed, first, count, self.shape).to(store)
        flow = guide(self.teacher, self.settings.guidance).eval()
        like = next(flow.parameters(), torch.empty(0))
        start = eps.to(like.device, torch.promote_types(torch.float32, like.dtype))
        label = None if self.labels is None else torch.from_numpy(self.labels[first : first + count])
        if self.conditions is not None:
            label = torch.from_numpy(self.conditions.take(np.arange(first, first + count)))
        told = label.to(like.device) if label is not None and flow.conditional else None
        y = PushForward().run(flow, start, grid_times(flow, self.settings.steps), told)
        made = {"eps": eps[0], "x": ((y - self.shift) / self.scale).to("cpu", store)}
        return made if label is None else {**made, "label": label}

    def batch(self, rows: Int[np.ndarray, "k"]) -> Batch:
        """The pairs at `rows`, in float32.

        Raises:
            CheckpointError: if a shard is missing or damaged.
        """
        picked: dict[str, list[Tensor]] = {}
        for row in rows.tolist():
            shard, at = divmod(row, self.rows)
            for name, tensor in self._shard(shard).items():
                picked.setdefault(name, []).append(tensor[at])
        x, eps = (torch.stack(picked[name]).float() for name in ("x", "eps"))
        return Batch(x=x, eps=eps, label=torch.stack(picked["label"]) if "label" in picked else None)

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._shards:
            try:
                self._shards[shard] = load_file(str(self.path(shard)))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{self.path(shard)} cannot be read ({error}); remove this file and resume: it is made again"
                ) from error
        return self._shards[shard]
