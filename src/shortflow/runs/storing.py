"""A store of latents on its way: which shards are there, which are missing, and what makes it whole."""

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shortflow.arrays import open_array
from shortflow.data.conditions import CONDITIONS, save_conditions
from shortflow.data.encoders import Autoencoder, by_channel
from shortflow.data.latents import (
    META,
    Measured,
    Shard,
    Skipped,
    is_shard,
    read_meta,
    read_shard,
    shard_name,
    write_meta,
    write_shard,
)
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import ConfigError, DataError
from shortflow.files import remove_unfinished, sha256_of
from shortflow.pictures import comparison, save_png
from shortflow.prefetch import prefetched
from shortflow.runs.feeds import Feed, Made
from shortflow.typing import Report

__all__ = ["EncodeSettings", "Encoded", "Store", "Units", "in_units", "some"]

Units = Sequence[float] | Literal["measured"] | None
"""Scales or shifts: one number, one for each channel, "measured" (unit deviation, zero mean), or None: the config's."""

PICTURE = "decoded.png"
_SHOWN = 8  # images that are decoded and compared
_NAMED = 5  # things of a kind in a message


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How to encode.

    Args:
        batch: images a pass; the last bits of a shard depend on it.
        shard: images of a shard, which is what an interruption costs at most, for each process.
        dtype: of the stored numbers. float16 rounds them by 0.05 % at most.
        corrupt: what to do about images that cannot be read: "refuse" lists them at the end, when all others are
            encoded; "skip" leaves them out and lists them in meta.json.
    """

    batch: int = 32
    shard: int = 4096
    dtype: Literal["float16", "float32"] = "float16"
    corrupt: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("batch", "shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in {"dtype": ("float16", "float32"), "corrupt": ("refuse", "skip")}.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A finished store.

    Attributes:
        count, classes: latents, and the names of their classes.
        before: latents that were there before.
        bytes: of the shards.
        skipped: what could not be read.
        latent: what the latents are.
        measured: mean and standard deviation by channel.
        psnr: of decoded latents against the images, and of the mirrors', in dB; None where there are no images.
    """

    count: int
    classes: tuple[str, ...]
    before: int
    bytes: int
    skipped: tuple[Skipped, ...]
    latent: LatentSpec
    measured: tuple[tuple[float, ...], tuple[float, ...]]
    psnr: tuple[float, float] | None


@dataclass(eq=False, kw_only=True)
class Store:
    """A store on its way, as one process sees it."""

    feed: Feed
    autoencoder: Autoencoder
    out: Path
    settings: EncodeSettings
    failed: list[Skipped] = field(default_factory=list)

    @property
    def shards(self) -> int:
        return -(-len(self.feed) // self.settings.shard)

    def path(self, number: int) -> Path:
        return self.out / shard_name(number)

    def rows(self, number: int) -> range:
        first = number * self.settings.shard
        return range(first, min(first + self.settings.shard, len(self.feed)))

    def batches(self, number: int) -> list[range]:
        rows = self.rows(number)
        return [rows[k : k + self.settings.batch] for k in range(0, len(rows), self.settings.batch)]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (2, 1 + self.autoencoder.gaussian, self.autoencoder.channels[1], self.feed.side, self.feed.side)

    def made(self) -> dict[str, Any]:
        """What every shard is made with."""
        classes = self.feed.classes
        return {
            "source": self.feed.name,
            "split": self.feed.split,
            "autoencoder": self.autoencoder.sha256,
            **self.feed.made,
            "dtype": self.settings.dtype,
            "batch": self.settings.batch,
            "shard": self.settings.shard,
            "labelled": self.feed.labelled,
            "classes": None if classes is None else hashlib.sha256("\n".join(classes).encode()).hexdigest(),
        }

    def made_of(self, number: int) -> dict[str, Any]:
        """What a shard is made with and of."""
        rows = self.rows(number)
        return {**self.made(), "first": rows.start, "last": rows.stop - 1, "listing": self.feed.listing(rows)}

    # ------------------------------------------------------------------------------------------------- before writing

    def prepare(self) -> None:
        """Raise `ConfigError` if the folder holds anything else; remove what killed processes have left."""
        remove_unfinished(self.out)
        names = {path.name for path in self.out.iterdir() if not path.name.startswith(".")} - {
            META,
            PICTURE,
            CONDITIONS,
        }
        strange = sorted(name for name in names if not is_shard(name))
        if strange:
            raise ConfigError(
                f"{self.out} holds other files ({some(strange, ', ')}); give the latents a folder of their own"
            )

    def there(self, number: int) -> Shard | None:
        """The shard, if it is there, whole, and what would be written now.

        Raises:
            ConfigError: if it was made with other settings.
        """
        path, made = self.path(number), self.made()
        if not path.is_file():
            return None
        try:
            found = read_shard(path, verify=True)
        except DataError:
            return None  # damaged: it is written anew
        changed = [_change(key, found.made.get(key), made[key]) for key in made if found.made.get(key) != made[key]]
        if changed:
            raise ConfigError(
                f"{self.out} holds latents that were made with {'; '.join(changed)}; give another --out, or remove them"
            )
        if found.made != self.made_of(number):
            return None  # the images have changed
        if self.settings.corrupt == "refuse":
            self.failed += found.skipped
        return found

    def check_space(self, wanted: int, say: Callable[[str], None]) -> None:
        """Say what will be written, and raise `DataError` if there is no space for it."""
        size = wanted * (math.prod(self.row_shape) * np.dtype(self.settings.dtype).itemsize + 8)
        free = shutil.disk_usage(self.out).free
        c, h, w = self.row_shape[2:]
        if wanted:
            say(
                f"{wanted:,} of {len(self.feed):,} images to encode, with their mirrors, to latents {c}×{h}×{w}: "
                f"{size / 2**20:,.1f} MiB in {self.out}, where {free / 2**20:,.0f} MiB are free"
            )
        if size > free:
            raise DataError(
                f"the latents need {size / 2**20:,.1f} MiB in {self.out}, and {free / 2**20:,.1f} MiB are free; make "
                "space, or give another --out (what is encoded can be moved there)"
            )

    # --------------------------------------------------------------------------------------------------------- writing

    def write(self, missing: Sequence[int], report: Report) -> None:
        """Encode the shards of this process that are missing."""
        jobs = [rows for number in missing for rows in self.batches(number)]
        total, done = sum(map(len, jobs)), 0
        with closing(prefetched(lambda k: self.feed.load(jobs[k]), range(len(jobs)))) as loaded:
            for number in missing:
                parts: list[Made] = []
                failed: list[Skipped] = []
                for rows in self.batches(number):
                    content, kept, unread = next(loaded)
                    failed += unread
                    if kept:
                        parts.append(self._stored(self.feed.moments(content), kept))
                    done += len(rows)
                    report(done, total)
                if failed and self.settings.corrupt == "refuse":
                    self.failed += failed
                else:
                    self._write(number, parts, failed)

    def _stored(self, made: Made, kept: Sequence[int]) -> Made:
        """The moments as they are stored, and a sum in place of what they were made of."""
        moments, labels, content = made
        with np.errstate(over="ignore"):
            stored = moments.astype(self.settings.dtype)
        finite = np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
        if not finite.all():
            k = kept[int(np.argmin(finite))]
            if np.isfinite(moments).all():
                raise DataError(
                    f"the latents of image {k} reach {np.abs(moments).max():.3g}, more than float16 can hold; give "
                    "--dtype float32"
                )
            raise DataError(f"{self.autoencoder.name} makes latents of image {k} that are not finite numbers")
        return stored, labels, hashlib.sha256(content).digest()

    def _write(self, number: int, parts: Sequence[Made], failed: Sequence[Skipped]) -> None:
        empty = np.zeros((0, *self.row_shape), self.settings.dtype), np.zeros(0, np.int64), b""
        moments = np.concatenate([each for each, _, _ in (empty, *parts)])
        labels = [np.zeros(0, np.int64), *(each for _, each, _ in parts if each is not None)]
        try:
            write_shard(
                self.path(number),
                moments,
                np.concatenate(labels) if self.feed.labelled else None,
                made=self.made_of(number),
                pixels=hashlib.sha256(b"".join(each for _, _, each in parts)).hexdigest(),
                skipped=failed,
            )
        except OSError as error:
            raise DataError(
                f"{self.path(number)} cannot be written ({error.strerror or error}); make space, and give the same "
                "command again: what is encoded is kept"
            ) from error

    # -------------------------------------------------------------------------------------------------------- finishing

    def sum_of(self, number: int) -> tuple[int, int, str]:
        """(number, bytes, SHA-256) of a shard's file."""
        path = self.path(number)
        return number, path.stat().st_size, sha256_of(path)

    def finish(self, sums: Sequence[tuple[int, int, str]], units: tuple[Units, Units], written: int) -> Encoded:
        """Verify by decoding, and write what makes the folder a store."""
        for path in self.out.glob("*.safetensors"):
            if path.name not in {shard_name(number) for number, _, _ in sums}:
                path.unlink()  # of images that are no longer there
        shards = [read_shard(self.path(number)) for number, _, _ in sums]
        count = sum(shard.count for shard in shards)
        if count == 0:
            raise DataError(f"none of the {len(self.feed):,} images of {self.feed.name} can be read")
        skipped = tuple(each for shard in shards for each in shard.skipped)
        lost = self.feed.lost([k for k, _, _ in skipped])
        if lost:
            titles = some([f"{title} ({why})" for _, title, why in skipped], "; ")
            raise DataError(
                f"no image is left of {some(lost, ', ')}: {titles} cannot be read. Replace some of these, or remove "
                "the class, and give the command again"
            )
        total = reduce(Measured.merged, (shard.measured for shard in shards))
        measured = (tuple(map(float, total.mean)), tuple(map(float, total.std)))
        classes = self.feed.classes
        if classes is None:
            top = max(int(open_array(self.path(k), "labels").max()) for k, shard in enumerate(shards) if shard.count)
            classes = tuple(map(str, range(top + 1))) if top else ()
        latent = self._latent(units, measured)
        psnr = self._compare(shards, count)
        _, _, c, h, w = self.row_shape
        conditions = self.feed.conditions
        if conditions is not None:
            kept = np.setdiff1d(np.arange(len(self.feed)), [number for number, _, _ in skipped])
            save_conditions(conditions.subset(kept), self.out / CONDITIONS)
        write_meta(
            self.out,
            {
                "latent": latent.to_dict(),
                "shape": [c, h, w],
                "gaussian": self.autoencoder.gaussian,
                "dtype": self.settings.dtype,
                **self.feed.made,
                "count": count,
                "classes": list(classes),
                **({} if conditions is None else {"condition": list(conditions.shape)}),
                "measured": {"mean": list(measured[0]), "std": list(measured[1])},
                "psnr": psnr,
                "source": {
                    "name": self.feed.name,
                    "split": self.feed.split,
                    **({} if self.feed.where is None else {"where": self.feed.where}),
                    "sha256": hashlib.sha256("".join(shard.pixels for shard in shards).encode()).hexdigest(),
                },
                "skipped": [list(each) for each in skipped],
                "shards": [
                    {"name": shard_name(number), "count": shard.count, "bytes": size, "sha256": found}
                    for (number, size, found), shard in zip(sums, shards, strict=True)
                ],
            },
        )
        return Encoded(
            count=count,
            classes=classes,
            before=len(self.feed) - written,
            bytes=sum(size for _, size, _ in sums),
            skipped=skipped,
            latent=latent,
            measured=measured,
            psnr=psnr,
        )

    def _latent(self, units: tuple[Units, Units], measured: tuple[tuple[float, ...], tuple[float, ...]]) -> LatentSpec:
        own = self.autoencoder.spec(int(self.feed.made["resolution"]))
        if (self.out / META).is_file():  # it was finished: its units stay, unless others are asked for
            before: LatentSpec = read_meta(self.out)["latent"]
            own = LatentSpec.from_dict({**own.to_dict(), "scale": before.scale, "shift": before.shift})
        return in_units(own, units, measured)

    def _compare(self, shards: Sequence[Shard], count: int) -> tuple[float, float] | None:
        """Decode some latents, and those of their mirrors; a picture of both beside the images, and their PSNR."""
        places = np.unique(np.linspace(0, count - 1, _SHOWN).round().astype(int))
        ends = np.cumsum([shard.count for shard in shards])
        rows, means = [], []
        for place in places:
            number = int(np.searchsorted(ends, place, side="right"))
            local = int(place - (ends[number] - shards[number].count))
            left_out = {k for k, _, _ in shards[number].skipped}
            rows.append([k for k in self.rows(number) if k not in left_out][local])
            means.append(open_array(self.path(number), "moments")[local, :, 0].astype(np.float32))
        decoded, mirrors = (self.autoencoder.decode(np.stack([mean[side] for mean in means])) for side in (0, 1))
        panels = [("decoded", decoded), ("decoded mirrors", mirrors)]
        images = self.feed.shown(rows)
        if images is not None:
            panels.insert(0, ("images", images))
        if decoded.shape[1] in (1, 3):
            save_png(comparison(panels, columns=2), self.out / PICTURE)
        return None if images is None else (_psnr(decoded, images), _psnr(mirrors[..., ::-1], images))


def _change(key: str, before: Any, now: Any) -> str:
    """What a shard was made with, and what it would be made with now, in words."""
    if key == "classes":
        return "other classes"
    a, b = (f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value for value in (before, now))
    return f"{key} {a}, not {b}"


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """10 log₁₀(255²/mean squared error) of uint8 images, in dB; at most 99."""
    error = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return min(99.0, 10 * math.log10(255**2 / max(error, 1e-10)))


def in_units(
    latent: LatentSpec, units: tuple[Units, Units], measured: tuple[tuple[float, ...], tuple[float, ...]]
) -> LatentSpec:
    """The latents with other natural units, where they are given."""
    mean, std = measured
    scale, shift = units
    if scale == "measured" and min(std) <= 0:
        raise DataError(f"a channel of the latents is constant ({std}) and has no scale; give numbers")
    scales = tuple(1 / each for each in std) if scale == "measured" else scale
    shifts = mean if shift == "measured" else shift
    return LatentSpec.from_dict(
        {
            **latent.to_dict(),
            "scale": latent.scale if scales is None else by_channel(scales, latent.channels, "scale"),
            "shift": latent.shift if shifts is None else by_channel(shifts, latent.channels, "shift"),
        }
    )


def some(things: Sequence[str], separator: str) -> str:
    """The first of them as text, and how many more there are."""
    more = f"{separator}and {len(things) - _NAMED} more" if len(things) > _NAMED else ""
    return separator.join(things[:_NAMED]) + more
